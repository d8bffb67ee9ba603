"""Random crops and flips of training images, applied only if questions and answers stay true.

Source: LION's reference code, which crops (`RandomResizedCrop`, scale 0.5 to 1) and flips every image, including
region-level images, whose boxes it does not adjust. Here, region-level images are left unchanged.
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
"""Words about sides, which a flip would make wrong."""

CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class ImageAugmentation:
    """Randomly crops and flips images.

    Region-level images and images with boxes in their texts are left unchanged. Images with words such as "left" or
    "right" in a question, answer or tag are not flipped. Only English words are recognized, and text within images is
    not: set `flip_probability=0` for other languages and for tasks that involve reading text.

    Attributes:
        scale: minimum and maximum fraction of the image's area that a crop keeps.
        ratio: minimum and maximum aspect ratio (width / height) of a crop.
        flip_probability: probability of a horizontal flip.
        seed: the random seed; the same seed, epoch and record yield the same image in any process.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}, but must be increasing, above 0, and at most 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}, but must be positive and increasing.")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability is {self.flip_probability}, but must be from 0 to 1.")

    def __call__(self, image: Image.Image, records: Iterable[Record], identity: str, epoch: int) -> Image.Image:
        """Augment an image as far as all of its questions allow.

        Args:
            image: an RGB image.
            records: all records about the image.
            identity: a unique name of the image, which the random numbers depend on.
            epoch: the epoch, which the random numbers depend on too.
        """
        records = list(records)
        if not all(_may_crop(record) for record in records):
            return image
        generator = random.Random(f"{self.seed} {epoch} {identity}")
        flip = generator.random() < self.flip_probability
        image = image.crop(self.crop_box(image.size, generator))
        return ImageOps.mirror(image) if flip and all(_may_flip(record) for record in records) else image

    def crop_box(self, size: tuple[int, int], generator: random.Random) -> tuple[int, int, int, int]:
        """Return the left, top, right and bottom of a random crop of an image; the whole image if no crop fits."""
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
    """Whether cropping leaves a record true: it is not about a region of the image."""
    texts = (*record.questions, *record.answers)
    return "region_level" not in record.task_types and not any(extract_entities(text)[1] for text in texts)


def _may_flip(record: Record) -> bool:
    """Whether flipping leaves a record true: it has no words about sides."""
    return not any(SIDES.search(text) for text in (*record.questions, *record.answers, *(record.tags or ())))


__all__ = ["ImageAugmentation"]
