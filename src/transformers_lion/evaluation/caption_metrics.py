"""Compute CIDEr-D, BLEU and ROUGE-L from words, like COCO's caption evaluation.

Sources: CIDEr (arXiv:1411.5726, section 3 and the "D" of section 4), BLEU (Papineni et al., 2002) and ROUGE-L (Lin,
2004), in the variants of pycocoevalcap 1.2. The metrics are identical to those of pycocoevalcap for the same words. It
is not a dependency because it includes 100 MB of Java programs, and no other package has all three metrics.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Words = Sequence[str]
Grams = Counter[tuple[str, ...]]
"""Counts of n-grams of all lengths."""

MAX_LENGTH = 4
"""Maximum length of n-grams."""

CIDER_SIGMA = 6.0
"""Standard deviation of the Gaussian penalty on differences in length."""
CIDER_SCALE = 10.0

ROUGE_BETA = 1.2
"""Weight of recall relative to precision."""


def _count_grams(words: Words) -> Grams:
    """Count the n-grams of up to `MAX_LENGTH` words."""
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, MAX_LENGTH + 1)
        for start in range(len(words) - length + 1)
    )


@dataclass(frozen=True)
class _Vector:
    """A caption as weights of its n-grams.

    Attributes:
        weights: Weights for each length of n-grams.
        norms: Norm of the weights for each length.
        size: Number of bigrams in the caption.
    """

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    size: int


def compute_cider(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Compute CIDEr-D of each caption, from 0 to 10. The n-gram weights are derived from these references alone.

    Args:
        answers: One caption for each image.
        references: One or more captions for each image.
    """
    grams = [[_count_grams(words) for words in group] for group in references]
    frequencies: Grams = Counter()
    for group in grams:
        frequencies.update({gram for counts in group for gram in counts})
    log_images = math.log(len(answers)) if answers else 0.0

    def weigh(counts: Grams) -> _Vector:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_LENGTH)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (log_images - math.log(max(1, frequencies[gram])))
        norms = [math.sqrt(math.fsum(value * value for value in part.values())) for part in weights]
        return _Vector(weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2))

    return [
        CIDER_SCALE * math.fsum(compare(weigh(_count_grams(words)), weigh(counts)) for counts in group) / len(group)
        for words, group in zip(answers, grams, strict=True)
    ]


def compare(answer: _Vector, reference: _Vector) -> float:
    """Average the cosine similarity over n-gram lengths, with weights clipped to those of the reference."""
    cosines = []
    for length in range(MAX_LENGTH):
        wanted = reference.weights[length]
        shared = math.fsum(
            min(weight, wanted[gram]) * wanted[gram]
            for gram, weight in answer.weights[length].items()
            if gram in wanted
        )
        norm = answer.norms[length] * reference.norms[length]
        cosines.append(shared / norm if norm else shared)
    distance = answer.size - reference.size
    return math.fsum(cosines) / MAX_LENGTH * math.exp(-(distance**2) / (2 * CIDER_SIGMA**2))


def compute_bleu(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Compute BLEU-1 to BLEU-4 of the whole corpus, from 0 to 1. The target length is that of the closest reference."""
    found, right = [0] * MAX_LENGTH, [0] * MAX_LENGTH
    length = wanted = 0
    for words, group in zip(answers, references, strict=True):
        length += len(words)
        wanted += min((abs(len(reference) - len(words)), len(reference)) for reference in group)[1]
        most: Grams = Counter()
        for reference in group:
            most |= _count_grams(reference)
        for gram, count in _count_grams(words).items():
            found[len(gram) - 1] += count
            right[len(gram) - 1] += min(count, most[gram])
    brevity = 1.0 if length >= wanted else math.exp(1 - wanted / length) if length else 0.0
    precisions = [hits / total if total else 0.0 for hits, total in zip(right, found, strict=True)]
    return [brevity * math.prod(precisions[:most]) ** (1 / most) for most in range(1, MAX_LENGTH + 1)]


def compute_rouge(answer: Words, references: Sequence[Words]) -> float:
    """Compute ROUGE-L of a caption, from 0 to 1, with the best precision and the best recall over all references."""
    shared = [_count_common(answer, reference) for reference in references]
    precision = max(shared) / max(len(answer), 1)
    recall = max(common / max(len(reference), 1) for common, reference in zip(shared, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _count_common(first: Words, second: Words) -> int:
    """Compute the length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]


__all__ = ["compute_bleu", "compute_cider", "compute_rouge"]
