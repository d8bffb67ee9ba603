"""POPE: whether a model claims to see objects that are not in the image.

Source: POPE (arXiv:2305.10355) and its evaluate.py, which counts an answer as yes if its first sentence contains
neither "no" nor "not". The same metrics are reported, together with the number of answers that are neither yes nor no.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .data_files import Row, name_some, read_image, read_rows, require_unique
from .predictions import match_predictions
from .task import Example, Prediction, Scores, compute_by_group

SPLITS = ("random", "popular", "adversarial")
ANSWERS = ("yes", "no")

NEGATIONS = frozenset({"No", "not", "no"})
"""Words that the official script looks for. It does not recognize "Not" and "NO"."""
WORD = re.compile(r"[a-z]+")


def is_official_no(answer: str) -> bool:
    """Whether POPE's evaluate.py counts an answer as no: by its space-separated words up to the first period."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not NEGATIONS.isdisjoint(words)


def is_neither(answer: str) -> bool:
    """Whether an answer contains none of "yes", "no" and "not"."""
    return {"yes", "no", "not"}.isdisjoint(WORD.findall(answer.lower()))


def score_pope(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scores:
    """Compute metrics of yes-no answers in percent, and `neither`, the number of answers that are neither.

    `precision` and `recall` are those of "yes". They are 0 if there is no such answer or label (the official script
    then divides by zero).
    """
    matched = match_predictions(examples, predictions)
    said = ["no" if is_official_no(prediction.answer) else "yes" for prediction in matched]
    neither = [is_neither(prediction.answer) for prediction in matched]

    def compute(positions: Sequence[int]) -> dict[str, float]:
        counts = Counter((said[place], examples[place].references) for place in positions)
        return {**_compute_metrics(counts), "neither": float(sum(neither[place] for place in positions))}

    ranks = {example.id: 100.0 * (answer == example.references) for example, answer in zip(examples, said, strict=True)}
    return Scores(compute_by_group(examples, compute), ranks)


def _compute_metrics(counts: Counter[tuple[str, str]]) -> dict[str, float]:
    """Compute percentages from the counts of (answer, label) pairs."""
    total, right = counts.total(), counts["yes", "yes"]
    answered, labelled = right + counts["yes", "no"], right + counts["no", "yes"]
    return {
        "f1": _percent(2 * right, answered + labelled),
        "accuracy": _percent(right + counts["no", "no"], total),
        "precision": _percent(right, answered),
        "recall": _percent(right, labelled),
        "yes_share": _percent(answered, total),
    }


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def load_pope(data: Path, images: Path | None = None) -> list[Example]:
    """Load questions in POPE's format, from one file or from a folder with one file for each of the three splits.

    The split is the `category` of a record, or else part of the file name. The id is the `question_id` of the record,
    prefixed by the split for a folder: "random-1".

    Args:
        data: File or folder.
        images: Image folder.
    """
    if not data.is_dir():
        examples = [_read_example(row, images, _find_split(data)) for row in read_rows(data)]
    else:
        examples = [
            _read_example(row, images, split, f"{split}-")
            for split in SPLITS
            for row in read_rows(_find_split_file(data, split))
        ]
    require_unique([example.id for example in examples], str(data))
    return examples


def _find_split(path: Path) -> str:
    """Return the split in the name of a file, or ""."""
    return next((split for split in SPLITS if split in path.name), "")


def _find_split_file(folder: Path, split: str) -> Path:
    found = sorted(path for path in folder.glob("*.json*") if split in path.name)
    if len(found) != 1:
        names = name_some([path.name for path in found])
        raise ValueError(f"{folder}: expected one file *{split}*.json, but found {len(found)}: {names}.")
    return found[0]


def _read_example(row: Row, images: Path | None, split: str, prefix: str = "") -> Example:
    label = row.text("label", "answer")
    if label not in ANSWERS:
        raise row.error(f"expected yes or no in label, not {label!r}.")
    return Example(
        f"{prefix}{row.name('question_id', 'id')}",
        read_image(row, images, ("image", "image_source")),
        row.text("text", "question"),
        label,
        group=row.find("category") or split,
        tags=row.tags,
    )


__all__ = ["is_neither", "is_official_no", "load_pope", "score_pope"]
