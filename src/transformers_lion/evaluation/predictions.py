"""A model's answers as a file of JSON Lines, and whether they fit the examples.

A line is `{"id": ..., "answer": ..., "scores": [...]}`, and what else its writer likes to keep. Understood are also the
lists that official scripts read, of `{"question_id", "answer"}` (VQA) and `{"image_id", "caption"}` (COCO).
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .data_files import Row, describe, name_some, number_rows
from .task import Example, Prediction, Scores, average_by_group

logger = logging.getLogger(__name__)

ID_NAMES = ("id", "question_id", "image_id")
ANSWER_NAMES = ("answer", "caption")


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write a file, one prediction a line."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(format_prediction(prediction) for prediction in predictions)


def format_prediction(prediction: Prediction, more: Mapping[str, Any] | None = None) -> str:
    """A prediction as a line with its end.

    Args:
        prediction: its scores are left out where there are none.
        more: fields to keep beside it.
    """
    fields: dict[str, Any] = {"id": prediction.id, "answer": prediction.answer}
    if prediction.scores is not None:
        fields["scores"] = list(prediction.scores)
    return json.dumps({**fields, **(more or {})}, ensure_ascii=False) + "\n"


def read_predictions(path: Path) -> list[Prediction]:
    """Read a file of predictions.

    A last line that breaks off, as a killed run leaves it, is left out with a warning.

    Raises:
        ValueError: if the file cannot be read or a record of it is no prediction.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}.") from error
    if content.lstrip()[:1] == b"[":
        try:
            return [_parse_prediction(row) for row in number_rows(json.loads(content), str(path))]
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected a JSON list of predictions: {error}.") from error
    whole = count_whole_bytes(content)
    if whole < len(content):
        line = content[:whole].count(b"\n") + 1
        logger.warning("%s: line %d breaks off and is left out.", path, line)
    lines = enumerate(content[:whole].split(b"\n"), 1)
    return [_parse_prediction(parse_line(line, f"{path}, line {number}")) for number, line in lines if line.strip()]


def count_whole_bytes(content: bytes) -> int:
    """How much of a file of JSON Lines is left without a last line that breaks off."""
    start = content.rfind(b"\n") + 1
    if content[start:].strip():
        try:
            json.loads(content[start:])
        except ValueError:
            return start
    return len(content)


def parse_line(line: bytes, where: str) -> Row:
    """The object in a line."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected an object in JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected an object, not {describe(fields)}.")
    return Row(fields, where)


def _parse_prediction(row: Row) -> Prediction:
    """The prediction in a record."""
    answer = row.need(*ANSWER_NAMES)
    if not isinstance(answer, str):
        raise row.error(f"expected a text in answer, not {describe(answer)}.")
    return Prediction(row.name(*ID_NAMES), answer, None if row.find("scores") is None else _parse_scores(row))


def _parse_scores(row: Row) -> tuple[float, ...]:
    """Log-likelihoods: numbers, of which some may be minus infinity."""
    scores = row.list("scores")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score) or score == math.inf:
            raise row.error(f"expected log-likelihoods in scores, not {describe(score)}.")
    return tuple(float(score) for score in scores)


def match_predictions(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions in the order of their examples.

    Raises:
        ValueError: if an id is predicted twice, has no prediction, or belongs to no example. It says how many there are
            of both, and names some of those ids.
    """
    counts = Counter(prediction.id for prediction in predictions)
    by_id = {prediction.id: prediction for prediction in predictions}
    known = {example.id for example in examples}
    faults = {
        "predicted twice": [name for name, count in counts.items() if count > 1],
        "without a prediction": [example.id for example in examples if example.id not in by_id],
        "of no example": [name for name in counts if name not in known],
    }
    texts = [f"{len(names)} ids are {kind}: {name_some(names)}" for kind, names in faults.items() if names]
    if texts:
        raise ValueError(f"{len(predictions)} predictions do not fit {len(examples)} examples: {'; '.join(texts)}.")
    return [by_id[example.id] for example in examples]


def candidate_scores(example: Example, prediction: Prediction) -> tuple[float, ...]:
    """The scores of a prediction, one for each candidate.

    Raises:
        ValueError: if there are none, another number of them, or one is no number.
    """
    scores, wanted = prediction.scores, len(example.candidates)
    if scores is None or len(scores) != wanted:
        count = "no" if scores is None else str(len(scores))
        raise ValueError(f"Prediction {example.id!r} has {count} scores for {wanted} candidates.")
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"Prediction {example.id!r} has a score that is no number.")
    return scores


def score_measures(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    judge: Callable[[Example, Prediction], Mapping[str, float]],
) -> Scores:
    """Scores that are means over examples, by group.

    Args:
        examples: at least one.
        predictions: for them, in any order.
        judge: from an example and its prediction to measures by name, the first of which ranks examples.
    """
    matched = match_predictions(examples, predictions)
    measures = [judge(example, prediction) for example, prediction in zip(examples, matched, strict=True)]
    ranks = {example.id: next(iter(found.values())) for example, found in zip(examples, measures, strict=True)}
    return Scores(average_by_group(examples, measures), ranks)


__all__ = [
    "candidate_scores",
    "format_prediction",
    "match_predictions",
    "read_predictions",
    "score_measures",
    "write_predictions",
]
