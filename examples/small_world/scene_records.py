"""Scenes with several questions each, as records for `LionDataCollator`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .language import KIND_WEIGHTS, REGION_LEVEL_KINDS, Sample, ask, chatter, roughen
from .scenes import TAGS, Scene, render, sample_scene

IMAGE_LEVEL_KINDS = tuple(kind for kind in KIND_WEIGHTS if kind not in REGION_LEVEL_KINDS)
KINDS = {
    "image_level": IMAGE_LEVEL_KINDS,
    "region_level": tuple(sorted(REGION_LEVEL_KINDS)),
    "mixture": tuple(KIND_WEIGHTS),
}
"""The kinds of questions in each stage's data."""


class SceneRecords(torch.utils.data.Dataset):
    """Records generated on access; a given index always yields the same record.

    Args:
        split: a split of the small world.
        count: number of scenes.
        kinds: kinds of questions; see `KIND_WEIGHTS`.
        num_questions: number of questions per scene.
        start: index of the first scene.
        seed: seed of questions and tags; the scenes are always those of seed 0.
        tag_share: fraction of scenes with tags.
        wrong_tags: probability that a tag is replaced, and that it is missing.
        chatter_share: fraction of questions with extra words.
        size: width and height of the images in pixels.
    """

    def __init__(
        self,
        split: str,
        count: int,
        kinds: Sequence[str] = tuple(KIND_WEIGHTS),
        num_questions: int = 8,
        start: int = 0,
        seed: int = 0,
        tag_share: float = 0.5,
        wrong_tags: float = 0.05,
        chatter_share: float = 0.0,
        size: int = 100,
    ):
        self.split = split
        self.count = count
        self.kinds = tuple(kinds)
        self.num_questions = num_questions
        self.start = start
        self.seed = seed
        self.tag_share = tag_share
        self.wrong_tags = wrong_tags
        self.chatter_share = chatter_share
        self.size = size

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """Return the scene of a record."""
        return sample_scene(self.split, self.start + index)

    def samples(self, index: int) -> tuple[list[Sample], list[str] | None]:
        """Return the questions, answers and tags of a record."""
        generator = np.random.default_rng([self.seed, self.start + index])
        scene = self.scene(index)
        samples = [ask(generator, scene, self.kinds) for _ in range(self.num_questions)]
        samples = [Sample(x.kind, roughen(generator, x.question), x.answer, x.about) for x in samples]
        tags = noisy_tags(generator, scene, self.wrong_tags) if generator.random() < self.tag_share else None
        if self.chatter_share:
            chatty = generator.random(len(samples)) < self.chatter_share
            samples = [
                replace(x, question=chatter(generator, x.question)) if talks else x
                for x, talks in zip(samples, chatty, strict=True)
            ]
        return samples, tags

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(f"Index {index} is out of range: there are {self.count} records.")
        samples, tags = self.samples(index)
        return {
            "image": render(self.scene(index), self.size),
            "questions": [sample.question for sample in samples],
            "answers": [sample.answer for sample in samples],
            "task_types": [sample.task_type for sample in samples],
            "tags": tags,
        }


def noisy_tags(generator: np.random.Generator, scene: Scene, wrong: float = 0.1) -> list[str]:
    """Return the scene's tags with errors like those of a tagger: some are wrong, and some are missing.

    Args:
        wrong: probability that a tag is replaced by a random one, and that it is left out.
    """
    named = [tag if generator.random() > wrong else TAGS[generator.integers(len(TAGS))] for tag in scene.tags]
    kept = {tag for tag in named if generator.random() > wrong}
    return [tag for tag in TAGS if tag in kept]


__all__ = ["KINDS", "SceneRecords", "noisy_tags"]
