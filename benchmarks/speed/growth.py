"""How the cost of LION grows, with linear fits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .measures import fit_line, seconds
from .models import make_inputs
from .sections import Bench

BEAMS = 5
TRIES = 2


@dataclass(frozen=True)
class Series:
    """Time as a function of one quantity.

    Attributes:
        name: What is measured.
        axis: The quantity that grows.
        x: Values of the quantity.
        seconds: Shortest time of a few tries for each value.
        slope, intercept, r_squared: Linear fit.
    """

    name: str
    axis: str
    x: list[int]
    seconds: list[float]
    slope: float
    intercept: float
    r_squared: float


def points(quick: bool) -> dict[str, list[int]]:
    """Return the values at which each series is measured."""
    if quick:
        return {"batch": [1, 2], "questions": [1, 2], "prompt": [60, 120], "new tokens": [2, 4], "images": [1, 2]}
    return {
        "batch": [1, 2, 4, 8, 16],
        "questions": [1, 2, 4, 8, 16, 32],
        "prompt": [30, 60, 120, 240, 480],
        "new tokens": [8, 16, 32, 64, 128, 256],
        "images": [1, 2, 4, 8, 16],
    }


@torch.no_grad()
def growth(bench: Bench) -> list[Series]:
    """Measure all series."""
    side, size, new_tokens = bench.lion, bench.size, bench.settings.new_tokens

    def batch(count: int) -> Callable[[], object]:
        inputs = make_inputs(size, count)
        return lambda: side.answer(inputs, BEAMS, new_tokens)

    def questions(count: int) -> Callable[[], object]:
        inputs = make_inputs(size, count)
        return lambda: side.ask(inputs, BEAMS, new_tokens)

    def prompt(count: int) -> Callable[[], object]:
        inputs = make_inputs(size, 1, text_tokens=count)
        return lambda: side.answer(inputs, BEAMS, new_tokens)

    def tokens(count: int) -> Callable[[], object]:
        inputs = make_inputs(size, 1)
        return lambda: side.answer(inputs, BEAMS, count)

    def images(count: int) -> Callable[[], object]:
        pixels = make_inputs(size, count)["pixel_values"]
        return lambda: side.model.get_image_features(pixels)

    at = points(bench.settings.quick)
    return [
        measure(bench, f"answers, {BEAMS} beams", "batch: images, one question each", at["batch"], batch),
        measure(bench, f"answers, {BEAMS} beams", "questions on one image", at["questions"], questions),
        measure(bench, f"one answer, {BEAMS} beams", "tokens of the prompt", at["prompt"], prompt),
        measure(bench, f"one answer, {BEAMS} beams", "new tokens", at["new tokens"], tokens),
        measure(bench, "vision tower and aggregator", "images", at["images"], images),
    ]


def measure(bench: Bench, name: str, axis: str, x: list[int], prepare: Callable[[int], Callable[[], object]]) -> Series:
    """Measure one series."""
    taken = []
    for count in x:
        call = prepare(count)
        taken.append(min(seconds(call, bench.settings.clock) for _ in range(TRIES)))
    return Series(name, axis, x, taken, *fit_line([float(count) for count in x], taken))
