"""Example images and questions for the page. Nothing is downloaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..example import sketch
from .uploads import open_upload

IMAGES = Path(__file__).parent / "images"
"""Test scenes of the small world, which are shipped as files because rendering them needs training dependencies."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MOST = 12


@dataclass(frozen=True)
class Examples:
    """Inputs to try with one click.

    Attributes:
        images: Images with their captions.
    """

    images: Sequence[tuple[Image.Image, str]]
    questions: Sequence[str]
    phrases: Sequence[str]


def small_world() -> Examples:
    """Examples for the example checkpoint, which only knows the small world."""
    scenes = [(open_upload(file), file.stem.replace("-", " ")) for file in sorted(IMAGES.glob("*.png"))]
    return Examples(
        [(sketch(), "sketch"), *scenes],
        ["How many objects are there?", "What color is the triangle?", "Is there a green star in the image?"],
        ["the red circle", "the blue triangle", "the leftmost object"],
    )


def from_folder(folder: Path) -> Examples:
    """Use the first images in a folder, for a model of the real world.

    Raises:
        OSError: If the folder does not exist.
        ValueError: If it contains no images, or one cannot be read.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)[:MOST]
    if not files:
        raise ValueError(f"{folder}: no images ({', '.join(SUFFIXES)}) found in this folder.")
    images = []
    for file in files:
        try:
            images.append((open_upload(file), file.stem))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    return Examples(images, *WORLD)


def no_images() -> Examples:
    """Examples without images, for a model of the real world."""
    return Examples([], *WORLD)


WORLD = (
    ["What is in the foreground?", "Is there a person in the image?", "What is the weather like?"],
    ["the person on the left", "the largest object"],
)
