"""Key maps as data: pairs of name templates that translate between two layouts, in both directions.

A template is a parameter name with placeholders. `{n}`, `{m}`... match a number, and `{p}` matches `weight` or `bias`.
A placeholder has the same value on both sides. A rule may reshape a tensor or join several tensors.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

PLACEHOLDER = re.compile(r"\{(\w+)\}")


class KeyMapError(ValueError):
    """A key that no rule matches, or a key that a rule needs and that is missing."""


@dataclass(frozen=True)
class Template:
    """A parameter name with placeholders."""

    text: str
    pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = PLACEHOLDER.split(self.text)  # text, name, text, name, ..., text
        regex = "".join(
            re.escape(part) if index % 2 == 0 else f"(?P<{part}>{'weight|bias' if part == 'p' else '[0-9]+'})"
            for index, part in enumerate(parts)
        )
        object.__setattr__(self, "pattern", re.compile(regex))

    def match(self, name: str) -> dict[str, str] | None:
        """Return the values of the placeholders, or `None` if `name` does not match."""
        found = self.pattern.fullmatch(name)
        return None if found is None else found.groupdict()

    def fill(self, values: dict[str, str]) -> str:
        """Return the name with the placeholders replaced by `values`."""
        return self.text.format(**values)


@dataclass(frozen=True)
class Rule:
    """One row of a key map.

    Attributes:
        originals: Templates of the original names. There are several if tensors are joined.
        converted: Template of the converted name.
        forward: Converts the original tensors. Returns its only argument by default.
        backward: Inverse of `forward`.
    """

    originals: tuple[Template, ...]
    converted: Template
    forward: Callable[..., torch.Tensor] = lambda tensor: tensor
    backward: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = lambda tensor: (tensor,)


def same(original: str, converted: str) -> Rule:
    """Create a rule that only renames a tensor."""
    return Rule((Template(original),), Template(converted))


@dataclass(frozen=True)
class Entry:
    """A rule applied to concrete names: one parameter in both layouts."""

    rule: Rule
    originals: tuple[str, ...]
    converted: str


class KeyMap:
    """Applies rules to concrete names.

    Args:
        rules: Rows of the key map. A name may match only one of them.
    """

    def __init__(self, rules: Iterable[Rule]):
        self.rules = tuple(rules)

    def from_originals(self, names: Iterable[str]) -> list[Entry]:
        """Find the entries for original names.

        Raises:
            KeyMapError: If a name matches no rule, or a name that is joined with others is missing. The message lists
                them.
        """
        names = list(names)
        entries = dict.fromkeys(self._entry(name, originals=True) for name in names)
        missing = sorted({key for entry in entries if entry for key in entry.originals} - set(names))
        self._refuse(names, originals=True, missing=missing)
        return [entry for entry in entries if entry]

    def from_converted(self, names: Iterable[str]) -> list[Entry]:
        """Find the entries for converted names.

        Raises:
            KeyMapError: If a name matches no rule. The message lists them.
        """
        names = list(names)
        self._refuse(names, originals=False, missing=[])
        return [entry for entry in (self._entry(name, originals=False) for name in names) if entry]

    def _refuse(self, names: list[str], originals: bool, missing: list[str]) -> None:
        unknown = sorted(name for name in names if self._entry(name, originals) is None)
        if unknown:
            raise KeyMapError(f"{len(unknown)} unexpected keys: {enumerated(unknown)}")
        if missing:
            raise KeyMapError(f"{len(missing)} keys are missing: {enumerated(missing)}")

    def _entry(self, name: str, originals: bool) -> Entry | None:
        for rule in self.rules:
            for template in rule.originals if originals else (rule.converted,):
                values = template.match(name)
                if values is not None:
                    return Entry(rule, tuple(key.fill(values) for key in rule.originals), rule.converted.fill(values))
        return None


def enumerated(names: Sequence[str], most: int = 10) -> str:
    """Join the first `most` names into a list that ends a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more + "."


def convert(entries: Iterable[Entry], source: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield converted names and tensors. `source` returns one original tensor at a time by name."""
    for entry in entries:
        yield entry.converted, entry.rule.forward(*(source(key) for key in entry.originals))


def revert(entries: Iterable[Entry], source: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield original names and tensors. `source` returns one converted tensor at a time by name."""
    for entry in entries:
        try:
            tensors = entry.rule.backward(source(entry.converted))
        except ValueError as error:
            raise ValueError(f"{entry.converted}: {error}") from error
        yield from zip(entry.originals, tensors, strict=True)
