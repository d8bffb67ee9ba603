"""Boxes drawn on pictures, with their phrases, by Pillow."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .boxes import Entity

PALETTE = ("#e6194b", "#0b6e4f", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")
"""Colours of the boxes, one entity after the other; white text is readable on each."""


def draw_boxes(image: Image.Image, entities: Sequence[Entity], labels: Sequence[str] | None = None) -> Image.Image:
    """Draw the boxes of entities on a copy of a picture.

    Lines and letters grow with the picture; a label that would leave it is moved inside.

    Args:
        image: the picture.
        entities: as from `LionProcessor.post_process_generation(text, image_size=image.size)`: boxes in pixels.
        labels: what to write at each entity's boxes, instead of its phrase.

    Returns:
        An RGB picture of the same size.

    Raises:
        ValueError: if there are not as many labels as entities.
    """
    if labels is not None and len(labels) != len(entities):
        raise ValueError(f"{len(labels)} labels for {len(entities)} entities.")
    drawn = image.convert("RGB").copy()
    draw = ImageDraw.Draw(drawn)
    side = min(drawn.size)
    width, font = max(1, round(side / 150)), ImageFont.load_default(size=max(9, round(side / 25)))
    for index, (phrase, _, boxes) in enumerate(entities):
        label = phrase if labels is None else labels[index]
        color = PALETTE[index % len(PALETTE)]
        for box in boxes:
            draw.rectangle(box, outline=color, width=width)
            if label:
                draw_label(draw, label, (box[0], box[1]), drawn.size, color, font)
    return drawn


def draw_label(
    draw: ImageDraw.ImageDraw,
    label: str,
    corner: tuple[float, float],
    size: tuple[int, int],
    color: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write a label on a filled bar above a box's upper left corner, or where there is room."""
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    pad = max(1, (bottom - top) // 5)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0.0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else min(corner[1], size[1] - height)
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + pad - left, y + pad - top), label, fill="white", font=font)


__all__ = ["draw_boxes"]
