"""Tokens of text that somebody else wrote: special tokens in it are plain text.

SentencePiece never reads its control symbols from text. The tokenizers library does, since they stand in its vocabulary
like any other piece, and `split_special_tokens=True` does not keep it from that. So text is read by a copy of the
tokenizer in which they cannot be matched.
"""

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


def without_special_tokens(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's backend, with the same ids, that finds no special token in text and adds none."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["special"]]
    state["post_processor"] = state["truncation"] = state["padding"] = None
    vocabulary = state["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: a piece's position is its id, so it is renamed to what no text matches
        state["model"]["vocab"] = [
            [f"{piece} {index}" if piece in special else piece, score]
            for index, (piece, score) in enumerate(vocabulary)
        ]
    return Tokenizer.from_str(json.dumps(state))


class PlainTextTokenizer:
    """Reads text with a copy of a tokenizer that knows no special tokens; safe to share between threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._copy: tuple[int, Tokenizer] | None = None

    def __call__(self, text: str) -> list[int]:
        """The ids of `text`, with nothing added."""
        copy, size = self._copy, len(self._tokenizer)
        if copy is None or copy[0] != size:  # tokens were added since
            copy = self._copy = (size, without_special_tokens(self._tokenizer))
        return copy[1].encode(text, add_special_tokens=False).ids
