"""How well box scores predict correctness: the example checkpoint on scenes that were not used for training.

    python -m benchmarks.calibration [CHECKPOINT] [--scenes 500] [--beams 1] [--output benchmarks/calibration.md]

The model locates one object in each scene, without tags. A box is right if its IoU with the object's box is at least
0.5. The score is that of `transformers_lion.grounding.score_boxes`: the geometric mean of the probabilities of the
tokens with the digits of the box. The output is a table and an image with the same name.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import transformers

from examples.small_world.language import ASKERS, Sample
from examples.small_world.scenes import render, sample_scene
from transformers_lion import LionForConditionalGeneration, LionProcessor, example_checkpoint
from transformers_lion.grounding import box_iou, extract_boxes, token_log_probs

NUM_BINS = 10
BATCH_SIZE = 16
IMAGE_SIZE = 200
SEED = 1


def ask(
    model: LionForConditionalGeneration, processor: LionProcessor, num_scenes: int, num_beams: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the score and IoU of the first box in each answer, and the number of answers without a box."""
    scores, ious, without = [], [], 0
    for low in range(0, num_scenes, BATCH_SIZE):
        samples, images = [], []
        for index in range(low, min(low + BATCH_SIZE, num_scenes)):
            scene = sample_scene("test", index, SEED)
            sample = ASKERS["locate"](np.random.default_rng([9, SEED, index]), scene)
            if sample is not None:
                samples.append(sample)
                images.append(render(scene, IMAGE_SIZE))
        for sample, result in zip(samples, locate(model, processor, samples, images, num_beams), strict=True):
            if not len(result["boxes"]):
                without += 1
                continue
            scores.append(float(result["scores"][0]))
            ious.append(box_iou(tuple(result["boxes"][0].tolist()), extract_boxes(sample.answer)[0]))
    return np.array(scores), np.array(ious), without


