"""A key map as data: pairs of name templates that translate between two layouts, in both directions.

A template is a parameter name with placeholders. `{n}`, `{m}`... stand for a number, `{p}` for `weight` or `bias`, and
any placeholder keeps its value on the other side. A rule may reshape the tensor, or join several into one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

PLACEHOLDER = re.compile(r"\{(\w+)\}")


class KeyMapError(ValueError):
    """A key that no rule expects, or a key that a rule misses."""


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
        """The placeholders' values if `name` has this form."""
        found = self.pattern.fullmatch(name)
        return None if found is None else found.groupdict()

    def fill(self, values: dict[str, str]) -> str:
        """The name with `values` in the placeholders' place."""
        return self.text.format(**values)


@dataclass(frozen=True)
class Rule:
    """One row of a key map.

    Attributes:
        originals: templates of the original names; more than one when tensors are joined.
        converted: template of the converted name.
        forward: original tensors to the converted one; by default the one tensor as it is.
        backward: the inverse.
    """

    originals: tuple[Template, ...]
    converted: Template
    forward: Callable[..., torch.Tensor] = lambda tensor: tensor
    backward: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = lambda tensor: (tensor,)


def same(original: str, converted: str) -> Rule:
    """A rule that only renames."""
    return Rule((Template(original),), Template(converted))


@dataclass(frozen=True)
class Entry:
    """One parameter in both layouts: what a rule makes of concrete names."""

    rule: Rule
    originals: tuple[str, ...]
    converted: str


class KeyMap:
    """Rules, applied to concrete names.

    Args:
        rules: the table; no name may fit two rows.
    """

    def __init__(self, rules: Iterable[Rule]):
        self.rules = tuple(rules)

    def from_originals(self, names: Iterable[str]) -> list[Entry]:
        """The entries that the original `names` make up.

        Raises:
            KeyMapError: naming the keys that no rule expects, and those that are missing beside their partners.
        """
        names = list(names)
        entries = dict.fromkeys(self._entry(name, originals=True) for name in names)
        missing = sorted({key for entry in entries if entry for key in entry.originals} - set(names))
        self._refuse(names, originals=True, missing=missing)
        return [entry for entry in entries if entry]

    def from_converted(self, names: Iterable[str]) -> list[Entry]:
        """The entries that the converted `names` make up.

        Raises:
            KeyMapError: naming the keys that no rule expects.
        """
        names = list(names)
        self._refuse(names, originals=False, missing=[])
        return [entry for entry in (self._entry(name, originals=False) for name in names) if entry]

    def _refuse(self, names: list[str], originals: bool, missing: list[str]) -> None:
        unknown = sorted(name for name in names if self._entry(name, originals) is None)
        if unknown:
            raise KeyMapError(f"{len(unknown)} keys that nothing expects: {enumerated(unknown)}")
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
    """The names in one sentence, as far as anybody reads them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more + "."


def convert(entries: Iterable[Entry], source: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each converted name with its tensor, read one at a time from `source` by original name."""
    for entry in entries:
        yield entry.converted, entry.rule.forward(*(source(key) for key in entry.originals))


def revert(entries: Iterable[Entry], source: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each original name with its tensor, read one at a time from `source` by converted name."""
    for entry in entries:
        try:
            tensors = entry.rule.backward(source(entry.converted))
        except ValueError as error:
            raise ValueError(f"{entry.converted}: {error}") from error
        yield from zip(entry.originals, tensors, strict=True)
