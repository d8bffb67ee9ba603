"""Boxes drawn on pictures, with their phrases, by Pillow.

Lines and letters grow with the picture. Labels are shortened where they are much wider than their box, moved inside the
picture, and put where they cover each other least. Pillow's own font has the letters of English; for others the first
font of `FALLBACK_FONTS` that the system has and that knows them is taken.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from ..images import ImageSource, to_rgb
from .boxes import Box, Entity, check_pixels, order_box

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PALETTE = ("#e6194b", "#0b6e4f", "#4363d8", "#c05600", "#911eb4", "#00707a", "#8a5a1e", "#000075")
"""Colours of the boxes, one entity after the other; white text is readable on each."""

FALLBACK_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf",
    "wqy-microhei.ttc", "Arial Unicode.ttf", "PingFang.ttc", "AppleGothic.ttf", "msyh.ttc", "msgothic.ttc",
    "malgun.ttf", "Nirmala.ttf", "arialuni.ttf", "arial.ttf",
)  # fmt: skip
"""Files that the system's font folders may have."""

SMALLEST_FONT = 10
WIDEST = 0.6
"""Of the picture's width, for labels that are wider than their box."""

ELLIPSIS = "..."
NO_GLYPH = "\U0010fffe"
"""A character that no font has."""


def draw_boxes(
    image: ImageSource, entities: Sequence[Entity], labels: Sequence[str] | None = None, font: str | None = None
) -> Image.Image:
    """Draw the boxes of entities on a copy of a picture.

    Args:
        image: in any form that the model takes. It is opened as for the model: a photograph that its EXIF data turn is
            drawn on as it is seen.
        entities: as from `LionProcessor.post_process_generation(text, image_size=image)`: boxes in pixels of the
            upright picture. What lies outside the picture is drawn at its edge.
        labels: what to write at each entity's boxes, instead of its phrase.
        font: a font's file or name, for letters that no font here has. Labels in such letters are otherwise replaced
            by the number of their entity, from 1.

    Returns:
        An RGB picture of the same size.

    Raises:
        ValueError: if the image cannot be read, if there are not as many labels as entities, if a box is not finite, or
            if the boxes are fractions instead of pixels.
        OSError: if there is no such font.
    """
    picture = to_rgb(image)
    boxes = [(box, repr(phrase)) for phrase, _, boxes in entities for box in boxes]
    if picture.size != (1, 1) and boxes and all(-1 <= value <= 1 for box, _ in boxes for value in box):
        check_pixels(*boxes[0])
    return draw_entities(picture, entities, labels, font)


def draw_entities(
    picture: Image.Image, entities: Sequence[Entity], labels: Sequence[str] | None = None, font: str | None = None
) -> Image.Image:
    """`draw_boxes` on an upright RGB picture, with boxes that are known to be in its pixels."""
    if labels is not None and len(labels) != len(entities):
        raise ValueError(f"{len(labels)} labels for {len(entities)} entities.")
    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    width, size = line_width(drawn.size), font_size(drawn.size)
    placed = [(box_in_picture(box, drawn.size), index) for index, (_, _, boxes) in enumerate(entities) for box in boxes]
    for box, index in placed:
        draw_outline(draw, box, PALETTE[index % len(PALETTE)], width)
    taken: list[Box] = []
    for box, index in placed:
        label = one_line(entities[index][0] if labels is None else labels[index])
        if label:
            taken.append(draw_label(draw, label, index, box, drawn.size, taken, font, size))
    return drawn


def line_width(picture: tuple[int, int]) -> int:
    """Pixels of a box's line."""
    return max(1, round(min(picture) / 200))


def font_size(picture: tuple[int, int]) -> int:
    """Pixels of a label's letters: a 35th of the picture's side, or of a square with its area."""
    return max(SMALLEST_FONT, round(min(math.sqrt(picture[0] * picture[1]) / 35, min(picture) / 8)))


