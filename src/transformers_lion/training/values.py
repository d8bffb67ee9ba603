"""Checks and converts values from YAML to the types of settings."""

import math
import re
from typing import Any, Literal, get_args, get_origin


def fits(kind: Any, value: Any) -> bool:
    """Whether `value` fits the type `kind`; numeric strings count as floats, and integral floats as ints."""
    if kind in (None, type(None)):
        return value is None
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(get_args(kind)[0], entry) for entry in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if kind is float:
        return _is_number(value)
    if kind is int and type(value) is float:
        return value.is_integer()
    return type(value) is kind


def fitting(kind: Any, value: Any) -> Any:
    """Convert a value that fits `kind` to it."""
    return kind(value) if kind in (int, float) else value


def _is_number(value: Any) -> bool:
    """Whether `value` is a finite number or a numeric string."""
    if isinstance(value, str):
        return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value) is not None
    return type(value) in (int, float) and math.isfinite(value)


def describe(kind: Any) -> str:
    """Describe a type for an error message."""
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is list:
        return f"a list of {describe(get_args(kind)[0]).removeprefix('a ')}s"
    names = {str: "a string", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
    return names.get(kind, "a mapping")


__all__ = ["describe", "fits", "fitting"]
