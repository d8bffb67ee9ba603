"""Evaluates a small LION on unseen scenes: boxes, captions, and each kind of question.

`python -m examples.small_world.evaluation MODEL [--tagger DIR] [--split test] [--scenes 1000]`;
`--photographs` puts the objects on photographs, and `--reword` uses wordings not seen in training.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from transformers_lion.grounding import box_iou, extract_boxes
from transformers_lion.modeling_lion import LionForConditionalGeneration
from transformers_lion.processing_lion import LionProcessor
from transformers_lion.ram import ImageTagger

from .language import ASKERS, KIND_WEIGHTS, Sample
from .scene_records import noisy_tags
from .scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, paste_objects, render, sample_scene

THING = re.compile(rf"({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")
GROUND = re.compile(rf"({'|'.join(BACKGROUNDS)}) background")


def caption_attributes(caption: str) -> Counter[str]:
    """Return the facts in a caption: each object's shape with its size and color, and the background."""
    said: Counter[str] = Counter(f"{size} {shape}" for size, _, shape in THING.findall(caption))
    said.update(f"{color} {shape}" for _, color, shape in THING.findall(caption))
    said.update(GROUND.findall(caption))
    return said


def is_right(sample: Sample, answer: str) -> bool:
    """Whether an answer is correct; for boxes, whether the first one has an IoU of at least 0.5."""
    if sample.kind != "locate":
        return answer.strip() == sample.answer
    return _locate_iou(sample, answer) >= 0.5


def _locate_iou(sample: Sample, answer: str) -> float:
    """Return the IoU of the first box of an answer, 0 if it has none."""
    boxes = extract_boxes(answer)
    return box_iou(boxes[0], extract_boxes(sample.answer)[0]) if boxes else 0.0


def summarize(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    """Return the metrics of all samples: `rec` (accuracy at IoU 0.5), `miou`, `caption_f1`, and accuracy by kind."""
    right: dict[str, list[bool]] = {}
    ious, said, true, both = [], 0, 0, 0
    for sample, answer in zip(samples, answers, strict=True):
        right.setdefault(sample.kind, []).append(is_right(sample, answer))
        if sample.kind == "locate":
            ious.append(_locate_iou(sample, answer))
        if sample.kind == "caption":
            found, expected = caption_attributes(answer), caption_attributes(sample.answer)
            said, true, both = said + found.total(), true + expected.total(), both + (found & expected).total()
    metrics = {kind: float(np.mean(values)) for kind, values in sorted(right.items())}
    questions = [x for kind, values in right.items() if kind not in ("caption", "locate", "describe") for x in values]
    if ious:
        metrics |= {"rec": metrics.pop("locate"), "miou": float(np.mean(ious))}
    if said + true:
        metrics["caption_f1"] = 2 * both / (said + true)
    if questions:
        metrics["questions"] = float(np.mean(questions))
    return metrics


REWORDINGS = (
    str.upper, str.lower, lambda x: f"hey, {x}", lambda x: f"{x} thanks", lambda x: x.replace("?", "??"),
    lambda x: f"Tell me: {x}", lambda x: f"{x} I can't see it well.", lambda x: x.replace("the", "that"),
    lambda x: x.replace("What", "So what").replace("Is there", "I wonder, is there").replace("How", "Just how"),
)  # fmt: skip
"""Questions in natural wordings that do not occur in training."""


def reword(generator: np.random.Generator, question: str) -> str:
    """Reword a question with one of the `REWORDINGS`."""
    return REWORDINGS[int(generator.integers(len(REWORDINGS)))](question)


def on_photograph(scene: Scene, size: int, generator: np.random.Generator) -> Image.Image:
    """Draw the scene's objects on a crop of one of scikit-learn's two photographs, instead of its background."""
    from sklearn.datasets import load_sample_images

    photograph = Image.fromarray(load_sample_images().images[int(generator.integers(2))])
    side = int(generator.integers(150, photograph.height))
    x, y = (int(generator.integers(length - side + 1)) for length in photograph.size)
    return paste_objects(scene, photograph.crop((x, y, x + side, y + side)).resize((size, size)))


def evaluate(
    model: LionForConditionalGeneration,
    processor: LionProcessor,
    split: str = "test",
    num_scenes: int = 1000,
    kinds: Sequence[str] = tuple(KIND_WEIGHTS),
    tags: float | None = None,
    tagger: ImageTagger | None = None,
    seed: int = 1,
    size: int = 200,
    batch_size: int = 16,
    photographs: bool = False,
    rewordings: bool = False,
) -> dict[str, float]:
    """Answer one question of each kind about each scene, with greedy decoding.

    Args:
        tags: fraction of wrong or missing tags among the true ones; `None` for no true tags.
        tagger: provides the tags if there are no true ones.
        size: width and height of the images in pixels.
        photographs: whether to draw the objects on photographs, without questions about the background.
        rewordings: whether to reword questions with the `REWORDINGS`.

    Returns:
        See `summarize`.
    """
    if photographs:
        kinds = [kind for kind in kinds if kind != "background"]
    samples: list[Sample] = []
    answers: list[str] = []
    for low in range(0, num_scenes, batch_size):
        images, chosen, indices, tag_rows = [], [], [], []
        for index in range(low, min(low + batch_size, num_scenes)):
            scene, generator = sample_scene(split, index, seed), np.random.default_rng([9, seed, index])
            images.append(on_photograph(scene, size, generator) if photographs else render(scene, size))
            asked = [sample for kind in kinds if (sample := ASKERS[kind](generator, scene)) is not None]
            if rewordings:
                asked = [replace(sample, question=reword(generator, sample.question)) for sample in asked]
            chosen += asked
            indices += [len(images) - 1] * len(asked)
            given = noisy_tags(generator, scene, tags) if isinstance(tags, float) else None
            tag_rows += [given] * len(asked)
        if tags is None and tagger is not None:
            found = tagger(images)
            tag_rows = [found[index] for index in indices]
        batch = processor(
            text=[sample.question for sample in chosen], tags=tag_rows, return_tensors="pt",
            task_type=[sample.task_type for sample in chosen],
        )  # fmt: skip
        pixels = processor(images=images, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(
                **pixels, **batch, image_indices=torch.tensor(indices), num_beams=1, max_new_tokens=64, do_sample=False
            )
        answers += processor.batch_decode(ids, skip_special_tokens=True)
        samples += chosen
    return summarize(samples, answers)


def main() -> None:
    """Print the metrics of a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tagger", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=list(KIND_WEIGHTS))
    parser.add_argument("--photographs", action="store_true")
    parser.add_argument("--reword", action="store_true")
    options = parser.parse_args()
    model = LionForConditionalGeneration.from_pretrained(options.model).eval()
    processor = LionProcessor.from_pretrained(options.model)
    tagger: Any = ImageTagger.from_pretrained(options.tagger) if options.tagger else None
    metrics = evaluate(
        model, processor, options.split, options.scenes, options.kinds, None, tagger, options.seed,
        photographs=options.photographs, rewordings=options.reword,
    )  # fmt: skip
    print(json.dumps({name: round(value, 4) for name, value in metrics.items()}, indent=2))


if __name__ == "__main__":
    main()
