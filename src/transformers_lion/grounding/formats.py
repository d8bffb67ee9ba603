"""Box formats of other models: read them, write them, and convert between them.

Sources: Shikra (arXiv:2306.15195), section 3; Kosmos-2 (arXiv:2306.14824), section 2, and its processor in transformers
for the grid; Qwen-VL (arXiv:2308.12966), section 3; the model cards of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

| name | example | numbers |
|---|---|---|
| `lion`, `shikra` | `a dog [0.100,0.200,0.500,0.750]` | fractions with three decimals |
| `thousandths` | `a dog [100,200,500,750]` | thousandths of the image, 0 to 1000 |
| `markdown` | `[a dog](0.100,0.200,0.500,0.750)` | fractions with three decimals |
| `kosmos2` | `<phrase>a dog</phrase><object><patch_index_0195><patch_index_0752></object>` | cells of a 32 x 32 grid |
| `qwen` | `<ref>a dog</ref><box>(100,200),(500,750)</box>` | thousandths |
| `qwen2` | like `qwen`, with `<\\|object_ref_start\\|>`, `<\\|box_start\\|>`... | thousandths |
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
    BoxFormat,
    FoundBox,
    GroundedText,
    Region,
    check_regions,
    is_begun_fractions,
    read_fractions,
    read_with_format,
    tidy_box,
)

GRID_SIZE = 32
"""Number of rows and columns of Kosmos-2's grid."""

WHOLE = 1000
"""Width and height of the image in thousandths."""

INTEGER = re.compile(r"-?[0-9]{1,6}(?:\.[0-9]{0,30})?")
BEGUN_INTEGER = re.compile(r"-?[0-9]{0,6}(?:\.[0-9]{0,30})?")
CORNERS = re.compile(r"\s*\(([^()]*)\)\s*,\s*\(([^()]*)\)\s*")
BEGUN_CORNERS = re.compile(r"[-0-9(),.\s]*")
PATCHES = re.compile(r"<patch_index_([0-9]{1,4})><patch_index_([0-9]{1,4})>")
BEGUN_PATCHES = re.compile(r"(?:<patch_index_[0-9]{1,4}>){0,2}")
JSON_OBJECT = re.compile(r"\{[^{}]*\}")


def _read_thousandths(part: str) -> Box | None:
    """Parse `x1,y1,x2,y2` in thousandths."""
    numbers = [number.strip() for number in part.split(",", 4)]
    if len(numbers) != 4 or not all(map(INTEGER.fullmatch, numbers)):
        return None
    x1, y1, x2, y2 = (float(number) / WHOLE for number in numbers)
    return x1, y1, x2, y2


def _is_begun_thousandths(part: str) -> bool:
    """Whether `part` may be the start of a box: at least one complete number and a comma."""
    *numbers, last = (number.strip() for number in part.split(",", 4))
    return 0 < len(numbers) < 4 and all(map(INTEGER.fullmatch, numbers)) and bool(BEGUN_INTEGER.fullmatch(last))


def _read_corners(part: str) -> Box | None:
    """Parse `(x1,y1),(x2,y2)` in thousandths."""
    corners = CORNERS.fullmatch(part)
    return _read_thousandths(f"{corners[1]},{corners[2]}") if corners else None


