"""All tasks by name with the paper's results, and metrics for a file of predictions without a model.

Source: LION (arXiv:2311.11860), tables 2 to 5. All values are in percent.
"""

from collections.abc import Sequence
from pathlib import Path

from .captioning import load_captions, score_captions
from .pope import load_pope, score_pope
from .predictions import read_predictions
from .rec import load_rec, score_rec
from .task import Prediction, Scores, Task
from .visdial import load_visdial, score_visdial
from .vqa import (
    load_exact_match,
    load_multiple_choice,
    load_vqa,
    score_exact_match,
    score_multiple_choice,
    score_vqa,
)

MODELS = ("LION-4B", "LION-12B")


def _list_paper(metrics: dict[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Pair the values with the two models, by dataset."""
    return {name: dict(zip(MODELS, values, strict=True)) for name, values in metrics.items()}


AOKVQA = {"A-OKVQA": (59.98, 60.87)}
"""The paper does not say whether this is for direct answers or multiple choice, so it is listed for both."""

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "rec",
            load_rec,
            score_rec,
            headline="accuracy",
            max_new_tokens=64,
            load_options=("box_format", "box_unit"),
            paper=_list_paper(
                {
                    "RefCOCO val": (89.73, 89.80),
                    "RefCOCO testA": (92.29, 93.02),
                    "RefCOCO testB": (84.82, 85.57),
                    "RefCOCO+ val": (83.60, 83.95),
                    "RefCOCO+ testA": (88.72, 89.22),
                    "RefCOCO+ testB": (77.34, 78.06),
                    "RefCOCOg val": (85.69, 85.52),
                    "RefCOCOg test": (85.63, 85.74),
                }
            ),
        ),
        Task(
            "captioning",
            load_captions,
            score_captions,
            headline="cider",
            max_new_tokens=64,
            paper=_list_paper({"Flickr30K": (85.57, 87.12), "COCO": (138.20, 139.25), "TextCaps": (104.87, 108.76)}),
        ),
        Task(
            "vqa",
            load_vqa,
            score_vqa,
            headline="accuracy",
            max_new_tokens=16,
            paper=_list_paper({"OKVQA": (51.08, 57.33), **AOKVQA}),
        ),
        Task(
            "exact-match",
            load_exact_match,
            score_exact_match,
            headline="accuracy",
            max_new_tokens=16,
            paper=_list_paper({"GQA": (49.50, 51.56)}),
        ),
        Task(
            "multiple-choice",
            load_multiple_choice,
            score_multiple_choice,
            headline="accuracy",
            paper=_list_paper({**AOKVQA, "IconQA": (54.91, 54.89), "VSR": (72.96, 73.77)}),
        ),
        Task(
            "visdial",
            load_visdial,
            score_visdial,
            headline="mrr",
            paper=_list_paper({"VisDial": (50.02, 50.42)}),
        ),
        Task(
            "pope",
            load_pope,
            score_pope,
            headline="f1",
            max_new_tokens=16,
            paper={
                "POPE random": {"LION": 88.33},
                "POPE popular": {"LION": 85.94},
                "POPE adversarial": {"LION": 84.71},
            },
        ),
    )
}
"""Tasks by their name on the command line."""


def evaluate_predictions(
    task: str, data: Path, predictions: Path | Sequence[Prediction], images: Path | None = None
) -> Scores:
    """Score predictions for a data file.

    Args:
        task: One of `TASKS`.
        data: Data file in a format that the task reads.
        predictions: Predictions for all examples, or a file with predictions.
        images: Image folder, if the data require it.

    Raises:
        ValueError: If the task is unknown, a file cannot be read, or the predictions do not match the data.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; use one of {', '.join(TASKS)}.")
    chosen = TASKS[task]
    examples = chosen.load(Path(data), images)
    found = read_predictions(predictions) if isinstance(predictions, str | Path) else predictions
    return chosen.score(examples, found)


__all__ = ["TASKS", "evaluate_predictions"]
