"""What an evaluation is made of: examples, predictions, and a task that loads the first and scores the second.

A task knows no model. `runner.py` turns examples into predictions with one; any other program may write them too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """A question about an image, and what counts as its answer.

    Attributes:
        id: unlike those of all other examples of the file.
        image: file, relative to the folder of images.
        question: as it is put to the model.
        references: what the task scores against, as JSON has it; each task says what it is.
        task_type: "image_level" or "region_level".
        candidates: answers to rank by their likelihood; none where an answer is generated.
        group: of the file's examples, such as a split; "" where there is one alone.
        tags: of the image, where the file has them.
        image_size: width and height that the file gives the image, where references depend on them.
        error: why the example cannot be scored; "" where it can. It then has no references. Neither of these two counts
            for equality.
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
        id: the example's.
        answer: the text; for ranked candidates, the likeliest.
        scores: log-likelihood of each candidate, in their order.
    """

    id: str
    answer: str
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Scores:
    """What predictions are worth.

    Attributes:
        figures: by name; the task says which and in what unit.
        per_example: by the example's id, higher is better: what the worst cases are found by.
    """

    figures: dict[str, float]
    per_example: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One way to evaluate.

    Attributes:
        name: on the command line.
        load: from the data's file and the folder of images to examples; options of its own by name.
        score: from examples and predictions to figures. An example without a prediction is an error.
        headline: the figure that the paper gives.
        max_new_tokens: of a generated answer.
        paper: by data set and model, the paper's value of `headline`, in the same unit.
        load_options: names of the options that `load` has.
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
    """Figures of all examples, and where they are of several groups, of each: "accuracy" and "accuracy testA".

    Args:
        examples: at least one.
        compute: from the positions of some examples to figures by name.
    """
    groups: dict[str, list[int]] = {}
    for position, example in enumerate(examples):
        groups.setdefault(example.group, []).append(position)
    figures = dict(compute(range(len(examples))))
    if len(groups) > 1:
        for group, positions in groups.items():
            figures |= {f"{name} {group}": value for name, value in compute(positions).items()}
    return figures


def average_by_group(examples: Sequence[Example], measures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """As `compute_by_group`, of figures that are means over those examples that have them.

    Args:
        examples: at least one.
        measures: of each example, by name.
    """
    names = dict.fromkeys(name for measured in measures for name in measured)

    def compute(positions: Sequence[int]) -> dict[str, float]:
        values = {name: [measures[place][name] for place in positions if name in measures[place]] for name in names}
        return {name: mean(found) for name, found in values.items() if found}

    return compute_by_group(examples, compute)


def mean(values: Sequence[float]) -> float:
    """The mean of some numbers, at least one, whatever their order."""
    return math.fsum(values) / len(values)


__all__ = ["Example", "Prediction", "Scores", "Task", "average_by_group", "compute_by_group", "mean"]
