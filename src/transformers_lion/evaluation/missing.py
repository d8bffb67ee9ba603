"""Wrong predictions for examples without an answer, for example if an image is damaged.

An empty text is not wrong for all tasks: POPE's official script reads it as "yes".
"""

import math

from .task import Example, Prediction

OPPOSITES = {"yes": "no", "no": "yes"}


def wrong_prediction(example: Example) -> Prediction:
    """Create the worst prediction for an example: no text, "no" for "yes", or the right candidate ranked last."""
    if example.candidates:
        return Prediction(example.id, "", _worst_scores(example))
    return Prediction(example.id, OPPOSITES.get(str(example.references), ""))


def _worst_scores(example: Example) -> tuple[float, ...]:
    """Return scores that rank candidates from the least relevant to the right one."""
    right, relevance = right_candidate(example), [0.0] * len(example.candidates)
    if isinstance(example.references, dict) and example.references.get("relevance"):
        relevance = list(example.references["relevance"])
    return tuple(-math.inf if place == right else -value for place, value in enumerate(relevance))


def right_candidate(example: Example) -> int:
    """Return the index of the right candidate, which is the reference or its `gt_index`."""
    references = example.references
    return int(references["gt_index"] if isinstance(references, dict) else references)


__all__ = ["right_candidate", "wrong_prediction"]
