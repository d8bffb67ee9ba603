"""Draw boxes and their phrases on images with Pillow.

Lines and text scale with the image. Labels that are much wider than their box are shortened. All labels are moved
inside the image, to the position where they overlap least. Pillow's default font covers English. For other characters,
the first installed font of `FALLBACK_FONTS` that contains them is used.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from ..images import ImageSource, to_rgb
from .boxes import Box, Entity, check_pixels, order_box

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PALETTE = ("#e6194b", "#0b6e4f", "#4363d8", "#c05600", "#911eb4", "#00707a", "#8a5a1e", "#000075")
"""Box colors, assigned to entities in turn. White text is readable on each of them."""

FALLBACK_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc", "Arial Unicode.ttf", "PingFang.ttc", "AppleGothic.ttf", "msyh.ttc", "msgothic.ttc",
    "malgun.ttf", "Nirmala.ttf", "arialuni.ttf", "arial.ttf",
)  # fmt: skip
"""Font files that may exist in the system's font folders."""

SMALLEST_FONT = 10
WIDEST = 0.6
"""Maximum width of a label that is wider than its box, as a fraction of the image width."""

ELLIPSIS = "..."
NO_GLYPH = "\U0010fffe"
"""A character that no font contains."""


def draw_boxes(
    image: ImageSource, entities: Sequence[Entity], labels: Sequence[str] | None = None, font: str | None = None
) -> Image.Image:
    """Draw the boxes of entities on a copy of an image.

    Args:
        image: Image in any form that the model accepts. It is opened as for the model, so the EXIF orientation is
            applied.
        entities: Entities as returned by `LionProcessor.post_process_generation(text, image_size=image)`, with boxes in
            pixels of the upright image. Boxes that extend beyond the image are drawn at its edge.
        labels: Labels to write instead of the phrases, one for each entity.
        font: File or name of a font, for characters that no installed font contains. Without it, labels with such
            characters are replaced by the number of their entity, counting from 1.

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: If the image cannot be read, the number of labels differs from the number of entities, a box is not
            finite, or boxes are fractions instead of pixels.
        OSError: If the font does not exist.
    """
    rgb = to_rgb(image)
    boxes = [(box, repr(phrase)) for phrase, _, boxes in entities for box in boxes]
    if rgb.size != (1, 1) and boxes and all(-1 <= value <= 1 for box, _ in boxes for value in box):
        check_pixels(*boxes[0])
    return draw_entities(rgb, entities, labels, font)


def draw_entities(
    image: Image.Image, entities: Sequence[Entity], labels: Sequence[str] | None = None, font: str | None = None
) -> Image.Image:
    """Draw entities on an upright RGB image, like `draw_boxes` but without checking that the boxes are pixels."""
    if labels is not None and len(labels) != len(entities):
        raise ValueError(f"{len(labels)} labels for {len(entities)} entities.")
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    width, size = _line_width(drawn.size), font_size(drawn.size)
    placed = [(_clip_to_image(box, drawn.size), index) for index, (_, _, boxes) in enumerate(entities) for box in boxes]
    for box, index in placed:
        _draw_outline(draw, box, PALETTE[index % len(PALETTE)], width)
    taken: list[Box] = []
    for box, index in placed:
        label = _one_line(entities[index][0] if labels is None else labels[index])
        if label:
            taken.append(_draw_label(draw, label, index, box, drawn.size, taken, font, size))
    return drawn


def _line_width(image_size: tuple[int, int]) -> int:
    return max(1, round(min(image_size) / 200))


def font_size(image_size: tuple[int, int]) -> int:
    """Compute the font size in pixels: a 35th of the side of a square with the image's area, but limited for narrow
    images.
    """
    return max(SMALLEST_FONT, round(min(math.sqrt(image_size[0] * image_size[1]) / 35, min(image_size) / 8)))


