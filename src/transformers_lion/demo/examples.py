"""Images and questions that the page offers; nothing is downloaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..example import sketch
from .uploads import open_upload

PICTURES = Path(__file__).parent / "pictures"
"""Scenes of the small world that no training saw, drawn beforehand: drawing them takes the packages of training."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MOST = 12


@dataclass(frozen=True)
class Examples:
    """What can be tried with one click.

    Attributes:
        images: with what stands below each.
    """

    images: Sequence[tuple[Image.Image, str]]
    questions: Sequence[str]
    phrases: Sequence[str]


def small_world() -> Examples:
    """For the example checkpoint, which knows nothing else."""
    scenes = [(open_upload(file), file.stem.replace("-", " ")) for file in sorted(PICTURES.glob("*.png"))]
    return Examples(
        [(sketch(), "sketch"), *scenes],
        ["How many objects are there?", "What color is the triangle?", "Is there a green star in the image?"],
        ["the red circle", "the blue triangle", "the leftmost object"],
    )


def from_folder(folder: Path) -> Examples:
    """The first images of a folder, for a model that knows the world.

    Raises:
        OSError: if there is no such folder.
        ValueError: if there is no image in it, or one cannot be read.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)[:MOST]
    if not files:
        raise ValueError(f"{folder}: there is no image ({', '.join(SUFFIXES)}) in this folder.")
    images = []
    for file in files:
        try:
            images.append((open_upload(file), file.stem))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    return Examples(images, *WORLD)


def no_pictures() -> Examples:
    """Only questions, for a model that knows the world."""
    return Examples([], *WORLD)


WORLD = (
    ["What is in the foreground?", "Is there a person in the image?", "What is the weather like?"],
    ["the person on the left", "the largest object"],
)
