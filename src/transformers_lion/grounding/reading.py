"""Parse boxes in any text and report which were found, repaired, or cut off at the end of the text.

Text is only matched, never evaluated, and each function takes time linear in its length. This module has LION's own
format, and `formats.py` adds those of other models. A box in LION's format must meet these conditions:

- It has four numbers separated by commas, each with an optional minus sign, at most one digit before the decimal point,
  and no exponent.
- At least one number has a decimal point, unless all are 0 or 1. `[1,2,3,4]` and `[12]` are not boxes.
- It overlaps the image. `[1.5,2.5,3.5,4.5]` is not a box, and `[-0.1,0,1.2,1]` is a box that is clipped.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .boxes import Box, Entity, clip_box, order_box, scale_box

NUMBER = re.compile(r"-?(?:[0-9](?:\.[0-9]{0,30})?|\.[0-9]{1,30})")
BEGUN_NUMBER = re.compile(r"-?[0-9]?(?:\.[0-9]{0,30})?")
BOUNDARY = re.compile(
    r"[.,:;!?]\s|[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f\n]"
)  # including the full-width marks of Chinese and Japanese

FAR = 2.0
"""Largest value that may still be a fraction: models rarely exceed 1 by more."""


@dataclass(frozen=True)
class FoundBox:
    """A box found in a text.

    Attributes:
        box: Fractions of the image, from 0 to 1, with the upper-left corner first.
        repaired: Whether its corners had to be reordered.
        clipped: Whether a number was outside the range 0 to 1.
        written: (start, end) of its numbers in the text that was read. Ignored when comparing boxes.
    """

    box: Box
    repaired: bool = False
    clipped: bool = False
    written: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Region:
    """A phrase with its boxes.

    Attributes:
        phrase: Empty if there is none.
        span: (start, end) of the phrase in the clean text.
        boxes: One or more boxes.
    """

    phrase: str
    span: tuple[int, int]
    boxes: tuple[FoundBox, ...]


@dataclass(frozen=True)
class GroundedText:
    """A text without its boxes, and the boxes.

    Attributes:
        text: Text that is left after the boxes are removed.
        regions: Phrases with their boxes, in order of appearance.
        cut_off: Incomplete box at the end of the text, which is not included in `regions`. `None` if there is none.
    """

    text: str
    regions: tuple[Region, ...] = ()
    cut_off: str | None = None

    @property
    def boxes(self) -> list[FoundBox]:
        """All boxes, in order of appearance."""
        return [box for region in self.regions for box in region.boxes]

    def entities(self, image_size: tuple[int, int] | None = None) -> list[Entity]:
        """Return the regions in the format of Kosmos-2, in pixels if `image_size`, (width, height), is given."""
        return [
            (region.phrase, region.span, [scale_box(found.box, image_size) for found in region.boxes])
            for region in self.regions
        ]

    @classmethod
    def from_entities(cls, text: str, entities: Iterable[Entity]) -> "GroundedText":
        """Create a grounded text from a clean text and its entities, with boxes as fractions. Corners are reordered and
        boxes are clipped to the image.

        Raises:
            ValueError: If a box looks like pixels.
        """
        found = list(entities)
        for phrase, _, boxes in found:
            for box in boxes:
                _check_fractions(box, repr(phrase))
        return cls(text, tuple(Region(phrase, span, tuple(map(tidy_box, boxes))) for phrase, span, boxes in found))


@dataclass(frozen=True)
class BoxFormat:
    """How boxes are written in a text.

    Attributes:
        pattern: Pattern with the groups `content` (the boxes), `close` (`None` if the text ends first) and, for formats
            that mark phrases, `phrase`.
        separator: Pattern between two boxes in the content.
        read_box: Function that parses one part of the content into four fractions, or returns `None`.
        is_begun: Function that tells whether the last part of a cut-off content may be the start of a box.
        marks: Other markers of the format, which are removed from the text.
    """

    pattern: re.Pattern[str]
    separator: re.Pattern[str]
    read_box: Callable[[str], Box | None]
    is_begun: Callable[[str], bool]
    marks: re.Pattern[str] | None = None


def read_fractions(part: str) -> Box | None:
    """Parse `x1,y1,x2,y2` without reordering or clipping. Return `None` if it is not a box."""
    numbers = [number.strip() for number in part.split(",", 4)]
    if len(numbers) != 4 or not all(map(NUMBER.fullmatch, numbers)):
        return None
    x1, y1, x2, y2 = map(float, numbers)
    if "." not in part and not {x1, y1, x2, y2} <= {0.0, 1.0}:
        return None
    outside = max(x1, x2) < 0 or max(y1, y2) < 0 or min(x1, x2) > 1 or min(y1, y2) > 1
    return None if outside else (x1, y1, x2, y2)


def is_begun_fractions(part: str) -> bool:
    """Whether `part` may be the start of a box: at least one number and a comma, or a decimal point."""
    *numbers, last = (number.strip() for number in part.split(",", 4))
    begun = len(numbers) < 4 and all(map(NUMBER.fullmatch, numbers)) and bool(BEGUN_NUMBER.fullmatch(last))
    return begun and (
        "." in part or (bool(numbers) and {*map(float, numbers)} <= {0.0, 1.0} and last in ("", "0", "1"))
    )


BRACKETS = BoxFormat(
    pattern=re.compile(r"\[(?P<content>[^\[\]]*)(?:(?P<close>\])|\Z)"),
    separator=re.compile(";"),
    read_box=read_fractions,
    is_begun=is_begun_fractions,
)
"""Format of LION and Shikra: boxes in brackets after a phrase, of which only the end is marked."""


def _check_fractions(box: Box, name: str) -> None:
    """Raise `ValueError` if a box that must be in fractions looks like pixels: it extends far beyond the image."""
    if max(box) > FAR or min(box) < 1 - FAR:
        raise ValueError(
            f"The box {list(box)} of {name} looks like pixels, but must be fractions of the image: see normalize_box."
        )


def tidy_box(box: Box, written: tuple[int, int] = (0, 0)) -> FoundBox:
    """Order the corners and clip the box to the image."""
    ordered = order_box(box)
    clipped = clip_box(ordered)
    return FoundBox(clipped, repaired=ordered != tuple(box), clipped=clipped != ordered, written=written)


def parse_boxes(content: str) -> list[Box] | None:
    """Parse the text between two brackets, `a,b,c,d` or `a,b,c,d;e,f,g,h`.

    Corners are reordered, and boxes are clipped to the image.

    Returns:
        The boxes, or `None` if any part of the content is not a box.
    """
    boxes = [read_fractions(part) for part in content.split(";")]
    tidy = [tidy_box(box).box for box in boxes if box is not None]
    return tidy if len(tidy) == len(boxes) else None


def _read_content(box_format: BoxFormat, match: re.Match[str]) -> tuple[tuple[FoundBox, ...], str | None]:
    """Parse the boxes of one match, and the box that is cut off by the end of the text.

    If any part is not a box, none of them is. The last box counts as cut off if the text ends before the closing
    marker.
    """
    content, offset = match["content"], match.start("content")
    edges = [
        0,
        *(edge for separator in box_format.separator.finditer(content) for edge in separator.span()),
        len(content),
    ]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    cut_off = None
    if match["close"] is None:
        start, _ = spans.pop()
        if not box_format.is_begun(content[start:]):
            return (), None
        cut_off = content[start:] + match.string[match.end("content") : match.end()]
    boxes = []
    for start, end in spans:
        box = box_format.read_box(content[start:end])
        if box is None:
            return (), None
        boxes.append(tidy_box(box, (offset + start, offset + end)))
    return tuple(boxes), cut_off


def _find_boxes(
    box_format: BoxFormat, text: str
) -> tuple[list[tuple[re.Match[str], tuple[FoundBox, ...]]], str | None]:
    """Find all matches with boxes, and the last box if the end of the text cuts it off."""
    places, cut_off = [], None
    for match in box_format.pattern.finditer(text):
        boxes, cut_off = _read_content(box_format, match)
        if boxes:
            places.append((match, boxes))
    return places, cut_off


def read_with_format(box_format: BoxFormat, text: str) -> GroundedText:
    """Parse the boxes in a text and remove them from it."""
    places, cut_off = _find_boxes(box_format, text)
    pieces = _Pieces(box_format)
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
                phrase, span = regions[-1].phrase, regions[-1].span  # another bracket for the same phrase
            else:
                phrase = _last_phrase(before) if implied else ""
                span = (pieces.length - len(phrase), pieces.length)
            regions.append(Region(phrase, span, boxes))
        done = match.end()
    pieces.add(text[done:].rstrip())
    return GroundedText("".join(pieces.texts), tuple(regions), cut_off)


class _Pieces:
    """Collects the parts of a text and tracks their total length."""

    def __init__(self, box_format: BoxFormat):
        self.marks = box_format.marks
        self.texts: list[str] = []
        self.length = 0

    def add(self, text: str) -> None:
        """Append text without the format's markers."""
        text = text if self.marks is None else self.marks.sub("", text)
        if self.marks is not None and not self.length:
            text = text.lstrip()
        self.texts.append(text)
        self.length += len(text)

    def add_phrase(self, marked: str) -> tuple[str, tuple[int, int]]:
        """Append a marked phrase. Return the stripped phrase and its span."""
        phrase = marked.strip()
        before, _, after = marked.partition(phrase) if phrase else (marked, "", "")
        self.add(before)
        start = self.length
        self.texts.append(phrase)
        self.length += len(phrase)
        self.add(after)
        return phrase, (start, start + len(phrase))


