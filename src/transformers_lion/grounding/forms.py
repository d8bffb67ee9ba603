"""How other models write boxes: read, written, and turned into each other.

Sources: Shikra (arXiv:2306.15195), section 3; Kosmos-2 (arXiv:2306.14824), section 2, and its processor in
transformers for the grid; Qwen-VL (arXiv:2308.12966), section 3; the model cards of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

| name | looks like | numbers |
|---|---|---|
| `lion`, `shikra` | `a dog [0.100,0.200,0.500,0.750]` | fractions, three decimals |
| `thousandths` | `a dog [100,200,500,750]` | thousandths of the image, 0 to 1000 |
| `markdown` | `[a dog](0.100,0.200,0.500,0.750)` | fractions, three decimals |
| `kosmos2` | `<phrase>a dog</phrase><object><patch_index_0195><patch_index_0752></object>` | cells of a 32 x 32 grid |
| `qwen` | `<ref>a dog</ref><box>(100,200),(500,750)</box>` | thousandths |
| `qwen2` | the same with `<\\|object_ref_start\\|>`, `<\\|box_start\\|>`... | thousandths |
| `qwen2.5` | `{"bbox_2d": [20, 20, 100, 75], "label": "a dog"}` | pixels of the image that the model saw |
| `qwen3` | `{"bbox_2d": [100, 200, 500, 750], "label": "a dog"}` | thousandths |
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from .boxes import Box, format_box, format_boxes, normalize_box, scale_box
from .reading import (
    BRACKETS,
    Form,
    FoundBox,
    GroundedText,
    Region,
    check_regions,
    is_begun_fractions,
    read_fractions,
    read_with_form,
    tidy_box,
)

GRID_SIZE = 32
"""Cells of Kosmos-2 on a side."""

WHOLE = 1000
"""The width, and the height, in thousandths."""

INTEGER = re.compile(r"-?[0-9]{1,6}(?:\.[0-9]{0,30})?")
BEGUN_INTEGER = re.compile(r"-?[0-9]{0,6}(?:\.[0-9]{0,30})?")
CORNERS = re.compile(r"\s*\(([^()]*)\)\s*,\s*\(([^()]*)\)\s*")
BEGUN_CORNERS = re.compile(r"[-0-9(),.\s]*")
PATCHES = re.compile(r"<patch_index_([0-9]{1,4})><patch_index_([0-9]{1,4})>")
BEGUN_PATCHES = re.compile(r"(?:<patch_index_[0-9]{1,4}>){0,2}")
JSON_OBJECT = re.compile(r"\{[^{}]*\}")


def _read_thousandths(part: str) -> Box | None:
    """`x1,y1,x2,y2` in thousandths."""
    numbers = [number.strip() for number in part.split(",", 4)]
    if len(numbers) != 4 or not all(map(INTEGER.fullmatch, numbers)):
        return None
    x1, y1, x2, y2 = (float(number) / WHOLE for number in numbers)
    return x1, y1, x2, y2


def _is_begun_thousandths(part: str) -> bool:
    """Whether `part` may be the beginning of a box: at least a first number and a comma."""
    *numbers, last = (number.strip() for number in part.split(",", 4))
    return 0 < len(numbers) < 4 and all(map(INTEGER.fullmatch, numbers)) and bool(BEGUN_INTEGER.fullmatch(last))


def _read_corners(part: str) -> Box | None:
    """`(x1,y1),(x2,y2)` in thousandths."""
    corners = CORNERS.fullmatch(part)
    return _read_thousandths(f"{corners[1]},{corners[2]}") if corners else None


def _read_patches(part: str) -> Box | None:
    """The upper left and the lower right cell: to the middle of the cells, or to their edges where they share a row or
    a column.
    """
    patches = PATCHES.fullmatch(part)
    if patches is None:
        return None
    (y1, x1), (y2, x2) = (divmod(int(index), GRID_SIZE) for index in patches.groups())
    if max(y1, y2) >= GRID_SIZE:
        return None
    left, right = (0.0, 1.0) if x1 == x2 or y1 == y2 else (0.5, 0.5)
    xs = (left, right) if x1 <= x2 else (right, left)
    ys = (left, right) if y1 <= y2 else (right, left)
    return (x1 + xs[0]) / GRID_SIZE, (y1 + ys[0]) / GRID_SIZE, (x2 + xs[1]) / GRID_SIZE, (y2 + ys[1]) / GRID_SIZE


THOUSANDTHS = Form(BRACKETS.pattern, BRACKETS.separator, _read_thousandths, _is_begun_thousandths)

MARKDOWN = Form(
    pattern=re.compile(r"\[(?P<phrase>[^\[\]]*)\]\((?P<content>[^()]*)(?:(?P<close>\))|\Z)"),
    separator=BRACKETS.separator,
    read_box=read_fractions,
    is_begun=is_begun_fractions,
)

KOSMOS2 = Form(
    pattern=re.compile(
        r"(?:<phrase>(?P<phrase>(?:(?!</?phrase>).)*)</phrase>\s*)?"
        r"<object>(?P<content>(?:<patch_index_[0-9]{1,4}>|</delimiter_of_multi_objects/>)*)"
        r"(?:(?P<close></object>)|(?:<[^<>]*)?\Z)",
        re.DOTALL,
    ),
    separator=re.compile("</delimiter_of_multi_objects/>"),
    read_box=_read_patches,
    is_begun=lambda part: bool(BEGUN_PATCHES.fullmatch(part)),
    marks=re.compile(r"<grounding>|</?phrase>"),
)


def _corners_form(ref: str, end_of_ref: str, box: str, end_of_box: str) -> Form:
    """Qwen's form, with its marks as regular expressions."""
    return Form(
        pattern=re.compile(
            rf"(?:{ref}(?P<phrase>(?:(?!{ref}|{end_of_ref}).)*){end_of_ref}\s*)?"
            rf"{box}(?P<content>[^<>]*(?:{end_of_box}\s*{box}[^<>]*)*)(?:(?P<close>{end_of_box})|(?:<[^<>]*)?\Z)",
            re.DOTALL,
        ),
        separator=re.compile(rf"{end_of_box}\s*{box}"),
        read_box=_read_corners,
        is_begun=lambda part: bool(BEGUN_CORNERS.fullmatch(part)),
        marks=re.compile(f"{ref}|{end_of_ref}"),
    )


