"""Group examples into batches: questions about the same image together, and questions of similar length.

The batches depend only on the examples and the batch size. A run that was interrupted, or that is split across several
processes, therefore has the same batches as any other run and gives bitwise identical answers.
"""

from collections.abc import Sequence

from .task import Example

Batch = list[Example]

WINDOW = 64
"""Number of batches within which images are sorted by their longest question."""
NUM_OPEN = 4
"""Number of batches that are filled at the same time, since the questions about an image stay together."""


def plan_batches(examples: Sequence[Example], batch_size: int) -> list[Batch]:
    """Split examples into batches of up to `batch_size`. A batch is larger only if an image has more questions than
    that.

    Raises:
        ValueError: If the batch size is not positive.
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
    """Split the groups of a window into batches, keeping each group in one batch."""
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
    """Return the number of characters of the question plus those of the longest candidate, if there are candidates."""
    return len(example.question) + max(map(len, example.candidates), default=0)


__all__ = ["Batch", "plan_batches"]
