"""What to do for each image: caption, tags, questions, phrases to locate, regions to describe.

A task is data. It comes from Python, from the options of `lion annotate`, or from a YAML file with the same names:

    caption: true
    ask: ["Is there a dog?", "Is this {category} red?"]   # in quotes: YAML reads ? and { as its own
    locate_column: nouns
    generation: {num_beams: 1}
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..columns import is_missing, to_plain
from ..tag_source import TAG_SOURCES, TagSource

OPTIONS = ("caption", "tags", "ask", "locate", "locate_column", "locate_tags", "regions_column")
"""Fields that ask for a result."""


@dataclass(frozen=True)
class AnnotationTask:
    """What to do for each image.

    Texts in `ask` and `locate` are templates: `{category}` stands for the column `category` of the row, and `{{` and
    `}}` for braces.

    Attributes:
        caption: Whether to describe the image in a sentence.
        tags: Whether to list the tags that the tagger finds.
        ask: Questions.
        locate: Phrases to locate, such as "the red cup".
        locate_column: Column with a phrase or a list of phrases to locate.
        locate_tags: Whether to locate each tag of the image.
        regions_column: Column with a list of boxes (x1, y1, x2, y2) to describe, in pixels of the upright image.
        scores: Whether to score located boxes.
        tag_source: Where the tags in prompts come from; see `Request`. By default, from `tag_column` if the row has
            tags there, otherwise from the tagger if there is one.
        tag_column: Column with the tags for prompts, as a string or a list.
        generation: Options of `generate`, such as `num_beams` and `max_new_tokens`.

    Raises:
        ValueError: If nothing is asked for, or a value is invalid. The message names the field.
    """

    caption: bool = False
    tags: bool = False
    ask: Sequence[str] = ()
    locate: Sequence[str] = ()
    locate_column: str | None = None
    locate_tags: bool = False
    regions_column: str | None = None
    scores: bool = False
    tag_source: TagSource | None = None
    tag_column: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("caption", "tags", "locate_tags", "scores"):
            _check(name, getattr(self, name), bool, "true or false")
        for name in ("locate_column", "regions_column", "tag_column"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), str, "the name of a column")
        for name in ("ask", "locate"):
            object.__setattr__(self, name, _check_texts(name, getattr(self, name)))
        _check("generation", self.generation, Mapping, "a mapping of options")
        object.__setattr__(self, "generation", dict(self.generation))
        if self.tag_source is not None and self.tag_source not in TAG_SOURCES:
            raise ValueError(f"tag_source is {self.tag_source!r}, but must be one of {', '.join(TAG_SOURCES)}.")
        if self.tag_column is not None and self.tag_source in ("tagger", "none"):
            raise ValueError(f"tag_column is {self.tag_column!r}, but tag_source is {self.tag_source!r}. Set only one.")
        if self.tag_source == "data" and self.tag_column is None:
            raise ValueError('tag_source is "data", but there is no tag_column.')
        if not any(getattr(self, name) for name in OPTIONS):
            raise ValueError(f"The task asks for nothing. Set at least one of {', '.join(OPTIONS)}.")
        if self.scores and not (self.locate or self.locate_column or self.locate_tags):
            raise ValueError("scores is set, but nothing is located. Set locate, locate_column or locate_tags.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str = "task") -> "AnnotationTask":
        """Create a task from a mapping.

        Args:
            values: Values of fields.
            name: Name of the mapping for messages.

        Raises:
            ValueError: If a field is unknown or invalid.
        """
        known = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"{name}: {key!r} is not a field of a task; the fields are {', '.join(known)}.")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, ready for JSON."""
        values = {**asdict(self), "ask": list(self.ask), "locate": list(self.locate)}
        return {name: value for name, value in values.items() if value not in (False, None, [], {})}

    @property
    def columns(self) -> list[str]:
        """Columns that each row must have, in order of first use."""
        used = [name for text in (*self.ask, *self.locate) for name in template_columns(text)]
        named = [self.locate_column, self.regions_column, self.tag_column]
        return list(dict.fromkeys([*used, *(name for name in named if name is not None)]))

    @property
    def has_prompts(self) -> bool:
        """Whether the language model is asked anything; otherwise the task needs only the tagger."""
        return any(getattr(self, name) for name in OPTIONS if name != "tags")

    @property
    def needs_tagger(self) -> bool:
        """Whether the task cannot be done without a tagger."""
        return self.tags or self.locate_tags or self.tag_source == "tagger"

    @property
    def uses_tagger(self) -> bool:
        """Whether a tagger is used if there is one."""
        return self.needs_tagger or (self.has_prompts and self.tag_source is None)

    def questions(self, row: Mapping[str, Any]) -> list[str]:
        """Return the questions about a row.

        Raises:
            ValueError: If a column is missing or empty. The message names it.
        """
        return [fill(text, row) for text in self.ask]

    def phrases(self, row: Mapping[str, Any], tags: Sequence[str] | None) -> list[str]:
        """Return the phrases to locate in a row's image, each once.

        Args:
            row: Columns of the row.
            tags: Tags of the image.

        Raises:
            ValueError: If a column is missing or has values other than texts.
        """
        found = [fill(text, row) for text in self.locate]
        if self.locate_column is not None:
            value = to_plain(get_column(row, self.locate_column))
            values = [value] if isinstance(value, str) else value or []
            if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
                raise ValueError(f"column {self.locate_column!r} must hold texts, but holds {value!r}.")
            found += values
        if self.locate_tags:
            found += tags or []
        return list(dict.fromkeys(text.strip() for text in found if text.strip()))

    def boxes(self, row: Mapping[str, Any]) -> list[Any]:
        """Return the boxes to describe in a row's image.

        Raises:
            ValueError: If the column is missing.
        """
        if self.regions_column is None:
            return []
        return to_plain(get_column(row, self.regions_column)) or []

    def prompt_tags(self, row: Mapping[str, Any]) -> Any:
        """Return the row's own tags for its prompts, or `None`.

        Raises:
            ValueError: If the column is missing.
        """
        return None if self.tag_column is None else to_plain(get_column(row, self.tag_column))