QWEN = _corners_form("<ref>", "</ref>", "<box>", "</box>")
QWEN2 = _corners_form(
    r"<\|object_ref_start\|>", r"<\|object_ref_end\|>", r"<\|box_start\|>", r"<\|box_end\|>"
)  # fmt: skip


def _in_brackets(phrase: str, boxes: Sequence[Box]) -> str:
    """LION's and Shikra's."""
    return f"{phrase} {format_boxes(boxes)}"


def _in_thousandths(phrase: str, boxes: Sequence[Box]) -> str:
    """LION's, with whole numbers."""
    return f"{phrase} [{';'.join(','.join(map(str, thousandths(box))) for box in boxes)}]"


def _as_link(phrase: str, boxes: Sequence[Box]) -> str:
    """A link of Markdown."""
    return f"[{phrase}]({';'.join(map(format_box, boxes))})"


def _as_patches(phrase: str, boxes: Sequence[Box]) -> str:
    """Kosmos-2's."""
    pairs = ["".join(f"<patch_index_{index:04d}>" for index in _patch_indices(box)) for box in boxes]
    marked = f"<phrase>{phrase}</phrase>" if phrase else ""
    return f"{marked}<object>{'</delimiter_of_multi_objects/>'.join(pairs)}</object>"


def _as_corners(phrase: str, boxes: Sequence[Box]) -> str:
    """Qwen-VL's."""
    texts = ["<box>({},{}),({},{})</box>".format(*thousandths(box)) for box in boxes]
    return (f"<ref>{phrase}</ref>" if phrase else "") + "".join(texts)


