"""Converts the training arguments of a recipe from YAML to the types that `Seq2SeqTrainingArguments` expects."""

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
"""The choices of string arguments."""

ALSO = {"fsdp": (bool,)}
"""Types that an argument accepts besides its annotation."""


def read_arguments(arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert the values of training arguments, and check choices.

    Args:
        arguments: values by name; each name must be a training argument.
        where: the start of error messages.

    Raises:
        ValueError: if a value is invalid; the message names the argument, the value and what is expected.
    """
    hints = get_type_hints(Seq2SeqTrainingArguments)
    return {name: _read_argument(name, value, hints[name], f"{where}: {name}") for name, value in arguments.items()}


def _read_argument(name: str, value: Any, hint: Any, where: str) -> Any:
    kinds = (*(get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)), *ALSO.get(name, ()))
    choices = [str(member.value) for kind in kinds for member in _members(kind)] or list(CHOICES.get(name, ()))
    if choices:
        if value in choices or any(fits(kind, value) for kind in kinds if kind is not str):
            return value
        close = get_close_matches(str(value), choices, 1)
        hint_of = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{where} is {value!r}, but must be one of {', '.join(choices)}.{hint_of}")
    known = [kind for kind in kinds if _is_yaml_type(kind)]
    for kind in known:
        if fits(kind, value):
            return value if type(value) is int else fitting(kind, value)
    if not known:
        return value
    raise ValueError(f"{where} is {value!r}, but must be {' or '.join(map(describe, known))}.")


def _members(kind: Any) -> list[Enum]:
    return list(kind) if isinstance(kind, type) and issubclass(kind, Enum) else []


def _is_yaml_type(kind: Any) -> bool:
    return kind in (str, int, float, bool, dict, list, type(None)) or get_origin(kind) in (list, dict)


__all__ = ["read_arguments"]