def _one_line(label: str) -> str:
    """Replace line breaks and other control characters by spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in label).split())


def _clip_to_image(box: Box, size: tuple[int, int]) -> Box:
    """Order the corners of a box and clip it to the pixels of the image.

    Raises:
        ValueError: If the box is not finite.
    """
    if not all(map(math.isfinite, box)):
        raise ValueError(f"The box {box} is not finite.")
    x1, y1, x2, y2 = order_box(box)
    width, height = size[0] - 1, size[1] - 1
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def _draw_outline(draw: ImageDraw.ImageDraw, box: Box, color: str, width: int) -> None:
    """Draw a colored line with a white rim, which is visible on any background."""
    rim = max(1, width // 3)
    x1, y1, x2, y2 = box
    draw.rectangle((x1 - rim, y1 - rim, x2 + rim, y2 + rim), outline="white", width=width + 2 * rim)
    draw.rectangle(box, outline=color, width=width)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    label: str,
    index: int,
    box: Box,
    image_size: tuple[int, int],
    taken: Sequence[Box],
    font_name: str | None,
    size: int,
) -> Box:
    """Draw a label on a filled bar near its box and return the bar."""
    font = font_for(label, font_name, size)
    if font is None:
        label, font = str(index + 1), ImageFont.load_default(size)
    pad = max(1, size // 6)
    label = shortened(label, font, max(box[2] - box[0], WIDEST * image_size[0]) - 2 * pad)
    left, _, right, _ = draw.textbbox((0, 0), label, font=font)
    _, top, _, bottom = draw.textbbox((0, 0), label + "Ag", font=font)  # all bars of a font have the same height
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x, y = best_place(box, (width, height), image_size, taken)
    draw.rectangle((x, y, x + width, y + height), fill=PALETTE[index % len(PALETTE)])
    draw.text((x + pad - left, y + pad - top), label, fill="white", font=font)
    return x, y, x + width, y + height


def best_place(
    box: Box, bar: tuple[float, float], image_size: tuple[int, int], taken: Sequence[Box]
) -> tuple[float, float]:
    """Choose the upper-left corner of a bar around or inside its box, where it overlaps other bars least."""
    x1, y1, x2, y2 = box
    width, height = bar
    corners = [(x1, y1 - height), (x1, y2), (x1, y1), (x2 - width, y1 - height), (x2 - width, y2), (x1, y2 - height),
               (x2 - width, y1), (x2 - width, y2 - height), (x2, y1), (x1 - width, y1)]  # fmt: skip
    places = [
        (max(0.0, min(x, image_size[0] - 1 - width)), max(0.0, min(y, image_size[1] - 1 - height))) for x, y in corners
    ]

    def cost(place: tuple[float, float]) -> float:
        x, y = place
        return sum(shared_area((x, y, x + width, y + height), other) for other in taken)

    # Prefer places that fit: one that had to be moved into the image may cover the box itself.
    fitting = [place for place, corner in zip(places, corners, strict=True) if place == corner]
    return min([*fitting, *places], key=cost)


def shared_area(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def shortened(label: str, font: Font, width: float) -> str:
    """Shorten a label with an ellipsis to fit a width, keeping at least one character."""
    if font.getlength(label) <= width:
        return label
    low, high = 1, len(label)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(label[:middle].rstrip() + ELLIPSIS) <= width:
            low = middle
        else:
            high = middle - 1
    return label[:low].rstrip() + ELLIPSIS


def font_for(label: str, name: str | None, size: int) -> Font | None:
    """Load the named font, or else the first one that has all characters of a label. Return `None` if there is none."""
    if name is not None:
        return ImageFont.truetype(name, size)
    letters = frozenset(label) - {" "}
    fonts = (load_font(name, size) for name in (None, *FALLBACK_FONTS))
    return next((font for font in fonts if font is not None and _has_letters(font, letters)), None)


@lru_cache(maxsize=64)
def load_font(name: str | None, size: int) -> Font | None:
    """Load a system font by name, or Pillow's default font. Return `None` if the font does not exist."""
    try:
        return ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
    except OSError:
        return None


def _has_letters(font: Font, letters: frozenset[str]) -> bool:
    """Whether a font draws each character differently from a missing one."""
    missing = _glyph(font, NO_GLYPH)
    return all(letter.isascii() or _glyph(font, letter) not in (missing, None) for letter in letters)


def _glyph(font: Font, letter: str) -> tuple[tuple[int, int], bytes] | None:
    mask = font.getmask(letter)
    return (mask.size, bytes(mask)) if mask.size[0] and mask.size[1] else None


__all__ = ["draw_boxes"]
