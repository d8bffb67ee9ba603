"""Tokens of text that somebody else wrote: special tokens in it are plain text.

SentencePiece never reads its control symbols from text. The tokenizers library does, since they stand in its vocabulary
like any other piece, and `split_special_tokens=True` does not keep it from that. So text is read by a copy of the
tokenizer in which they cannot be matched.
"""

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


def without_special_tokens(tokenizer: PreTrainedTokenizerBase, keep_added: bool = False) -> Tokenizer:
    """A copy of the tokenizer's backend, with the same ids, that finds no special token in text and adds none.

    Args:
        tokenizer: to be copied.
        keep_added: let text hold special tokens that were added to the vocabulary, unless they have a role, such as
            the end token.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    known = {entry[0] for entry in vocabulary} if isinstance(vocabulary, list) else set(vocabulary)
    roles = set(tokenizer.special_tokens_map.values())
    kept = [
        token
        for token in state["added_tokens"]
        if not token["special"] or (keep_added and token["content"] not in known | roles)
    ]
    special = {token["content"] for token in state["added_tokens"] if token not in kept}
    state["added_tokens"] = kept
    state["post_processor"] = state["truncation"] = state["padding"] = None
    if isinstance(vocabulary, list):  # Unigram: a piece's position is its id, so it is renamed to what no text matches
        state["model"]["vocab"] = [
            [f"{piece} {index}" if piece in special else piece, score]
            for index, (piece, score) in enumerate(vocabulary)
        ]
    return Tokenizer.from_str(json.dumps(state))


class PlainTextTokenizer:
    """Reads text with a copy of a tokenizer that knows no special tokens; safe to share between threads.

    Args:
        tokenizer: to be copied, again whenever tokens were added to it.
        keep_added: see `without_special_tokens`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keep_added: bool = False):
        self._tokenizer = tokenizer
        self._keep_added = keep_added
        self._copy: tuple[int, Tokenizer] | None = None

    def __call__(self, text: str) -> list[int]:
        """The ids of `text`, with nothing added."""
        copy, size = self._copy, len(self._tokenizer)
        if copy is None or copy[0] != size:  # tokens were added since
            copy = self._copy = (size, without_special_tokens(self._tokenizer, self._keep_added))
        return copy[1].encode(text, add_special_tokens=False).ids
