"""Clocks, taking turns, medians, and ratios with their spread."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""Processor time is that of all threads: with one thread, what an undisturbed core would take."""


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    Attributes:
        size: key of `models.SIZES`.
        threads: of torch.
        repeats: of each measurement; medians are of these.
        clock: key of `CLOCKS`.
        new_tokens: of each answer.
        num_questions: on one image.
        quick: a smoke: few points, nothing compiled.
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
    """One line of a table.

    Attributes:
        name: what was measured.
        unit: of the values.
        values: for each side, one value a turn.
        notes: anything else that is worth keeping, by name.
    """

    name: str
    unit: str
    values: dict[str, list[float]]
    notes: dict[str, Any] = field(default_factory=dict)


def seconds(function: Callable[[], object], clock: str) -> float:
    """What one call takes."""
    now = CLOCKS[clock]
    start = now()
    function()
    return now() - start


def take_turns(
    functions: dict[str, Callable[[], object]], settings: Settings, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each function, one after the other in each turn, after a turn that is not counted."""
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
    """Median, lowest and highest of the ratios of each turn; of single values, or of as many."""
    ratios = [slow / fast for slow, fast in zip(slower, faster, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def fit_line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Slope, intercept and R² of the straight line through points, by least squares."""
    if len(x) < 2:
        return 0.0, y[0], 1.0
    slope, intercept = statistics.linear_regression(x, y)
    mean = statistics.fmean(y)
    total = sum((value - mean) ** 2 for value in y)
    rest = sum((value - slope * at - intercept) ** 2 for at, value in zip(x, y, strict=True))
    return slope, intercept, 1 - rest / total if total else 1.0