def one_line(label: str) -> str:
    """A label without line breaks and other control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in label).split())


def box_in_picture(box: Box, size: tuple[int, int]) -> Box:
    """A box from its upper left to its lower right pixel, both of them in the picture.

    Raises:
        ValueError: if it is not finite.
    """
    if not all(map(math.isfinite, box)):
        raise ValueError(f"The box {box} is not finite.")
    x1, y1, x2, y2 = order_box(box)
    width, height = size[0] - 1, size[1] - 1
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def draw_outline(draw: ImageDraw.ImageDraw, box: Box, color: str, width: int) -> None:
    """A coloured line with thin white ones beside it, which is seen on any background."""
    rim = max(1, width // 3)
    x1, y1, x2, y2 = box
    draw.rectangle((x1 - rim, y1 - rim, x2 + rim, y2 + rim), outline="white", width=width + 2 * rim)
    draw.rectangle(box, outline=color, width=width)


def draw_label(
    draw: ImageDraw.ImageDraw,
    label: str,
    index: int,
    box: Box,
    picture: tuple[int, int],
    taken: Sequence[Box],
    font_name: str | None,
    size: int,
) -> Box:
    """Write a label on a filled bar near its box, and return the bar."""
    font = font_for(label, font_name, size)
    if font is None:
        label, font = str(index + 1), ImageFont.load_default(size)
    pad = max(1, size // 6)
    label = shortened(label, font, max(box[2] - box[0], WIDEST * picture[0]) - 2 * pad)
    left, _, right, _ = draw.textbbox((0, 0), label, font=font)
    _, top, _, bottom = draw.textbbox((0, 0), label + "Ag", font=font)  # all bars of a font have one height
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x, y = best_place(box, (width, height), picture, taken)
    draw.rectangle((x, y, x + width, y + height), fill=PALETTE[index % len(PALETTE)])
    draw.text((x + pad - left, y + pad - top), label, fill="white", font=font)
    return x, y, x + width, y + height


def best_place(
    box: Box, bar: tuple[float, float], picture: tuple[int, int], taken: Sequence[Box]
) -> tuple[float, float]:
    """The upper left corner of a bar: above its box, else below or inside, whichever covers the least of others."""
    x1, y1, x2, y2 = box
    width, height = bar
    corners = [(x1, y1 - height), (x1, y2), (x1, y1), (x2 - width, y1 - height), (x2 - width, y2), (x1, y2 - height),
               (x2 - width, y1), (x2 - width, y2 - height), (x2, y1), (x1 - width, y1)]  # fmt: skip
    places = [(max(0.0, min(x, picture[0] - 1 - width)), max(0.0, min(y, picture[1] - 1 - height))) for x, y in corners]

    def cost(place: tuple[float, float]) -> float:
        x, y = place
        return sum(shared_area((x, y, x + width, y + height), other) for other in taken)

    # A place that had to be moved into the picture may cover the box itself: those that fit come first.
    fitting = [place for place, corner in zip(places, corners, strict=True) if place == corner]
    return min([*fitting, *places], key=cost)


def shared_area(first: Box, second: Box) -> float:
    """Pixels that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def shortened(label: str, font: Font, width: float) -> str:
    """As much of a label as fits into a width, with an ellipsis if that is not all; at least one letter."""
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
    """The given font, or the first that has all letters of a label; `None` if there is none."""
    if name is not None:
        return ImageFont.truetype(name, size)
    letters = frozenset(label) - {" "}
    fonts = (load_font(name, size) for name in (None, *FALLBACK_FONTS))
    return next((font for font in fonts if font is not None and has_letters(font, letters)), None)


@lru_cache(maxsize=64)
def load_font(name: str | None, size: int) -> Font | None:
    """A font of the system, or Pillow's own; `None` if there is no such font."""
    try:
        return ImageFont.load_default(size) if name is None else ImageFont.truetype(name, size)
    except OSError:
        return None


def has_letters(font: Font, letters: frozenset[str]) -> bool:
    """Whether a font has a picture of each letter, other than that for letters it does not have."""
    missing = glyph(font, NO_GLYPH)
    return all(letter.isascii() or glyph(font, letter) not in (missing, None) for letter in letters)


def glyph(font: Font, letter: str) -> tuple[tuple[int, int], bytes] | None:
    """The picture of a letter; `None` if it has none."""
    mask = font.getmask(letter)
    return (mask.size, bytes(mask)) if mask.size[0] and mask.size[1] else None


__all__ = ["draw_boxes"]