def read_task(path: Path) -> dict[str, Any]:
    """Read the fields of a task from a YAML file, for `AnnotationTask.from_dict`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of fields, but found {type(values).__name__}.")
    return values


# --- templates --------------------------------------------------------------------------------------------------------


def template_columns(text: str) -> Iterator[str]:
    """Yield the names of the columns in a template.

    Raises:
        ValueError: If the template is invalid.
    """
    try:
        for _, name, form, conversion in string.Formatter().parse(text):
            if name is None:
                continue
            if not name or form or conversion or not name.replace("-", "_").isidentifier():
                raise ValueError("a template holds only names of columns in braces")
            yield name
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}. Write {{{{ and }}}} for braces.") from error


def fill(text: str, row: Mapping[str, Any]) -> str:
    """Fill in a template. Lists are joined by commas.

    Raises:
        ValueError: If a column is missing or empty.
    """
    values = {}
    for name in template_columns(text):
        value = to_plain(get_column(row, name))
        shown = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
        if not shown.strip():
            raise ValueError(f"column {name!r} is empty, but {text!r} needs it.")
        values[name] = shown
    return "".join(
        literal + (values[name] if name is not None else "") for literal, name, _, _ in string.Formatter().parse(text)
    )


def get_column(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column.

    Raises:
        ValueError: If there is no such column.
    """
    if name not in row:
        raise ValueError(f"there is no column {name!r}; the row has {', '.join(map(repr, row)) or 'no columns'}.")
    return None if is_missing(row[name]) else row[name]


# --- checks -----------------------------------------------------------------------------------------------------------


def _check(name: str, value: Any, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {value!r}, but must be {expected}.")


def _check_texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{name} is {value!r}, but must be a list of texts that are not blank.")
    for text in texts:
        list(template_columns(text))
    return tuple(texts)


__all__ = ["AnnotationTask", "read_task"]
