"""Boxes read out of any text: what was found, what was mended, and what the end of the text cut off.

Text is only ever matched, never evaluated, and each function takes time linear in its length. LION's own form is here;
`forms.py` adds those of other models. What counts as a box in it:

- four numbers with commas between them, each an optional minus, at most one digit before the point and no exponent;
- at least one of them has a point, unless all are 0 or 1: `[1,2,3,4]` and `[12]` are no boxes;
- it reaches into the image: `[1.5,2.5,3.5,4.5]` is no box, and `[-0.1,0,1.2,1]` is one that is clipped.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .boxes import Box, Entity, clip_box, order_box, scale_box

NUMBER = re.compile(r"-?(?:[0-9](?:\.[0-9]{0,30})?|\.[0-9]{1,30})")
BEGUN_NUMBER = re.compile(r"-?[0-9]?(?:\.[0-9]{0,30})?")
BOUNDARY = re.compile(
    r"[.,:;!?]\s|[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f\n]"
)  # and the wide ones of Chinese and Japanese

FAR = 2.0
"""Fractions go from 0 to 1, and where a model errs not much further."""


@dataclass(frozen=True)
class FoundBox:
    """A box of a text.

    Attributes:
        box: fractions of the image, from 0 to 1, from the upper left to the lower right corner.
        repaired: whether its corners were in another order.
        clipped: whether a number lay outside 0 to 1.
        written: where its numbers stand in the text that was read, (start, end). It does not count for equality.
    """

    box: Box
    repaired: bool = False
    clipped: bool = False
    written: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Region:
    """A phrase with its boxes.

    Attributes:
        phrase: empty where there is none.
        span: of the phrase in the clean text, (start, end).
        boxes: one or more.
    """

    phrase: str
    span: tuple[int, int]
    boxes: tuple[FoundBox, ...]


@dataclass(frozen=True)
class GroundedText:
    """A text without its boxes, and the boxes.

    Attributes:
        text: what is left when the boxes are taken out.
        regions: in the order of the text.
        cut_off: the beginning of a box at which the text ends, from which no box is made; `None` if it ends otherwise.
    """

    text: str
    regions: tuple[Region, ...] = ()
    cut_off: str | None = None

    @property
    def boxes(self) -> list[FoundBox]:
        """All boxes in their order."""
        return [box for region in self.regions for box in region.boxes]

    def entities(self, image_size: tuple[int, int] | None = None) -> list[Entity]:
        """The regions in Kosmos-2's form, in pixels of an image of (width, height) if one is given."""
        return [
            (region.phrase, region.span, [scale_box(found.box, image_size) for found in region.boxes])
            for region in self.regions
        ]

    @classmethod
    def from_entities(cls, text: str, entities: Iterable[Entity]) -> "GroundedText":
        """The same of a clean text and its entities, whose boxes are fractions; these are put in order and clipped.

        Raises:
            ValueError: if a box may be pixels.
        """
        found = list(entities)
        for phrase, _, boxes in found:
            for box in boxes:
                _check_fractions(box, repr(phrase))
        return cls(text, tuple(Region(phrase, span, tuple(map(tidy_box, boxes))) for phrase, span, boxes in found))


@dataclass(frozen=True)
class Form:
    """How boxes stand in a text.

    Attributes:
        pattern: with the groups `content` (boxes), `close` (`None` where the text ends before), and `phrase` if the
            form marks phrases.
        separator: between two boxes of a content.
        read_box: the four fractions that a part of the content holds, or `None`.
        is_begun: whether the last part of a content that the text's end cut off may have become a box.
        marks: what else belongs to the form and is taken out of the text.
    """

    pattern: re.Pattern[str]
    separator: re.Pattern[str]
    read_box: Callable[[str], Box | None]
    is_begun: Callable[[str], bool]
    marks: re.Pattern[str] | None = None


