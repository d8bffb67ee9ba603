"""Tokenizes user text without special tokens.

SentencePiece never matches its control symbols in text. The tokenizers library does, even with
`split_special_tokens=True`, because they are regular entries of its vocabulary. Therefore text is tokenized with a copy
of the tokenizer in which they cannot match.
"""

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


def without_special_tokens(tokenizer: PreTrainedTokenizerBase, keep_added: bool = False) -> Tokenizer:
    """Copy the backend of a tokenizer, with the same ids, so that it neither matches nor adds special tokens.

    Args:
        tokenizer: Tokenizer to copy.
        keep_added: Whether to match special tokens that were added to the vocabulary, unless they have a role, such as
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
    if isinstance(vocabulary, list):  # Unigram: ids are positions, so special pieces are renamed instead of removed
        state["model"]["vocab"] = [
            [f"{piece} {index}" if piece in special else piece, score]
            for index, (piece, score) in enumerate(vocabulary)
        ]
    return Tokenizer.from_str(json.dumps(state))


class PlainTextTokenizer:
    """Tokenizes text with a copy of a tokenizer that has no special tokens. It is thread-safe.

    Args:
        tokenizer: Tokenizer to copy. The copy is updated when tokens are added to it.
        keep_added: See `without_special_tokens`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, keep_added: bool = False):
        self._tokenizer = tokenizer
        self._keep_added = keep_added
        self._copy: tuple[int, Tokenizer] | None = None

    def __call__(self, text: str) -> list[int]:
        """Return the ids of `text`, without adding special tokens."""
        copy, size = self._copy, len(self._tokenizer)
        if copy is None or copy[0] != size:  # tokens have been added
            copy = self._copy = (size, without_special_tokens(self._tokenizer, self._keep_added))
        return copy[1].encode(text, add_special_tokens=False).ids
