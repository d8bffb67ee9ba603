"""What stands for an answer that could not be made, as where an image is damaged: one that is wrong.

An empty text will not do for all tasks: POPE's official script takes it for "yes".
"""

import math

from .task import Example, Prediction

OPPOSITES = {"yes": "no", "no": "yes"}


def wrong_prediction(example: Example) -> Prediction:
    """The worst prediction for an example: no box and no words, "no" for "yes", or the right candidate last."""
    if example.candidates:
        return Prediction(example.id, "", _worst_scores(example))
    return Prediction(example.id, OPPOSITES.get(str(example.references), ""))


def _worst_scores(example: Example) -> tuple[float, ...]:
    """Scores that rank candidates from the least relevant to the right one."""
    right, relevance = right_candidate(example), [0.0] * len(example.candidates)
    if isinstance(example.references, dict) and example.references.get("relevance"):
        relevance = list(example.references["relevance"])
    return tuple(-math.inf if place == right else -value for place, value in enumerate(relevance))


def right_candidate(example: Example) -> int:
    """The place of the right candidate, which is the reference or stands in it as `gt_index`."""
    references = example.references
    return int(references["gt_index"] if isinstance(references, dict) else references)


__all__ = ["right_candidate", "wrong_prediction"]
