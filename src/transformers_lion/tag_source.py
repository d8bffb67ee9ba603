"""The rule for tags, which is the same in Python, in YAML and on the command line.

`tags` is data: a list of names, a string or `None`. `tag_source` says where the tags of a prompt come from:

- "data": the call or the record. A sample without tags has no tag sentence.
- "tagger": the tagger, which tags each image.
- "none": nowhere. No prompt has a tag sentence, even if the data has tags.
- `None` (default): the data if the sample has tags, otherwise the tagger if there is one.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

Tags = str | Sequence[str] | None
"""Tags of one image: a string, a list of names, or `None` for no tag sentence."""

TagSource = Literal["data", "tagger", "none"]
"""Source of tags."""

TAG_SOURCES: tuple[TagSource, ...] = get_args(TagSource)


def resolve_tag_source(tags: Tags, tag_source: TagSource | None, has_tagger: bool) -> TagSource:
    """Resolve the tag source of a sample.

    Args:
        tags: Tags of the sample.
        tag_source: Requested source, or `None`.
        has_tagger: Whether there is a tagger.

    Raises:
        ValueError: If the source is unknown, or the tagger is requested but there is none.
    """
    check_tag_source(tag_source)
    if tag_source is None:
        return "tagger" if has_tagger and tags is None else "data"
    if tag_source == "tagger" and not has_tagger:
        raise ValueError(
            'tag_source is "tagger", but there is no tagger. Pass tagger=ImageTagger.from_pretrained(folder), or save '
            "one in the checkpoint's tagger/ folder."
        )
    return tag_source


def check_tag_source(tag_source: Any) -> None:
    """Raise `ValueError` unless `tag_source` is valid or `None`."""
    if tag_source is not None and tag_source not in TAG_SOURCES:
        raise ValueError(
            f"tag_source is {tag_source!r}, but must be one of {', '.join(map(repr, TAG_SOURCES))} or None."
        )


def check_tags(tags: Any, tag_source: Any = None) -> None:
    """Check tags and their source.

    Raises:
        ValueError: If the source is unknown, the tags are neither a string nor a list, or tags are combined with
            `tag_source="tagger"`.
    """
    check_tag_source(tag_source)
    if tags is None:
        return
    if not isinstance(tags, str | list | tuple):
        raise ValueError(
            f"tags must be a string, a list of strings or None, but is {type(tags).__name__}. "
            'Use tag_source="none" to omit the tag sentence.'
        )
    if tag_source == "tagger":
        raise ValueError(f'tags is {tags!r}, but tag_source is "tagger". Pass only one of them.')


def as_names(tags: Tags) -> list[str] | None:
    """Return tags as a list of names, or `None` for no tag sentence."""
    if tags is None:
        return None
    return [name.strip() for name in tags.split(",") if name.strip()] if isinstance(tags, str) else list(tags)


__all__ = ["TAG_SOURCES", "TagSource", "Tags", "as_names", "check_tag_source", "check_tags", "resolve_tag_source"]
