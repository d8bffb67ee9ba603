"""Clocks, interleaved measurements, medians, and ratios with their range."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""Processor time is the sum over all threads. With one thread, it is the time on an idle core."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Attributes:
        size: Key of `models.SIZES`.
        threads: Number of PyTorch threads.
        repeats: Number of repetitions, over which medians are computed.
        clock: Key of `CLOCKS`.
        new_tokens: Length of each answer.
        num_questions: Number of questions about one image.
        quick: Smoke test with few points and without compilation.
    """

    size: str = "middle"
    threads: int = 2
    repeats: int = 5
    clock: str = "wall"
    new_tokens: int = 20
    num_questions: int = 8
    quick: bool = False


@dataclass
class Row:
    """One row of a table.

    Attributes:
        name: What was measured.
        unit: Unit of the values.
        values: For each side, one value per repetition.
        notes: Additional information, by name.
    """

    name: str
    unit: str
    values: dict[str, list[float]]
    notes: dict[str, Any] = field(default_factory=dict)


def seconds(function: Callable[[], object], clock: str) -> float:
    """Measure one call."""
    now = CLOCKS[clock]
    start = now()
    function()
    return now() - start


def take_turns(
    functions: dict[str, Callable[[], object]], settings: Settings, warm: bool = True
) -> dict[str, list[float]]:
    """Measure all functions in turns, after a warm-up turn."""
    if warm:
        for function in functions.values():
            function()
    gc.collect()
    values: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(settings.repeats):
        for name, function in functions.items():
            values[name].append(seconds(function, settings.clock))
    return values


def median(values: list[float]) -> float:
    return statistics.median(values)


def ratio(slower: list[float], faster: list[float]) -> tuple[float, float, float]:
    """Return the median, minimum and maximum of the ratios in each turn."""
    ratios = [slow / fast for slow, fast in zip(slower, faster, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def fit_line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Fit a line by least squares, and return slope, intercept and R²."""
    if len(x) < 2:
        return 0.0, y[0], 1.0
    slope, intercept = statistics.linear_regression(x, y)
    mean = statistics.fmean(y)
    total = sum((value - mean) ** 2 for value in y)
    rest = sum((value - slope * at - intercept) ** 2 for at, value in zip(x, y, strict=True))
    return slope, intercept, 1 - rest / total if total else 1.0
