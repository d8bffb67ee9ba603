"""Read and write predictions as JSON Lines, and match them with examples.

A line is `{"id": ..., "answer": ..., "scores": [...]}` and may have other fields. The lists that official scripts read
are also supported: `{"question_id", "answer"}` (VQA) and `{"image_id", "caption"}` (COCO).
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
    """Write predictions to a file, one per line."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(format_prediction(prediction) for prediction in predictions)


def format_prediction(prediction: Prediction, more: Mapping[str, Any] | None = None) -> str:
    """Format a prediction as a line, including the newline.

    Args:
        prediction: The prediction. `scores` is omitted if there are none.
        more: Additional fields.
    """
    fields: dict[str, Any] = {"id": prediction.id, "answer": prediction.answer}
    if prediction.scores is not None:
        fields["scores"] = list(prediction.scores)
    return json.dumps({**fields, **(more or {})}, ensure_ascii=False) + "\n"


def read_predictions(path: Path) -> list[Prediction]:
    """Read a file of predictions.

    If the last line is incomplete because a run was killed, it is skipped with a warning.

    Raises:
        ValueError: If the file cannot be read or contains a record that is not a prediction.
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
        logger.warning("%s: line %d is incomplete and is skipped.", path, line)
    lines = enumerate(content[:whole].split(b"\n"), 1)
    return [_parse_prediction(parse_line(line, f"{path}, line {number}")) for number, line in lines if line.strip()]


def count_whole_bytes(content: bytes) -> int:
    """Return the size of a JSON Lines file without an incomplete last line."""
    start = content.rfind(b"\n") + 1
    if content[start:].strip():
        try:
            json.loads(content[start:])
        except ValueError:
            return start
    return len(content)


def parse_line(line: bytes, where: str) -> Row:
    """Parse the object in a line."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected a JSON object: {error}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected an object, not {describe(fields)}.")
    return Row(fields, where)


def _parse_prediction(row: Row) -> Prediction:
    answer = row.need(*ANSWER_NAMES)
    if not isinstance(answer, str):
        raise row.error(f"expected a string in answer, not {describe(answer)}.")
    return Prediction(row.name(*ID_NAMES), answer, None if row.find("scores") is None else _parse_scores(row))


def _parse_scores(row: Row) -> tuple[float, ...]:
    """Parse log-likelihoods, which may be negative infinity."""
    scores = row.list("scores")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score) or score == math.inf:
            raise row.error(f"expected log-likelihoods in scores, not {describe(score)}.")
    return tuple(float(score) for score in scores)


def match_predictions(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
    """Return the predictions in the order of their examples.

    Raises:
        ValueError: If an id is predicted twice, has no prediction, or belongs to no example. The message has the counts
            and some of the ids.
    """
    counts = Counter(prediction.id for prediction in predictions)
    by_id = {prediction.id: prediction for prediction in predictions}
    known = {example.id for example in examples}
    faults = {
        "predicted twice": [name for name, count in counts.items() if count > 1],
        "without a prediction": [example.id for example in examples if example.id not in by_id],
        "not in the examples": [name for name in counts if name not in known],
    }
    texts = [f"{len(names)} ids are {kind}: {name_some(names)}" for kind, names in faults.items() if names]
    if texts:
        raise ValueError(f"{len(predictions)} predictions do not match {len(examples)} examples: {'; '.join(texts)}.")
    return [by_id[example.id] for example in examples]


def candidate_scores(example: Example, prediction: Prediction) -> tuple[float, ...]:
    """Return the scores of a prediction, one for each candidate.

    Raises:
        ValueError: If scores are missing, their number is wrong, or one is not a number.
    """
    scores, wanted = prediction.scores, len(example.candidates)
    if scores is None or len(scores) != wanted:
        count = "no" if scores is None else str(len(scores))
        raise ValueError(f"Prediction {example.id!r} has {count} scores for {wanted} candidates.")
    if any(math.isnan(score) for score in scores):
        raise ValueError(f"Prediction {example.id!r} has a score that is not a number.")
    return scores


def score_measures(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    judge: Callable[[Example, Prediction], Mapping[str, float]],
) -> Scores:
    """Compute metrics that are means over examples, overall and by group.

    Args:
        examples: At least one example.
        predictions: Predictions for the examples, in any order.
        judge: Function that maps an example and its prediction to measures by name. The first one ranks examples.
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