def _as_special_corners(phrase: str, boxes: Sequence[Box]) -> str:
    """Qwen2-VL's."""
    texts = ["<|box_start|>({},{}),({},{})<|box_end|>".format(*thousandths(box)) for box in boxes]
    return (f"<|object_ref_start|>{phrase}<|object_ref_end|>" if phrase else "") + "".join(texts)


def thousandths(box: Box) -> list[int]:
    """The nearest whole numbers from 0 to 1000."""
    return [round(value * WHOLE) for value in box]


def _patch_indices(box: Box) -> tuple[int, int]:
    """The cells that hold a box's upper left and lower right corner."""
    x1, y1 = (min(math.floor(value * GRID_SIZE), GRID_SIZE - 1) for value in box[:2])
    x2, y2 = (math.ceil(value * GRID_SIZE - 1) for value in box[2:])
    return y1 * GRID_SIZE + x1, max(y1, y2) * GRID_SIZE + max(x1, x2)


@dataclass(frozen=True)
class _Writer:
    """How a form is written.

    Attributes:
        form: how it is read.
        mark: a phrase and its boxes to text.
        start: what the whole text begins with.
        takes_space: whether the space before a phrase belongs to it.
    """

    form: Form
    mark: Callable[[str, Sequence[Box]], str]
    start: str = ""
    takes_space: bool = False


WRITERS = {
    "lion": _Writer(BRACKETS, _in_brackets),
    "shikra": _Writer(BRACKETS, _in_brackets),
    "thousandths": _Writer(THOUSANDTHS, _in_thousandths),
    "markdown": _Writer(MARKDOWN, _as_link),
    "kosmos2": _Writer(KOSMOS2, _as_patches, start="<grounding>", takes_space=True),
    "qwen": _Writer(QWEN, _as_corners),
    "qwen2": _Writer(QWEN2, _as_special_corners),
}
JSON_FORMS = ("qwen2.5", "qwen3")
PIXEL_FORM = "qwen2.5"
FORMS = (*WRITERS, *JSON_FORMS)
"""Names of all forms."""


def read_grounded_text(text: str, form: str = "lion", image_size: tuple[int, int] | None = None) -> GroundedText:
    """Take the boxes out of any text.

    Whatever is no box of the form stays in the text. The JSON forms carry no text but labels: theirs are joined by
    commas, and what stands between the objects is left out.

    Args:
        text: an answer of a model.
        form: one of `FORMS`.
        image_size: (width, height) of the image that the model saw; for "qwen2.5", whose boxes are pixels of it.

    Returns:
        The clean text, its phrases with their spans and boxes, and for each box whether it was mended.

    Raises:
        ValueError: if there is no such form, or if it needs an `image_size` and has none.
    """
    _check_form(form, image_size)
    if form in JSON_FORMS:
        return read_json(text, image_size if form == PIXEL_FORM else None)
    return read_with_form(WRITERS[form].form, text)


def write_grounded_text(grounded: GroundedText, form: str = "lion", image_size: tuple[int, int] | None = None) -> str:
    """Put the boxes into their text; `read_grounded_text` has them again, to the form's precision.

    In the forms that mark only a phrase's end ("lion", "shikra", "thousandths") a phrase begins where the reader thinks
    so: behind the previous box or punctuation. The JSON forms keep phrases and boxes but not the text.

    Args:
        grounded: its regions in the order of the text; boxes are fractions.
        form: one of `FORMS`.
        image_size: (width, height) of the image that the model sees; for "qwen2.5".

    Raises:
        ValueError: if there is no such form; if a region is not where its span says; if the text itself holds what
            would be read as a box or a mark; or if an `image_size` is missing.
    """
    _check_form(form, image_size)
    regions = check_regions(grounded)
    if form in JSON_FORMS:
        return _write_json(regions, image_size if form == PIXEL_FORM else None)
    writer = WRITERS[form]
    pieces, done = [writer.start], 0
    for (start, end), group in groupby(regions, key=lambda region: region.span):
        boxes = [found.box for region in group for found in region.boxes]
        before, phrase = grounded.text[done:start], grounded.text[start:end]
        if writer.takes_space and phrase and before.endswith(" "):
            before, phrase = before[:-1], " " + phrase
        pieces += [before, join(before, writer.mark(phrase, boxes)) if boxes else phrase]
        done = end
    written = "".join([*pieces, grounded.text[done:]])
    _check_written(written, grounded, form)
    return written