def _last_phrase(text: str) -> str:
    """Return the text after the last punctuation mark."""
    start = 0
    for boundary in BOUNDARY.finditer(text):
        start = boundary.end()
    return text[start:].strip()


def extract_boxes(text: str) -> list[Box]:
    """Return all boxes of a text in order of appearance, as fractions of the image."""
    return [found.box for found in read_with_format(BRACKETS, text).boxes]


def extract_entities(text: str, image_size: tuple[int, int] | None = None) -> tuple[str, list[Entity]]:
    """Parse the boxes in a text and remove them from it.

    The phrase of a box is the text before it, back to the previous box or punctuation mark. It is empty if there is no
    such text, as in `Answer: [0.1,0.2,0.3,0.4]`. A bracket that directly follows another one has the same phrase.
    Anything that is not a box stays in the text. Use `read_grounded_text` to find out which boxes were repaired.

    Args:
        text: Answer of the model.
        image_size: (width, height) in pixels, to get pixels instead of fractions.

    Returns:
        The text without its boxes, and for each bracket its phrase, the span of the phrase in that text, and the boxes.
    """
    found = read_with_format(BRACKETS, text)
    return found.text, found.entities(image_size)


def check_regions(grounded: GroundedText) -> Sequence[Region]:
    """Return the regions after checking that their phrases are in the text, in order.

    Raises:
        ValueError: If a span or phrase does not match the text.
    """
    end = 0
    previous = None
    for region in grounded.regions:
        start, stop = region.span
        if region.span != previous and not end <= start <= stop <= len(grounded.text):
            raise ValueError(
                f"{region.phrase!r} has the span {region.span}, but must start at {end} or later and end at "
                f"{len(grounded.text)} or earlier."
            )
        if grounded.text[start:stop] != region.phrase:
            raise ValueError(f"The text at {region.span} is {grounded.text[start:stop]!r}, not {region.phrase!r}.")
        end, previous = stop, region.span
    return grounded.regions


__all__ = [
    "BRACKETS",
    "BoxFormat",
    "FoundBox",
    "GroundedText",
    "Region",
    "check_regions",
    "extract_boxes",
    "extract_entities",
    "parse_boxes",
    "read_with_format",
    "tidy_box",
]
