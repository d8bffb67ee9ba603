"""The names that differ between the supported releases of transformers.

The important one is that of the cache. From 5.24 on, the arguments and outputs of models and of `generate` call it
`cache`; before, they called it `past_key_values`. A name that a release does not know is dropped without an error by
everything that takes `**kwargs`, so nothing that is handed to transformers writes either of them down: it reads
`CACHE_NAME`.
"""

from dataclasses import fields
from typing import Any

from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import Seq2SeqLMOutput

CACHE_NAMES = ("past_key_values", "cache")
"""What the cache was and is called, in the order of the releases."""

CACHE_NAME = next(field.name for field in fields(Seq2SeqLMOutput) if field.name in CACHE_NAMES)
"""What the installed transformers calls it."""


def one_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """The cache that was given under either name.

    Raises:
        ValueError: if both names hold one.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("Give the cache once: past_key_values and cache are two names of the same argument.")
    return past_key_values if cache is None else cache


def with_cache_name(arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` with a cache, if there is one, under the name that the installed transformers knows.

    Raises:
        ValueError: if both names hold one.
    """
    rest = {name: value for name, value in arguments.items() if name not in CACHE_NAMES}
    cache = one_cache(arguments.get("past_key_values"), arguments.get("cache"))
    return rest if cache is None else {**rest, CACHE_NAME: cache}


def cache_of(holder: Any) -> Cache | None:
    """The cache in the arguments or the output of a model."""
    return holder.get(CACHE_NAME) if isinstance(holder, dict) else getattr(holder, CACHE_NAME)


def enable_activation_checkpointing(model: PreTrainedModel, use_reentrant: bool = False) -> None:
    """Compute activations again for the gradients instead of keeping them; transformers calls it so from 5.20 on."""
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    getattr(model, new if hasattr(model, new) else old)({"use_reentrant": use_reentrant})


__all__ = [
    "CACHE_NAME",
    "CACHE_NAMES",
    "cache_of",
    "enable_activation_checkpointing",
    "one_cache",
    "with_cache_name",
]
