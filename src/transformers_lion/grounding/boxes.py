"""Boxes as text: LION answers with `[x1,y1,x2,y2]`, fractions of the image's width and height.

Source: LION (arXiv:2311.11860), section 4.1, and the wider family of such prompts (Shikra, arXiv:2306.15195), which
writes several boxes as `[a,b,c,d;e,f,g,h]` or as several brackets. Text is only ever matched, never evaluated, and each
function takes time linear in its length.
"""

import re
from collections.abc import Iterable

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""

Entity = tuple[str, tuple[int, int], list[Box]]
"""A phrase, its span in the clean text, and its boxes."""

BRACKET = re.compile(r"\[([^\[\]]*)\]")
NUMBER = re.compile(r"[01](?:\.[0-9]*)?|\.[0-9]+")
BOUNDARY = re.compile(r"[.,:;!?]\s|\n")


def format_boxes(boxes: Iterable[Box], decimals: int = 3) -> str:
    """Write boxes as LION reads and writes them, `[x1,y1,x2,y2]`, or `[a,b,c,d;e,f,g,h]` for several.

    Args:
        boxes: fractions of the image.
        decimals: of each number; LION was trained on three.
    """
    return f"[{';'.join(','.join(f'{value:.{decimals}f}' for value in box) for box in boxes)}]"


def parse_boxes(content: str) -> list[Box] | None:
    """The boxes between two brackets, `a,b,c,d` or `a,b,c,d;e,f,g,h`, or `None` if that is not what stands there.

    Values a little above one are clipped; reversed corners are put in order.
    """
    boxes = []
    for group in content.split(";"):
        numbers = [text.strip() for text in group.split(",")]
        if len(numbers) != 4 or not all(NUMBER.fullmatch(number) for number in numbers):
            return None
        x1, y1, x2, y2 = (min(float(number), 1.0) for number in numbers)
        boxes.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return boxes


def scale_box(box: Box, image_size: tuple[int, int] | None) -> Box:
    """Fractions to pixels of an image of (width, height); unchanged without one."""
    if image_size is None:
        return box
    width, height = image_size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, 0 to 1; 0 for two without an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared) if areas > shared else 0.0


def extract_boxes(text: str) -> list[Box]:
    """All boxes of a text in their order, as fractions of the image."""
    return [box for _, _, boxes in extract_entities(text)[1] for box in boxes]


def extract_entities(text: str, image_size: tuple[int, int] | None = None) -> tuple[str, list[Entity]]:
    """Take the boxes out of a text.

    The phrase of a box is what stands before it, back to the previous box or the last punctuation; it is empty where
    nothing does, as in `Answer: [0.1,0.2,0.3,0.4]`. Brackets that hold no box stay in the text.

    Args:
        text: an answer of the model.
        image_size: (width, height) in pixels, to have pixels instead of fractions.

    Returns:
        The text without its boxes, and for each bracket its phrase, the phrase's span in that text, and the boxes.
    """
    pieces: list[str] = []
    entities: list[Entity] = []
    length = done = 0
    for bracket in BRACKET.finditer(text):
        boxes = parse_boxes(bracket.group(1))
        if boxes is None:
            continue
        before = text[done : bracket.start()]
        done = bracket.end()
        boundaries = [match.end() for match in BOUNDARY.finditer(before)]
        phrase = before[boundaries[-1] if boundaries else 0 :].strip()
        pieces.append(before.rstrip())
        length += len(pieces[-1])
        span = (length - len(phrase), length)
        entities.append((phrase, span, [scale_box(box, image_size) for box in boxes]))
    return "".join([*pieces, text[done:].rstrip()]), entities


__all__ = ["Box", "Entity", "box_iou", "extract_boxes", "extract_entities", "format_boxes", "parse_boxes", "scale_box"]
