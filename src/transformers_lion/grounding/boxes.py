"""Boxes and their arithmetic: fractions, pixels, COCO's form, and LION's way to write them.

Source: LION (arXiv:2311.11860), section 4.1: `[x1,y1,x2,y2]`, fractions of the image's width and height with three
decimals, and Shikra (arXiv:2306.15195), which writes several boxes as `[a,b,c,d;e,f,g,h]`.
"""

from collections.abc import Iterable

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""

Entity = tuple[str, tuple[int, int], list[Box]]
"""A phrase, its span in the clean text, and its boxes."""

DECIMALS = 3
"""Of each number that LION reads and writes."""


def format_boxes(boxes: Iterable[Box], decimals: int = DECIMALS) -> str:
    """Write boxes as LION reads and writes them, `[x1,y1,x2,y2]`, or `[a,b,c,d;e,f,g,h]` for several.

    Args:
        boxes: fractions of the image.
        decimals: of each number; LION was trained on three.
    """
    return f"[{';'.join(format_box(box, decimals) for box in boxes)}]"


def format_box(box: Box, decimals: int = DECIMALS) -> str:
    """The four numbers of a box with commas between them."""
    return ",".join(f"{value:.{decimals}f}" for value in box)


def round_box(box: Box, decimals: int = DECIMALS) -> Box:
    """The box that is read again after `box` was written."""
    x1, y1, x2, y2 = (round(value, decimals) for value in box)
    return x1, y1, x2, y2


def scale_box(box: Box, image_size: tuple[int, int] | None) -> Box:
    """Fractions to pixels of an image of (width, height); unchanged without one."""
    if image_size is None:
        return box
    width, height = image_size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def normalize_box(box: Box, image_size: tuple[int, int]) -> Box:
    """Pixels of an image of (width, height) to fractions.

    Raises:
        ValueError: if the image has no width or no height.
    """
    width, height = image_size
    if width <= 0 or height <= 0:
        raise ValueError(f"image_size is {width} x {height}, but both must be positive.")
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def check_pixels(box: Box, name: str) -> None:
    """Raise `ValueError` if a box that has to be pixels may be fractions, none of whose numbers is above 1."""
    if max(box) <= 1:
        raise ValueError(
            f"The box {list(box)} of {name} may be fractions, but must be pixels. Reading an answer with the size of "
            "its image gives pixels (image_size or target_sizes), and so does scale_box."
        )


def box_to_xywh(box: Box) -> Box:
    """Two corners to COCO's corner, width and height."""
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def box_from_xywh(box: Box) -> Box:
    """COCO's corner, width and height to two corners."""
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def order_box(box: Box) -> Box:
    """The same box from its upper left to its lower right corner."""
    return min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])


def clip_box(box: Box) -> Box:
    """The part of a box of fractions that lies in the image."""
    x1, y1, x2, y2 = (min(max(0.0, value), 1.0) for value in box)
    return x1, y1, x2, y2


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, 0 to 1; 0 for two without an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared) if areas > shared else 0.0


__all__ = [
    "Box",
    "Entity",
    "box_from_xywh",
    "box_iou",
    "box_to_xywh",
    "check_pixels",
    "clip_box",
    "format_box",
    "format_boxes",
    "normalize_box",
    "order_box",
    "round_box",
    "scale_box",
]