def convert_grounded_text(text: str, source: str, target: str, image_size: tuple[int, int] | None = None) -> str:
    """Turn the boxes of a text from one form into another.

    Args:
        text: with boxes.
        source, target: two of `FORMS`.
        image_size: (width, height); for "qwen2.5".

    Raises:
        ValueError: as in `read_grounded_text` and `write_grounded_text`.
    """
    return write_grounded_text(read_grounded_text(text, source, image_size), target, image_size)


def join(before: str, marked: str) -> str:
    """A mark behind a text: the space that "lion" has before its bracket is not doubled, nor put at the beginning."""
    return marked.lstrip() if not before or before[-1].isspace() else marked


def _check_form(form: str, image_size: tuple[int, int] | None) -> None:
    """Raise `ValueError` if there is no such form, or it needs an image's size."""
    if form not in FORMS:
        raise ValueError(f"There is no form {form!r}, only {', '.join(FORMS)}.")
    if form == PIXEL_FORM and image_size is None:
        raise ValueError(f"The boxes of {form!r} are pixels: give image_size, (width, height).")


def _check_written(written: str, grounded: GroundedText, form: str) -> None:
    """Raise `ValueError` if a text is not read as it was meant, because it holds boxes or marks of its own."""
    found = read_with_form(WRITERS[form].form, written)
    same_text = "".join(found.text.split()) == "".join(grounded.text.split())
    if not same_text or len(found.boxes) != len(grounded.boxes):
        raise ValueError(f"{grounded.text!r} holds what would be read as a mark of the form {form!r}.")


def read_json(text: str, image_size: tuple[int, int] | None) -> GroundedText:
    """Read objects with `bbox_2d` and, if they have one, `label`; anything else is left out."""
    pieces: list[str] = []
    regions: list[Region] = []
    length = 0
    for match in JSON_OBJECT.finditer(text):
        found = _read_object(match, image_size)
        if found is None:
            continue
        label, box = found
        if regions:
            pieces.append(", ")
            length += 2
        pieces.append(label)
        regions.append(Region(label, (length, length + len(label)), (box,)))
        length += len(label)
    begun = text.rfind("{")
    cut_off = text[begun:] if begun > text.rfind("}") else None
    return GroundedText("".join(pieces), tuple(regions), cut_off)


def _read_object(match: re.Match[str], image_size: tuple[int, int] | None) -> tuple[str, FoundBox] | None:
    """The label and the box of a JSON object, or `None` if it is none or has no box."""
    try:
        content: Any = json.loads(match[0])
    except (ValueError, RecursionError):  # RecursionError: thousands of brackets in one another
        return None
    numbers, label = content.get("bbox_2d"), content.get("label", "")
    if not isinstance(label, str) or not isinstance(numbers, list) or len(numbers) != 4:
        return None
    if not all(type(number) in (int, float) and abs(number) < 1e6 for number in numbers):  # nan is not below either
        return None
    box = normalize_box(tuple(numbers), image_size or (WHOLE, WHOLE))
    return label.strip(), tidy_box(box, match.span())


def _write_json(regions: Sequence[Region], image_size: tuple[int, int] | None) -> str:
    """A list with an object for each box, which is what the models answer with."""
    objects = []
    for region in regions:
        for found in region.boxes:
            box = thousandths(found.box) if image_size is None else list(map(round, scale_box(found.box, image_size)))
            label = json.dumps(region.phrase, ensure_ascii=False).replace("{", r"\u007b").replace("}", r"\u007d")
            objects.append(f'{{"bbox_2d": {box}, "label": {label}}}')
    return f"[{', '.join(objects)}]"


__all__ = ["FORMS", "convert_grounded_text", "read_grounded_text", "write_grounded_text"]
