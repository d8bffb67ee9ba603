"""Values as YAML has them, and the kinds that they are to be: whether they fit, and what to say if not."""

import math
import re
from typing import Any, Literal, get_args, get_origin


def fits(kind: Any, value: Any) -> bool:
    """Whether `value` is a `kind`; a text that says a number is a float, and 1e3 is a whole number too."""
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
    """A value that fits a kind, as the kind."""
    return kind(value) if kind in (int, float) else value


def _is_number(value: Any) -> bool:
    """Whether `value` is a finite number, or a text that says one."""
    if isinstance(value, str):
        return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value) is not None
    return type(value) in (int, float) and math.isfinite(value)


def describe(kind: Any) -> str:
    """A kind in an error message."""
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is list:
        return f"a list of {describe(get_args(kind)[0]).removeprefix('a ')}s"
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return names.get(kind, "keys with values")


__all__ = ["describe", "fits", "fitting"]