@torch.no_grad()
def locate(
    model: LionForConditionalGeneration, processor: LionProcessor, samples: list[Sample], images: list, num_beams: int
) -> list[dict]:
    """Return the boxes of each answer with their scores."""
    if not samples:
        return []
    inputs = processor(images, [sample.question for sample in samples], task_type="region_level", return_tensors="pt")
    generated = model.generate(
        **inputs, num_beams=num_beams, max_new_tokens=64, do_sample=False, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip
    return processor.post_process_grounded_object_detection(
        generated.sequences, scores=token_log_probs(model, generated)
    )


def calibration_error(scores: np.ndarray, right: np.ndarray) -> float:
    """Compute the expected calibration error: the mean distance of score and accuracy over bins of equal width."""
    bins = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
    return sum(
        (bins == b).mean() * abs(scores[bins == b].mean() - right[bins == b].mean()) for b in np.unique(bins).tolist()
    )


def auroc(scores: np.ndarray, right: np.ndarray) -> float:
    """Compute how often a right box has a higher score than a wrong one. Return `nan` if either kind is missing."""
    if right.all() or not right.any():
        return math.nan
    difference = scores[right][:, None] - scores[~right][None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def logistic_map(scores: np.ndarray, right: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Fit a logistic function of the log score, and return the expected share of right boxes at the scores `at`."""

    def columns(values: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(values), np.log(np.maximum(values, 1e-9))], axis=1)

    weights, inputs = np.zeros(2), columns(scores)
    for _ in range(50):  # Newton's method, with a little weight decay
        shares = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (right - shares) - 0.1 * weights
        weights += np.linalg.solve((inputs * (shares * (1 - shares))[:, None]).T @ inputs + 0.1 * np.eye(2), gradient)
    return 1 / (1 + np.exp(-columns(at) @ weights))


def mapped(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Map each half of the scores with the function that was fitted to the other half."""
    even = np.arange(len(scores)) % 2 == 0
    shares = np.empty_like(scores)
    for half in (even, ~even):
        shares[half] = logistic_map(scores[~half], right[~half], scores[half])
    return shares


def rows(
    scores: np.ndarray, right: np.ndarray, ious: np.ndarray
) -> list[tuple[float, float, float, int, float, float]]:
    """Split scores into bins of similar counts. Return lowest, highest and mean score, count, accuracy and mean IoU of
    each.
    """
    order = np.argsort(scores, kind="stable")
    return [
        (scores[part[0]], scores[part[-1]], scores[part].mean(), len(part), right[part].mean(), ious[part].mean())
        for part in np.array_split(order, NUM_BINS)
        if len(part)
    ]


def table(name: str, options: argparse.Namespace, scores: np.ndarray, ious: np.ndarray, without: int) -> str:
    """Format the results in Markdown."""
    right = ious >= 0.5
    lines = [
        "# Calibration of box scores",
        "",
        f"`python -m benchmarks.calibration --scenes {options.scenes} --beams {options.beams}`: {name}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}.",
        "",
        f"{len(scores)} boxes, of which {right.mean():.1%} are correct (IoU of 0.5 or more), and {without} answers "
        "without a box. The score of a box is the geometric mean of the probabilities of its digit tokens. All bins "
        "contain about the same number of boxes.",
        "",
        "| score | mean score | boxes | correct | mean IoU |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {low:.3f} to {high:.3f} | {mean:.3f} | {count} | {share:.1%} | {iou:.3f} |"
        for low, high, mean, count, share, iou in rows(scores, right, ious)
    ]
    lines += [
        "",
        "| metric | raw score | calibrated score |",
        "|---|---|---|",
        f"| expected calibration error, {NUM_BINS} bins of equal width | {calibration_error(scores, right):.3f} "
        f"| {calibration_error(mapped(scores, right), right):.3f} |",
        f"| AUROC, correct vs. incorrect boxes | {auroc(scores, right):.3f} | the same |",
        f"| correlation with the IoU | {np.corrcoef(scores, ious)[0, 1]:.3f} | |",
        "",
        "Use the score to rank boxes, not as the probability that a box is correct. A box counts as correct within a "
        "wide margin, and for the last digits of its coordinates, many choices are equally good. Calibration turns the "
        "score into a probability: a logistic function of the logarithm of the score, fitted on one half of the boxes "
        "and evaluated on the other.",
        "",
        "![score and fraction of correct boxes](calibration.png)",
    ]
    return "\n".join(lines) + "\n"


def draw(file: Path, scores: np.ndarray, ious: np.ndarray) -> None:
    """Plot the share of right boxes by score, and a histogram of the scores of right and wrong boxes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    right = ious >= 0.5
    figure, (left, histogram) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    found = rows(scores, right, ious)
    left.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="a probability")
    left.plot([row[2] for row in found], [row[4] for row in found], marker="o", label="score")
    shares = mapped(scores, right)
    found = rows(shares, right, ious)
    left.plot([row[2] for row in found], [row[4] for row in found], marker="s", label="after the logistic map")
    left.set(xlabel="mean score of the bin", ylabel="share of right boxes", xlim=(0, 1), ylim=(0, 1.02))
    left.legend(loc="lower right", frameon=False)
    edges = np.linspace(0, 1.05 * scores.max(), 41)
    histogram.hist([scores[right], scores[~right]], edges, stacked=True, label=["right", "wrong"], color=["C0", "C3"])
    histogram.set(xlabel="score", ylabel="boxes")
    histogram.legend(frameon=False)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the table there, and an image beside it")
    options = parser.parse_args()
    checkpoint = options.checkpoint or Path(example_checkpoint())
    model = LionForConditionalGeneration.from_pretrained(checkpoint).eval()
    scores, ious, without = ask(
        model, LionProcessor.from_pretrained(checkpoint), options.scenes, options.beams
    )  # fmt: skip
    name = "the example checkpoint" if options.checkpoint is None else checkpoint.name
    text = table(name, options, scores, ious, without)
    print(text)
    if options.output:
        options.output.write_text(text)
        draw(options.output.with_suffix(".png"), scores, ious)


if __name__ == "__main__":
    main()
