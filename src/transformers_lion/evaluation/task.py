"""The parts of an evaluation: examples, predictions, and a task that loads the former and scores the latter.

A task does not depend on a model. `runner.py` creates predictions for examples with a model, and so can any other
program.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """A question about an image, with its references.

    Attributes:
        id: Unique id within the file.
        image: Image file, relative to the image folder.
        question: Question for the model.
        references: What the task scores against, as JSON values; see the task.
        task_type: "image_level" or "region_level".
        candidates: Answers to rank by likelihood. Empty if the answer is generated.
        group: Group within the file, such as a split. "" if there is only one.
        tags: Tags of the image, if the file has them.
        image_size: Width and height of the image according to the file, if the references depend on them. Ignored when
            comparing examples.
        error: Reason why the example cannot be scored and has no references, or "". Ignored when comparing examples.
    """

    id: str
    image: str
    question: str
    references: Any
    task_type: str = "image_level"
    candidates: tuple[str, ...] = ()
    group: str = ""
    tags: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = field(default=None, compare=False)
    error: str = field(default="", compare=False)


@dataclass(frozen=True)
class Prediction:
    """A model's answer to an example.

    Attributes:
        id: Id of the example.
        answer: Text of the answer. For ranked candidates, the most likely one.
        scores: Log-likelihood of each candidate, in order.
    """

    id: str
    answer: str
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of predictions.

    Attributes:
        metrics: Metrics by name; see the task for their units.
        per_example: Score of each example by id, used to find the worst cases. Higher is better.
    """

    metrics: dict[str, float]
    per_example: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """An evaluation task.

    Attributes:
        name: Name on the command line.
        load: Function that loads examples from a data file and an image folder. May have keyword options.
        score: Function that computes metrics from examples and predictions. Raises an error if a prediction is missing.
        headline: The metric that the paper reports.
        max_new_tokens: Maximum number of tokens in a generated answer.
        paper: The paper's values of `headline` by dataset and model, in the same unit.
        load_options: Names of the keyword options of `load`.
    """

    name: str
    load: Callable[..., list[Example]]
    score: Callable[[Sequence[Example], Sequence[Prediction]], Scores]
    headline: str
    max_new_tokens: int = 32
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    load_options: tuple[str, ...] = ()


def compute_by_group(
    examples: Sequence[Example], compute: Callable[[Sequence[int]], Mapping[str, float]]
) -> dict[str, float]:
    """Compute metrics of all examples and, if there are several groups, of each group: "accuracy" and "accuracy testA".

    Args:
        examples: At least one example.
        compute: Function that maps positions of examples to metrics by name.
    """
    groups: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        groups.setdefault(example.group, []).append(position)
    metrics = dict(compute(range(len(examples))))
    if len(groups) > 1:
        for group, positions in groups.items():
            metrics |= {f"{name} {group}": value for name, value in compute(positions).items()}
    return metrics


def average_by_group(examples: Sequence[Example], measures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average measures over the examples that have them, overall and by group as in `compute_by_group`.

    Args:
        examples: At least one example.
        measures: Measures of each example, by name.
    """
    names = dict.fromkeys(name for measured in measures for name in measured)

    def compute(positions: Sequence[int]) -> dict[str, float]:
        values = {name: [measures[place][name] for place in positions if name in measures[place]] for name in names}
        return {name: mean(found) for name, found in values.items() if found}

    return compute_by_group(examples, compute)


def mean(values: Sequence[float]) -> float:
    """Compute the mean of at least one number, independently of their order."""
    return math.fsum(values) / len(values)


__all__ = ["Example", "Prediction", "Scores", "Task", "average_by_group", "compute_by_group", "mean"]
