"""Values of the Trainer's own arguments in a recipe: YAML -> what `Seq2SeqTrainingArguments` takes, or a sentence."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import Seq2SeqTrainingArguments

from .values import describe, fits, fitting

CHOICES = {
    entry.name: tuple(entry.metadata["choices"])
    for entry in fields(Seq2SeqTrainingArguments)
    if entry.metadata.get("choices")
}
"""The choices of arguments that are plain texts."""

ALSO = {"fsdp": (bool,)}
"""Kinds that an argument takes besides those that it is annotated with."""


def read_arguments(arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments with their values as the Trainer takes them: numbers as numbers, choices as they are spelt.

    Args:
        arguments: by name; each name is one of the Trainer's.
        where: for errors.

    Raises:
        ValueError: if a value is none of its argument's; with its name, the value and what is wanted.
    """
    hints = get_type_hints(Seq2SeqTrainingArguments)
    return {name: _read_argument(name, value, hints[name], f"{where}: {name}") for name, value in arguments.items()}


def _read_argument(name: str, value: Any, hint: Any, where: str) -> Any:
    kinds = (*(get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)), *ALSO.get(name, ()))
    choices = [str(member.value) for kind in kinds for member in members(kind)] or list(CHOICES.get(name, ()))
    if choices:
        if value in choices or any(fits(kind, value) for kind in kinds if kind is not str):
            return value
        close = get_close_matches(str(value), choices, 1)
        hint_of = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{where} is {value!r}, but must be one of {', '.join(choices)}.{hint_of}")
    known = [kind for kind in kinds if is_known(kind)]
    for kind in known:
        if fits(kind, value):
            return value if type(value) is int else fitting(kind, value)
    if not known:
        return value
    raise ValueError(f"{where} is {value!r}, but must be {' or '.join(map(describe, known))}.")


def members(kind: Any) -> list[Enum]:
    """The members of an enumeration; none of another kind."""
    return list(kind) if isinstance(kind, type) and issubclass(kind, Enum) else []


def is_known(kind: Any) -> bool:
    """Whether a kind is one that YAML has."""
    return kind in (str, int, float, bool, dict, list, type(None)) or get_origin(kind) in (list, dict)


__all__ = ["read_arguments"]
