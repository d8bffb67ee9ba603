"""Names that differ between the supported versions of transformers.

The most important one is that of the cache. Since 5.24, arguments and outputs of models and of `generate` are named
`cache`; before, they were named `past_key_values`. Functions with `**kwargs` silently ignore an unknown name, so code
that calls transformers uses `CACHE_NAME` instead of either name.
"""

from dataclasses import fields
from typing import Any

from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import Seq2SeqLMOutput

CACHE_NAMES = ("past_key_values", "cache")
"""Old and new name of the cache."""

CACHE_NAME = next(field.name for field in fields(Seq2SeqLMOutput) if field.name in CACHE_NAMES)
"""Name of the cache in the installed version of transformers."""


def resolve_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """Return the cache that was passed under either name.

    Raises:
        ValueError: If a cache was passed under both names.
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("Pass only one of past_key_values and cache: they are names for the same argument.")
    return past_key_values if cache is None else cache


def rename_cache(arguments: dict[str, Any]) -> dict[str, Any]:
    """Rename the cache in `arguments`, if there is one, to the name in the installed version of transformers.

    Raises:
        ValueError: If a cache was passed under both names.
    """
    rest = {name: value for name, value in arguments.items() if name not in CACHE_NAMES}
    cache = resolve_cache(arguments.get("past_key_values"), arguments.get("cache"))
    return rest if cache is None else {**rest, CACHE_NAME: cache}


def get_cache(holder: Any) -> Cache | None:
    """Return the cache in the arguments or the output of a model."""
    return holder.get(CACHE_NAME) if isinstance(holder, dict) else getattr(holder, CACHE_NAME)


def enable_activation_checkpointing(model: PreTrainedModel, use_reentrant: bool = False) -> None:
    """Enable gradient checkpointing, which transformers renamed to activation checkpointing in 5.20."""
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    getattr(model, new if hasattr(model, new) else old)({"use_reentrant": use_reentrant})


__all__ = [
    "CACHE_NAME",
    "CACHE_NAMES",
    "enable_activation_checkpointing",
    "get_cache",
    "rename_cache",
    "resolve_cache",
]
