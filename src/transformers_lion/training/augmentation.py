"""Random crops and mirror images of training images, where they leave question and answer true.

Source: LION's reference code, which crops (`RandomResizedCrop`, scale 0.5 to 1) and flips every image. It does so to
region-level ones too, without moving their boxes; here these stay as they are.
"""

import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageOps

from ..grounding import extract_entities
from .records import Record

SIDES = re.compile(r"\b(?:left|right)|clockwise", re.IGNORECASE)
"""Words that are about sides; a mirror image would make them wrong."""

CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class ImageAugmentation:
    """How images are changed.

    Region-level images and such with boxes in their texts are left as they are, and images with words for sides
    ("left", "right") in question, answer or tags are not flipped. Only English words are known, and letters in a
    image are not: for tasks that read text, and for other languages, set `flip_probability=0`.

    Attributes:
        scale: least and largest part of the image's area that a crop keeps.
        ratio: least and largest ratio of a crop's width to its height.
        flip_probability: of a mirror image.
        seed: the same seed, epoch and record give the same image, in whichever process.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}, but must rise from above 0 to 1 at most.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}, but must be positive and rise.")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability is {self.flip_probability}, but must be from 0 to 1.")

    def __call__(self, picture: Image.Image, records: Iterable[Record], identity: str, epoch: int) -> Image.Image:
        """The image, changed as far as all its questions allow.

        Args:
            image: in RGB.
            records: all that ask about it.
            identity: what tells it from others.
            epoch: for another change of the same image.
        """
        records = list(records)
        if not all(_may_crop(record) for record in records):
            return picture
        generator = random.Random(f"{self.seed} {epoch} {identity}")
        flip = generator.random() < self.flip_probability
        picture = picture.crop(self.crop_box(picture.size, generator))
        return ImageOps.mirror(picture) if flip and all(_may_flip(record) for record in records) else picture

    def crop_box(self, size: tuple[int, int], generator: random.Random) -> tuple[int, int, int, int]:
        """Left, top, right and lower edge of a random crop of an image of `size`, the whole if none is found."""
        width, height = size
        for _ in range(CROP_ATTEMPTS):
            area = width * height * generator.uniform(*self.scale)
            ratio = math.exp(generator.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                left, top = generator.randint(0, width - crop_width), generator.randint(0, height - crop_height)
                return left, top, left + crop_width, top + crop_height
        return 0, 0, width, height


def _may_crop(record: Record) -> bool:
    """Whether a record is about no region of its image."""
    texts = (*record.questions, *record.answers)
    return "region_level" not in record.task_types and not any(extract_entities(text)[1] for text in texts)


def _may_flip(record: Record) -> bool:
    """Whether a record is about no side of its image."""
    return not any(SIDES.search(text) for text in (*record.questions, *record.answers, *(record.tags or ())))


__all__ = ["ImageAugmentation"]
