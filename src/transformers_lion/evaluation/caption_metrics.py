"""CIDEr-D, BLEU and ROUGE-L of words, as COCO's caption evaluation computes them.

Source: CIDEr (arXiv:1411.5726, section 3 and the "D" of 4), BLEU (Papineni et al., 2002) and ROUGE-L (Lin, 2004), in
the variants of pycocoevalcap 1.2, to whose figures these are equal for equal words. It is no dependency because it
brings 100 MB of Java programs, and because no other package has all three.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Words = Sequence[str]
Grams = Counter[tuple[str, ...]]
"""How often each n-gram occurs, of all lengths together."""

MAX_LENGTH = 4
"""Of n-grams."""

CIDER_SIGMA = 6.0
"""By so many words may a caption be longer or shorter before that costs much."""
CIDER_SCALE = 10.0

ROUGE_BETA = 1.2
"""How much more recall counts than precision."""


def _count_grams(words: Words) -> Grams:
    """The n-grams of up to `MAX_LENGTH` words."""
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, MAX_LENGTH + 1)
        for start in range(len(words) - length + 1)
    )


@dataclass(frozen=True)
class _Vector:
    """A caption as weights of its n-grams.

    Attributes:
        weights: for each length of n-grams.
        norms: of those.
        size: how many pairs of words the caption has.
    """

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    size: int


def compute_cider(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption, 0 to 10. The weights of n-grams come from these references alone.

    Args:
        answers: one for each image.
        references: one or more for each image.
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
    """The mean over the lengths of n-grams of two captions' cosine, with weights clipped to the reference's."""
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
    """BLEU-1 to BLEU-4 of all captions together, 0 to 1; the length that is wanted is that of the closest reference."""
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
    """ROUGE-L of a caption, 0 to 1, from the best precision and the best recall of all references."""
    shared = [_count_common(answer, reference) for reference in references]
    precision = max(shared) / max(len(answer), 1)
    recall = max(common / max(len(reference), 1) for common, reference in zip(shared, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _count_common(first: Words, second: Words) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]


__all__ = ["compute_bleu", "compute_cider", "compute_rouge"]