def read_fractions(part: str) -> Box | None:
    """The four numbers of `x1,y1,x2,y2` as they stand there, or `None` if that is no box."""
    numbers = [number.strip() for number in part.split(",", 4)]
    if len(numbers) != 4 or not all(map(NUMBER.fullmatch, numbers)):
        return None
    x1, y1, x2, y2 = map(float, numbers)
    if "." not in part and not {x1, y1, x2, y2} <= {0.0, 1.0}:
        return None
    outside = max(x1, x2) < 0 or max(y1, y2) < 0 or min(x1, x2) > 1 or min(y1, y2) > 1
    return None if outside else (x1, y1, x2, y2)


def is_begun_fractions(part: str) -> bool:
    """Whether `part` may be the beginning of a box: at least a first number and a comma, or a point."""
    *numbers, last = (number.strip() for number in part.split(",", 4))
    begun = len(numbers) < 4 and all(map(NUMBER.fullmatch, numbers)) and bool(BEGUN_NUMBER.fullmatch(last))
    return begun and (
        "." in part or (bool(numbers) and {*map(float, numbers)} <= {0.0, 1.0} and last in ("", "0", "1"))
    )


BRACKETS = Form(
    pattern=re.compile(r"\[(?P<content>[^\[\]]*)(?:(?P<close>\])|\Z)"),
    separator=re.compile(";"),
    read_box=read_fractions,
    is_begun=is_begun_fractions,
)
"""LION's and Shikra's form: boxes in brackets, after the phrase, of which only the end is marked."""


def _check_fractions(box: Box, name: str) -> None:
    """Raise `ValueError` if a box that has to be fractions may be pixels: it reaches far out of the image."""
    if max(box) > FAR or min(box) < 1 - FAR:
        raise ValueError(
            f"The box {list(box)} of {name} may be pixels, but must be fractions of the image: see normalize_box."
        )


def tidy_box(box: Box, written: tuple[int, int] = (0, 0)) -> FoundBox:
    """Put corners in order and clip to the image."""
    ordered = order_box(box)
    clipped = clip_box(ordered)
    return FoundBox(clipped, repaired=ordered != tuple(box), clipped=clipped != ordered, written=written)


def parse_boxes(content: str) -> list[Box] | None:
    """The boxes between two brackets, `a,b,c,d` or `a,b,c,d;e,f,g,h`, or `None` if that is not what stands there.

    Corners are put in order, and boxes clipped to the image.
    """
    boxes = [read_fractions(part) for part in content.split(";")]
    tidy = [tidy_box(box).box for box in boxes if box is not None]
    return tidy if len(tidy) == len(boxes) else None


def _read_content(form: Form, match: re.Match[str]) -> tuple[tuple[FoundBox, ...], str | None]:
    """The boxes of one place in a text: all of them, or none if one is wrong; and the box that the text's end cut off.

    Where the text goes on there is none cut off; where it ends before the place does, the last is.
    """
    content, offset = match["content"], match.start("content")
    edges = [0, *(edge for separator in form.separator.finditer(content) for edge in separator.span()), len(content)]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    cut_off = None
    if match["close"] is None:
        start, _ = spans.pop()
        if not form.is_begun(content[start:]):
            return (), None
        cut_off = content[start:] + match.string[match.end("content") : match.end()]
    boxes = []
    for start, end in spans:
        box = form.read_box(content[start:end])
        if box is None:
            return (), None
        boxes.append(tidy_box(box, (offset + start, offset + end)))
    return tuple(boxes), cut_off


def _find_boxes(form: Form, text: str) -> tuple[list[tuple[re.Match[str], tuple[FoundBox, ...]]], str | None]:
    """All places of boxes, and the last box if the text's end cut it off."""
    places, cut_off = [], None
    for match in form.pattern.finditer(text):
        boxes, cut_off = _read_content(form, match)
        if boxes:
            places.append((match, boxes))
    return places, cut_off


