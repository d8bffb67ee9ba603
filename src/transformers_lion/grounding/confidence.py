"""A score of each box, from the probabilities of the tokens that wrote its numbers.

The score is the geometric mean of these probabilities: of the tokens with digits that stand in the box's part of the
text. Commas and brackets, which the model is always sure of, do not count. How well it tells right boxes from wrong
ones is measured in `benchmarks/calibration.md`.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from .forms import read_grounded_text

SPACE_MARKS = "\u2581\u0120\u010a"
"""What stands for a space or a line break in tokens: SentencePiece's, and those of byte-level BPE."""

WINDOW = 64
"""Characters in which a token is looked for after one that the text does not show as it is."""


def token_spans(text: str, tokens: Sequence[str | None]) -> list[tuple[int, int]]:
    """Where each token stands in the text that they were decoded to.

    Letters are followed and spaces are not, which decoding adds and removes. A token that the text does not show, such
    as the end of the sentence or one that was written in other letters, has an empty span.

    Args:
        text: decoded from all tokens, with or without special ones.
        tokens: as from `tokenizer.convert_ids_to_tokens`, `None` for ids that the tokenizer does not have.

    Returns:
        (start, end) of each.
    """
    places = [index for index, letter in enumerate(text) if not letter.isspace()]
    letters = "".join(text[place] for place in places)
    spans, done, is_lost = [], 0, False
    for token in tokens:
        shown = "".join(letter for letter in token or "" if not letter.isspace() and letter not in SPACE_MARKS)
        found = letters.find(shown, done, done + len(shown) + (WINDOW if is_lost else 0))
        if not shown or found < 0:
            edge = places[done - 1] + 1 if done else 0
            spans.append((edge, edge))
            is_lost = is_lost or bool(shown)
            continue
        done, is_lost = found + len(shown), False
        spans.append((places[found], places[done - 1] + 1))
    return spans


def score_boxes(
    text: str,
    tokens: Sequence[str | None],
    log_probs: Sequence[float],
    form: str = "lion",
    image_size: tuple[int, int] | None = None,
) -> list[float]:
    """The score of each box of a text.

    Args:
        text: as it was decoded from the tokens.
        tokens: as from `tokenizer.convert_ids_to_tokens`, special ones and `None` included.
        log_probs: natural logarithms of the tokens' probabilities, such as a row of `token_log_probs`.
        form: one of `FORMS`.
        image_size: as in `read_grounded_text`.

    Returns:
        From 0 to 1, in the order of `read_grounded_text(text, form).boxes`; `nan` where no token is known to have
        written the box.

    Raises:
        ValueError: if there are not as many log-probabilities as tokens.
    """
    if len(tokens) != len(log_probs):
        raise ValueError(f"{len(log_probs)} log_probs for {len(tokens)} tokens.")
    spans = token_spans(text, tokens)
    ends = [end for _, end in spans]
    scores = []
    for found in read_grounded_text(text, form, image_size).boxes:
        first, last = found.written
        wrote = []
        for index in range(bisect_right(ends, first), len(spans)):
            start, end = spans[index]
            if start >= last:
                break
            if any(letter.isdigit() for letter in text[max(start, first) : min(end, last)]):
                wrote.append(float(log_probs[index]))
        scores.append(math.exp(sum(wrote) / len(wrote)) if wrote else math.nan)
    return scores


def token_log_probs(model: Any, generated: Any) -> Any:
    """Log-probabilities of generated tokens, as the model itself gave them, before any penalty of the generation.

    Args:
        model: with transformers' `compute_transition_scores`.
        generated: of `model.generate(..., return_dict_in_generate=True, output_logits=True)`, greedy, sampled or by
            beams.

    Returns:
        (B, S), for the last S of each sequence's tokens; 0 for the padding behind a beam.

    Raises:
        ValueError: if `generated` has no logits.
    """
    if getattr(generated, "logits", None) is None:
        raise ValueError("Scores need generate(..., return_dict_in_generate=True, output_logits=True).")
    beam_indices = getattr(generated, "beam_indices", None)
    return model.compute_transition_scores(generated.sequences, generated.logits, beam_indices, normalize_logits=True)


__all__ = ["score_boxes", "token_log_probs", "token_spans"]
