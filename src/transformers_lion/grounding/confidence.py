"""Scores for boxes, computed from the probabilities of the tokens that wrote their numbers.

The score of a box is the geometric mean of the probabilities of its tokens that contain digits. Commas and brackets do
not count, because the model is always sure of them. `benchmarks/calibration.md` measures how well the score separates
right boxes from wrong ones.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from .formats import read_grounded_text

SPACE_MARKS = "\u2581\u0120\u010a"
"""Characters that represent a space or a line break in tokens of SentencePiece and byte-level BPE."""

WINDOW = 64
"""Number of characters to search for a token after one that does not appear verbatim in the text."""


def token_spans(text: str, tokens: Sequence[str | None]) -> list[tuple[int, int]]:
    """Find the span of each token in the decoded text.

    Spaces are ignored, because decoding adds and removes them. A token that does not appear in the text, such as the
    end-of-sequence token or one that was decoded to other characters, gets an empty span.

    Args:
        text: Text decoded from all tokens, with or without special tokens.
        tokens: Tokens as returned by `tokenizer.convert_ids_to_tokens`. `None` for ids that the tokenizer does not
            know.

    Returns:
        The (start, end) span of each token.
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
    box_format: str = "lion",
    image_size: tuple[int, int] | None = None,
) -> list[float]:
    """Compute a score for each box in a text.

    Args:
        text: Text decoded from the tokens.
        tokens: Tokens as returned by `tokenizer.convert_ids_to_tokens`, including special tokens and `None`.
        log_probs: Natural log-probabilities of the tokens, for example a row of `token_log_probs`.
        box_format: Box format, one of `BOX_FORMATS`.
        image_size: See `read_grounded_text`.

    Returns:
        Scores from 0 to 1, in the order of `read_grounded_text(text, box_format).boxes`. A score is `nan` if no token
        is
        known to have written the box.

    Raises:
        ValueError: If the number of log-probabilities differs from the number of tokens.
    """
    if len(tokens) != len(log_probs):
        raise ValueError(f"{len(log_probs)} log_probs for {len(tokens)} tokens.")
    spans = token_spans(text, tokens)
    ends = [end for _, end in spans]
    scores = []
    for found in read_grounded_text(text, box_format, image_size).boxes:
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
    """Compute the log-probabilities of generated tokens before generation applies any penalty.

    Args:
        model: Model that has transformers' `compute_transition_scores`.
        generated: Output of `model.generate(..., return_dict_in_generate=True, output_logits=True)`, from greedy
            decoding, sampling or beam search.

    Returns:
        Tensor of shape (B, S), for the last S tokens of each sequence. Padding after a finished beam is 0.

    Raises:
        ValueError: If `generated` has no logits.
    """
    if getattr(generated, "logits", None) is None:
        raise ValueError("Scores need logits: call generate(..., return_dict_in_generate=True, output_logits=True).")
    beam_indices = getattr(generated, "beam_indices", None)
    return model.compute_transition_scores(generated.sequences, generated.logits, beam_indices, normalize_logits=True)


__all__ = ["score_boxes", "token_log_probs", "token_spans"]
