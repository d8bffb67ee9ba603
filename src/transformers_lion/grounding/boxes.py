"""Box arithmetic: fractions, pixels, COCO's format, and the notation that LION reads and writes.

Sources: LION (arXiv:2311.11860), section 4.1, writes a box as `[x1,y1,x2,y2]`, in fractions of the image's width and
height with three decimals. Shikra (arXiv:2306.15195) writes several boxes as `[a,b,c,d;e,f,g,h]`.
"""

from collections.abc import Iterable

Box = tuple[float, float, float, float]
"""`(x1, y1, x2, y2)`."""

Entity = tuple[str, tuple[int, int], list[Box]]
"""A phrase, its span in the clean text, and its boxes."""

DECIMALS = 3
"""Number of decimals that LION reads and writes."""


def format_boxes(boxes: Iterable[Box], decimals: int = DECIMALS) -> str:
    """Format boxes the way LION reads and writes them: `[x1,y1,x2,y2]`, or `[a,b,c,d;e,f,g,h]` for several boxes.

    Args:
        boxes: Boxes as fractions of the image.
        decimals: Number of decimals. LION was trained on three.
    """
    return f"[{';'.join(format_box(box, decimals) for box in boxes)}]"


def format_box(box: Box, decimals: int = DECIMALS) -> str:
    """Format the four numbers of a box, separated by commas."""
    return ",".join(f"{value:.{decimals}f}" for value in box)


def round_box(box: Box, decimals: int = DECIMALS) -> Box:
    """Round a box to the values that are read back after writing it."""
    x1, y1, x2, y2 = (round(value, decimals) for value in box)
    return x1, y1, x2, y2


def scale_box(box: Box, image_size: tuple[int, int] | None) -> Box:
    """Convert fractions to pixels of an image of size (width, height). Without a size, return the box unchanged."""
    if image_size is None:
        return box
    width, height = image_size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def normalize_box(box: Box, image_size: tuple[int, int]) -> Box:
    """Convert pixels of an image of size (width, height) to fractions.

    Raises:
        ValueError: If the width or the height of the image is not positive.
    """
    width, height = image_size
    if width <= 0 or height <= 0:
        raise ValueError(f"image_size is {width} x {height}, but both must be positive.")
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def check_pixels(box: Box, name: str) -> None:
    """Raise `ValueError` if a box that must be in pixels looks like fractions: none of its numbers exceeds 1."""
    if max(box) <= 1:
        raise ValueError(
            f"The box {list(box)} of {name} looks like fractions, but must be in pixels. Pass image_size or "
            "target_sizes when reading an answer, or convert the box with scale_box."
        )


def box_to_xywh(box: Box) -> Box:
    """Convert two corners to COCO's (x, y, width, height)."""
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def box_from_xywh(box: Box) -> Box:
    """Convert COCO's (x, y, width, height) to two corners."""
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def order_box(box: Box) -> Box:
    """Reorder the corners of a box so that the upper-left one comes first."""
    return min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])


def clip_box(box: Box) -> Box:
    """Clip a box of fractions to the image."""
    x1, y1, x2, y2 = (min(max(0.0, value), 1.0) for value in box)
    return x1, y1, x2, y2


def box_iou(first: Box, second: Box) -> float:
    """Compute the intersection over union of two boxes, from 0 to 1. It is 0 if neither box has an area."""
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
