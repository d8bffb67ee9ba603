"""Figures of generated answers while training: exact match of all, and the boxes at IoU 0.5.

Source: LION (arXiv:2311.11860), section 4.1: a box counts as right if its IoU with the labelled one is 0.5 or more.

Shape letters: N answers, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import EvalPrediction

from ..grounding import box_iou, extract_boxes
from ..processing_lion import LionProcessor

IGNORED = -100
"""What labels, and the Trainer's batches of ids, are padded with."""


@dataclass(frozen=True)
class AnswerMetrics:
    """`compute_metrics` for the stock `Seq2SeqTrainer` with `predict_with_generate=True`.

    It gives `exact_match`, and, where labels have boxes, `iou_accuracy`: the share of labelled boxes that the answer
    has at the same place in its order of boxes, with an IoU of `threshold` or more.

    Attributes:
        processor: decodes the ids.
        num_samples: questions of the evaluation set. Several processes hand over more rows, the first of them again, to
            fill up their last batch; they are cut off. Left out, all rows count.
        threshold: of the IoU.
    """

    processor: LionProcessor
    num_samples: int | None = None
    threshold: float = 0.5

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Figures of `predictions` (N, L) and `label_ids` (N, L').

        Raises:
            ValueError: if predictions are no ids, or there are fewer rows than samples.
        """
        answers, labels = self.decode(prediction.predictions), self.decode(prediction.label_ids)
        metrics = {"exact_match": _mean([answer == label for answer, label in zip(answers, labels, strict=True)])}
        hits = [
            hit
            for answer, label in zip(answers, labels, strict=True)
            for hit in _box_hits(answer, label, self.threshold)
        ]
        if hits:
            metrics["iou_accuracy"] = _mean(hits)
        return metrics

    def decode(self, ids: np.ndarray) -> list[str]:
        """The texts of `num_samples` rows of ids, without padding."""
        if not isinstance(ids, np.ndarray) or ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            kind = f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else type(ids).__name__
            raise ValueError(f"AnswerMetrics reads generated ids (predict_with_generate=True), but was given {kind}.")
        if self.num_samples is not None and len(ids) < self.num_samples:
            raise ValueError(f"There are {len(ids)} answers for num_samples={self.num_samples}.")
        tokenizer = self.processor.tokenizer
        rows = np.where(ids == IGNORED, tokenizer.pad_token_id, ids)[: self.num_samples]
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def _box_hits(answer: str, label: str, threshold: float) -> list[bool]:
    """For each box of a label, whether the answer's box at its place has an IoU of `threshold` or more with it."""
    found = extract_boxes(answer)
    return [
        index < len(found) and box_iou(found[index], box) >= threshold for index, box in enumerate(extract_boxes(label))
    ]


def _mean(values: Sequence[bool]) -> float:
    """The share of true values."""
    return sum(values) / len(values)


__all__ = ["AnswerMetrics"]