def read_with_form(form: Form, text: str) -> GroundedText:
    """Take the boxes out of a text, by a form that marks phrases or one that does not."""
    places, cut_off = _find_boxes(form, text)
    pieces = _Pieces(form)
    regions: list[Region] = []
    done = 0
    for match, boxes in places:
        before = text[done : match.start()]
        if match.groupdict().get("phrase") is not None:
            pieces.add(before)
            regions.append(Region(*pieces.add_phrase(match["phrase"]), boxes))
        else:
            pieces.add(before.rstrip())
            implied = "phrase" not in match.groupdict()
            if implied and regions and not before.strip():
                phrase, span = regions[-1].phrase, regions[-1].span  # another bracket of the same phrase
            else:
                phrase = _last_phrase(before) if implied else ""
                span = (pieces.length - len(phrase), pieces.length)
            regions.append(Region(phrase, span, boxes))
        done = match.end()
    pieces.add(text[done:].rstrip())
    return GroundedText("".join(pieces.texts), tuple(regions), cut_off)


class _Pieces:
    """A text that grows, and its length."""

    def __init__(self, form: Form):
        self.marks = form.marks
        self.texts: list[str] = []
        self.length = 0

    def add(self, text: str) -> None:
        """Add a text, without the form's marks."""
        text = text if self.marks is None else self.marks.sub("", text)
        if self.marks is not None and not self.length:
            text = text.lstrip()
        self.texts.append(text)
        self.length += len(text)

    def add_phrase(self, marked: str) -> tuple[str, tuple[int, int]]:
        """Add a marked phrase; return it without the spaces around it, and its span."""
        phrase = marked.strip()
        before, _, after = marked.partition(phrase) if phrase else (marked, "", "")
        self.add(before)
        start = self.length
        self.texts.append(phrase)
        self.length += len(phrase)
        self.add(after)
        return phrase, (start, start + len(phrase))


def _last_phrase(text: str) -> str:
    """What stands behind the last punctuation."""
    start = 0
    for boundary in BOUNDARY.finditer(text):
        start = boundary.end()
    return text[start:].strip()


def extract_boxes(text: str) -> list[Box]:
    """All boxes of a text in their order, as fractions of the image."""
    return [found.box for found in read_with_form(BRACKETS, text).boxes]


def extract_entities(text: str, image_size: tuple[int, int] | None = None) -> tuple[str, list[Entity]]:
    """Take the boxes out of a text.

    The phrase of a box is what stands before it, back to the previous box or the last punctuation; it is empty where
    nothing does, as in `Answer: [0.1,0.2,0.3,0.4]`, and that of the bracket before where two brackets stand side by
    side. What is no box stays in the text. `read_grounded_text` also tells which boxes were mended.

    Args:
        text: an answer of the model.
        image_size: (width, height) in pixels, to have pixels instead of fractions.

    Returns:
        The text without its boxes, and for each bracket its phrase, the phrase's span in that text, and the boxes.
    """
    found = read_with_form(BRACKETS, text)
    return found.text, found.entities(image_size)


def check_regions(grounded: GroundedText) -> Sequence[Region]:
    """The regions, which have to stand in the text, one after the other.

    Raises:
        ValueError: if one does not.
    """
    end = 0
    previous = None
    for region in grounded.regions:
        start, stop = region.span
        if region.span != previous and not end <= start <= stop <= len(grounded.text):
            raise ValueError(
                f"{region.phrase!r} has the span {region.span}, but must begin at {end} or later and end at "
                f"{len(grounded.text)} or before."
            )
        if grounded.text[start:stop] != region.phrase:
            raise ValueError(f"At {region.span} stands {grounded.text[start:stop]!r}, not {region.phrase!r}.")
        end, previous = stop, region.span
    return grounded.regions


__all__ = [
    "BRACKETS",
    "Form",
    "FoundBox",
    "GroundedText",
    "Region",
    "check_regions",
    "extract_boxes",
    "extract_entities",
    "parse_boxes",
    "read_with_form",
    "tidy_box",
]
