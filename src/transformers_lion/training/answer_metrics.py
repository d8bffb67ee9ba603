"""Metrics of generated answers during training: exact match, and accuracy of boxes at IoU 0.5.

Source: LION (arXiv:2311.11860), section 4.1: a box is correct if its IoU with the labeled box is 0.5 or more.

Shape letters: N answers, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import EvalPrediction

from ..grounding import box_iou, extract_boxes
from ..processing_lion import LionProcessor

IGNORED = -100
"""The padding value of labels and of token ids that the Trainer gathers."""


@dataclass(frozen=True)
class AnswerMetrics:
    """`compute_metrics` for the stock `Seq2SeqTrainer` with `predict_with_generate=True`.

    Returns `exact_match` and, if labels have boxes, `iou_accuracy`: the fraction of labeled boxes for which the box at
    the same position in the answer has an IoU of at least `threshold`.

    Attributes:
        processor: the processor that decodes token ids.
        num_samples: number of questions in the evaluation set. With several processes, the last batch is padded by
            repeating the first samples; these rows are dropped. By default, all rows count.
        threshold: the IoU threshold.
    """

    processor: LionProcessor
    num_samples: int | None = None
    threshold: float = 0.5

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute the metrics of `predictions` (N, L) and `label_ids` (N, L').

        Raises:
            ValueError: if the predictions are not token ids, or there are fewer rows than samples.
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
        """Decode `num_samples` rows of token ids, without padding."""
        if not isinstance(ids, np.ndarray) or ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            kind = f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else type(ids).__name__
            raise ValueError(f"AnswerMetrics needs generated ids (predict_with_generate=True), but got {kind}.")
        if self.num_samples is not None and len(ids) < self.num_samples:
            raise ValueError(f"There are {len(ids)} answers for num_samples={self.num_samples}.")
        tokenizer = self.processor.tokenizer
        rows = np.where(ids == IGNORED, tokenizer.pad_token_id, ids)[: self.num_samples]
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def _box_hits(answer: str, label: str, threshold: float) -> list[bool]:
    """For each box of a label, whether the answer's box at the same position has an IoU of at least `threshold`."""
    found = extract_boxes(answer)
    return [
        index < len(found) and box_iou(found[index], box) >= threshold for index, box in enumerate(extract_boxes(label))
    ]


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


__all__ = ["AnswerMetrics"]
