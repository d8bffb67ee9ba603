"""Check whether answers depend on the other examples in a batch, by answering one by one and in batches in float32."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..inference import Lion
from .answering import Fields, answer_batch
from .batches import plan_batches
from .settings import EvaluationSettings
from .task import Example

TOLERANCE = 1e-3
"""Tolerance for the log-likelihood of a candidate, which accumulates the rounding of all its tokens."""


@dataclass(frozen=True)
class Difference:
    """An example whose answer depends on its batch.

    Attributes:
        id: Id of the example.
        alone: Answer when processed alone, with the scores of candidates.
        batched: Answer when processed in a batch, with the scores of candidates.
    """

    id: str
    alone: str
    batched: str


@dataclass(frozen=True)
class BatchingCheck:
    """Result of the check.

    Attributes:
        num_examples: Number of examples that were answered both ways.
        differences: Examples whose answers differ.
    """

    num_examples: int
    differences: tuple[Difference, ...]

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        rows = [{"id": row.id, "alone": row.alone, "batched": row.batched} for row in self.differences]
        return {"examples": self.num_examples, "differ": len(rows), "differences": rows}


def check_batching(lion: Lion, examples: Sequence[Example], settings: EvaluationSettings) -> BatchingCheck:
    """Answer examples in batches, as the evaluation does, and one by one. Sampling is disabled.

    Args:
        lion: Model in float32.
        examples: Examples, of which `settings.check_batching` are chosen at equal distances.
        settings: Settings of the evaluation.
    """
    chosen = _take_evenly(examples, settings.check_batching)
    options = {} if all(example.candidates for example in chosen) else {"do_sample": False}
    batched: dict[str, Fields] = {}
    for batch in plan_batches(chosen, settings.batch_size):
        batched.update(answer_batch(lion, batch, settings, **options))
    differences = []
    for example in chosen:
        alone, together = answer_batch(lion, [example], settings, **options)[example.id], batched[example.id]
        if not _is_same(alone, together):
            differences.append(Difference(example.id, show(alone), show(together)))
    return BatchingCheck(len(chosen), tuple(differences))


def _take_evenly(examples: Sequence[Example], count: int) -> list[Example]:
    """Choose up to `count` examples, spread evenly over the data."""
    count = min(count, len(examples))
    return [examples[place * len(examples) // count] for place in range(count)]


def _is_same(first: Fields, second: Fields) -> bool:
    """Whether two predictions have the same text, and scores that differ only by rounding."""
    pairs = zip(first.get("scores", ()), second.get("scores", ()), strict=True)
    return first["answer"] == second["answer"] and all(a == b or abs(a - b) <= TOLERANCE for a, b in pairs)


def show(fields: Fields) -> str:
    """Format a prediction for a message."""
    return f"{fields['answer']} {json.dumps(fields['scores'])}" if "scores" in fields else fields["answer"]


__all__ = ["BatchingCheck", "Difference", "check_batching"]
