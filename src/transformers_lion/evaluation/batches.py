"""Which examples go through the model together: those of one image, and those whose questions are about as long.

The plan depends on the examples and the batch size alone. So a run that was killed, or that is shared by several
processes, has the same batches as any other, and the same answers to the last bit.
"""

from collections.abc import Sequence

from .task import Example

Batch = list[Example]

WINDOW = 64
"""Batches within which images are put in the order of their longest question."""
NUM_OPEN = 4
"""Batches that are filled up side by side, since an image's questions are not torn apart."""


def plan_batches(examples: Sequence[Example], batch_size: int) -> list[Batch]:
    """All examples in batches of up to `batch_size`, and more only where an image has more questions than that.

    Raises:
        ValueError: if the batch size is not above 0.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}, but must be at least 1.")
    images: dict[str, Batch] = {}
    for example in examples:
        images.setdefault(example.image, []).append(example)
    groups = [sorted(group, key=question_length) for group in images.values()]
    batches: list[Batch] = []
    window: list[Batch] = []
    for group in groups:
        window.append(group)
        if sum(map(len, window)) >= WINDOW * batch_size:
            batches += pack(window, batch_size)
            window = []
    return batches + pack(window, batch_size)


def pack(groups: Sequence[Batch], batch_size: int) -> list[Batch]:
    """The groups of a window, each whole in one of the batches."""
    batches: list[Batch] = []
    for group in sorted(groups, key=lambda group: question_length(group[-1])):
        roomy = (batch for batch in batches[-NUM_OPEN:] if len(batch) + len(group) <= batch_size)
        batch = next(roomy, None)
        if batch is None:
            batches.append(list(group))
        else:
            batch += group
    return batches


def question_length(example: Example) -> int:
    """Letters of the question, of the candidates' longest one where there are some."""
    return len(example.question) + max(map(len, example.candidates), default=0)


__all__ = ["Batch", "plan_batches"]