def _read_patches(part: str) -> Box | None:
    """Parse the upper-left and the lower-right cell. Corners are at the centers of the cells, or at their edges if the
    cells share a row or a column.
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


THOUSANDTHS = BoxFormat(BRACKETS.pattern, BRACKETS.separator, _read_thousandths, _is_begun_thousandths)

MARKDOWN = BoxFormat(
    pattern=re.compile(r"\[(?P<phrase>[^\[\]]*)\]\((?P<content>[^()]*)(?:(?P<close>\))|\Z)"),
    separator=BRACKETS.separator,
    read_box=read_fractions,
    is_begun=is_begun_fractions,
)

KOSMOS2 = BoxFormat(
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


def _corners_format(ref: str, end_of_ref: str, box: str, end_of_box: str) -> BoxFormat:
    """Build Qwen's format from its markers, which are regular expressions."""
    return BoxFormat(
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


QWEN = _corners_format("<ref>", "</ref>", "<box>", "</box>")
QWEN2 = _corners_format(
    r"<\|object_ref_start\|>", r"<\|object_ref_end\|>", r"<\|box_start\|>", r"<\|box_end\|>"
)  # fmt: skip


def _in_brackets(phrase: str, boxes: Sequence[Box]) -> str:
    return f"{phrase} {format_boxes(boxes)}"


def _in_thousandths(phrase: str, boxes: Sequence[Box]) -> str:
    return f"{phrase} [{';'.join(','.join(map(str, thousandths(box))) for box in boxes)}]"


def _as_link(phrase: str, boxes: Sequence[Box]) -> str:
    return f"[{phrase}]({';'.join(map(format_box, boxes))})"


def _as_patches(phrase: str, boxes: Sequence[Box]) -> str:
    pairs = ["".join(f"<patch_index_{index:04d}>" for index in _patch_indices(box)) for box in boxes]
    marked = f"<phrase>{phrase}</phrase>" if phrase else ""
    return f"{marked}<object>{'</delimiter_of_multi_objects/>'.join(pairs)}</object>"


def _as_corners(phrase: str, boxes: Sequence[Box]) -> str:
    texts = ["<box>({},{}),({},{})</box>".format(*thousandths(box)) for box in boxes]
    return (f"<ref>{phrase}</ref>" if phrase else "") + "".join(texts)


def _as_special_corners(phrase: str, boxes: Sequence[Box]) -> str:
    texts = ["<|box_start|>({},{}),({},{})<|box_end|>".format(*thousandths(box)) for box in boxes]
    return (f"<|object_ref_start|>{phrase}<|object_ref_end|>" if phrase else "") + "".join(texts)


def thousandths(box: Box) -> list[int]:
    """Round to integers from 0 to 1000."""
    return [round(value * WHOLE) for value in box]


def _patch_indices(box: Box) -> tuple[int, int]:
    """Return the cells that contain the upper-left and the lower-right corner of a box."""
    x1, y1 = (min(math.floor(value * GRID_SIZE), GRID_SIZE - 1) for value in box[:2])
    x2, y2 = (math.ceil(value * GRID_SIZE - 1) for value in box[2:])
    return y1 * GRID_SIZE + x1, max(y1, y2) * GRID_SIZE + max(x1, x2)


@dataclass(frozen=True)
class _Writer:
    """How a format is written.

    Attributes:
        box_format: How it is read.
        mark: Function that formats a phrase and its boxes.
        start: Prefix of the whole text.
        takes_space: Whether the space before a phrase is moved inside its markers.
    """

    box_format: BoxFormat
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
JSON_FORMATS = ("qwen2.5", "qwen3")
PIXEL_FORMAT = "qwen2.5"
BOX_FORMATS = (*WRITERS, *JSON_FORMATS)
"""Names of all box formats."""


def read_grounded_text(text: str, box_format: str = "lion", image_size: tuple[int, int] | None = None) -> GroundedText:
    """Parse the boxes in any text and remove them from it.

    Anything that is not a box in the given format stays in the text. The JSON formats have labels but no text: the
    labels are joined by commas, and anything between the objects is dropped.

    Args:
        text: Answer of a model.
        box_format: Box format, one of `BOX_FORMATS`.
        image_size: (width, height) of the image that the model saw. Required for "qwen2.5", whose boxes are in pixels.

    Returns:
        The clean text, its phrases with their spans and boxes, and for each box whether it was repaired or clipped.

    Raises:
        ValueError: If the format is unknown, or it needs an `image_size` and there is none.
    """
    _check_format(box_format, image_size)
    if box_format in JSON_FORMATS:
        return read_json(text, image_size if box_format == PIXEL_FORMAT else None)
    return read_with_format(WRITERS[box_format].box_format, text)


def write_grounded_text(
    grounded: GroundedText, box_format: str = "lion", image_size: tuple[int, int] | None = None
) -> str:
    """Write the boxes into their text. `read_grounded_text` restores them up to the precision of the format.

    Some formats ("lion", "shikra", "thousandths") mark only the end of a phrase. When such text is read back, a phrase
    starts after the previous box or punctuation mark. The JSON formats keep phrases and boxes but not the text.

    Args:
        grounded: Text whose regions are in order of appearance, with boxes as fractions.
        box_format: Box format, one of `BOX_FORMATS`.
        image_size: (width, height) of the image that the model sees. Required for "qwen2.5".

    Raises:
        ValueError: If the format is unknown, a phrase does not match its span, the text itself contains something that
            would be read as a box or marker, or `image_size` is missing.
    """
    _check_format(box_format, image_size)
    regions = check_regions(grounded)
    if box_format in JSON_FORMATS:
        return _write_json(regions, image_size if box_format == PIXEL_FORMAT else None)
    writer = WRITERS[box_format]
    pieces, done = [writer.start], 0
    for (start, end), group in groupby(regions, key=lambda region: region.span):
        boxes = [found.box for region in group for found in region.boxes]
        before, phrase = grounded.text[done:start], grounded.text[start:end]
        if writer.takes_space and phrase and before.endswith(" "):
            before, phrase = before[:-1], " " + phrase
        pieces += [before, join(before, writer.mark(phrase, boxes)) if boxes else phrase]
        done = end
    written = "".join([*pieces, grounded.text[done:]])
    _check_written(written, grounded, box_format)
    return written


def convert_grounded_text(text: str, source: str, target: str, image_size: tuple[int, int] | None = None) -> str:
    """Convert the boxes in a text from one format to another.

    Args:
        text: Text with boxes.
        source: Format of the input, one of `BOX_FORMATS`.
        target: Format of the output, one of `BOX_FORMATS`.
        image_size: (width, height) of the image. Required for "qwen2.5".

    Raises:
        ValueError: See `read_grounded_text` and `write_grounded_text`.
    """
    return write_grounded_text(read_grounded_text(text, source, image_size), target, image_size)


def join(before: str, marked: str) -> str:
    """Append a marked phrase, without a leading space if the text is empty or already ends with one."""
    return marked.lstrip() if not before or before[-1].isspace() else marked


def _check_format(box_format: str, image_size: tuple[int, int] | None) -> None:
    """Raise `ValueError` if the format is unknown or needs the size of the image."""
    if box_format not in BOX_FORMATS:
        raise ValueError(f"Unknown box format {box_format!r}; use one of {', '.join(BOX_FORMATS)}.")
    if box_format == PIXEL_FORMAT and image_size is None:
        raise ValueError(f"The boxes of {box_format!r} are in pixels: pass image_size as (width, height).")


def _check_written(written: str, grounded: GroundedText, box_format: str) -> None:
    """Raise `ValueError` if the text would be read back differently because it contains boxes or markers itself."""
    found = read_with_format(WRITERS[box_format].box_format, written)
    same_text = "".join(found.text.split()) == "".join(grounded.text.split())
    if not same_text or len(found.boxes) != len(grounded.boxes):
        raise ValueError(
            f"{grounded.text!r} contains text that would be read as a box or marker of the format {box_format!r}."
        )


def read_json(text: str, image_size: tuple[int, int] | None) -> GroundedText:
    """Parse objects with `bbox_2d` and an optional `label`, and drop everything else."""
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
    """Parse the label and box of a JSON object. Return `None` if it is invalid or has no box."""
    try:
        content: Any = json.loads(match[0])
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        return None
    numbers, label = content.get("bbox_2d"), content.get("label", "")
    if not isinstance(label, str) or not isinstance(numbers, list) or len(numbers) != 4:
        return None
    if not all(type(number) in (int, float) and abs(number) < 1e6 for number in numbers):  # also rejects nan
        return None
    box = normalize_box(tuple(numbers), image_size or (WHOLE, WHOLE))
    return label.strip(), tidy_box(box, match.span())


def _write_json(regions: Sequence[Region], image_size: tuple[int, int] | None) -> str:
    """Write a JSON list with one object per box, as the Qwen models do."""
    objects = []
    for region in regions:
        for found in region.boxes:
            box = thousandths(found.box) if image_size is None else list(map(round, scale_box(found.box, image_size)))
            label = json.dumps(region.phrase, ensure_ascii=False).replace("{", r"\u007b").replace("}", r"\u007d")
            objects.append(f'{{"bbox_2d": {box}, "label": {label}}}')
    return f"[{', '.join(objects)}]"


__all__ = ["BOX_FORMATS", "convert_grounded_text", "read_grounded_text", "write_grounded_text"]
