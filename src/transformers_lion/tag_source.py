"""The rule for tags, the same in Python, in YAML and on the command line.

`tags` is data: a list of names, or a text, or `None`. `tag_source` says where the tags of a prompt come from:

- "data": from the call or the record. A sample without tags gets no tag sentence.
- "tagger": from the tagger, which tags each image.
- "none": from nowhere. No prompt has a tag sentence, whatever the data hold.
- not set (`None`): from the data where a sample has tags, otherwise from the tagger if there is one.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

Tags = str | Sequence[str] | None
"""Tags of one image: a text, a list of names, or `None` for no tag sentence."""

TagSource = Literal["data", "tagger", "none"]
"""Where tags come from."""

TAG_SOURCES: tuple[TagSource, ...] = get_args(TagSource)


def resolve_tag_source(tags: Tags, tag_source: TagSource | None, has_tagger: bool) -> TagSource:
    """Say where the tags of one sample come from.

    Args:
        tags: the sample's own.
        tag_source: what was asked for, `None` if it is not set.
        has_tagger: whether there is a tagger.

    Raises:
        ValueError: if there is no such source, or there is no tagger to ask.
    """
    check_tag_source(tag_source)
    if tag_source is None:
        return "tagger" if has_tagger and tags is None else "data"
    if tag_source == "tagger" and not has_tagger:
        raise ValueError(
            'tag_source is "tagger", but there is no tagger. Pass tagger=ImageTagger.from_pretrained(folder), or put '
            "one into the checkpoint's folder tagger/."
        )
    return tag_source


def check_tag_source(tag_source: Any) -> None:
    """Raise `ValueError` unless this is a source of tags, or `None`."""
    if tag_source is not None and tag_source not in TAG_SOURCES:
        raise ValueError(
            f"tag_source is {tag_source!r}, but must be one of {', '.join(map(repr, TAG_SOURCES))} or None."
        )


def check_tags(tags: Any, tag_source: Any = None) -> None:
    """Check the tags of one call, and where they are to come from.

    Raises:
        ValueError: if there is no such source, if tags are no names, or if tags are given although the tagger is to
            make them.
    """
    check_tag_source(tag_source)
    if tags is None:
        return
    if not isinstance(tags, str | list | tuple):
        raise ValueError(
            f"tags must be a string, a list of strings or None, but is {type(tags).__name__}; "
            'tag_source="none" leaves the tag sentence out.'
        )
    if tag_source == "tagger":
        raise ValueError(f'tags is {tags!r} and tag_source is "tagger": give tags, or have the tagger make them.')


def as_names(tags: Tags) -> list[str] | None:
    """Tags as a list of names; `None` where there is no tag sentence."""
    if tags is None:
        return None
    return [name.strip() for name in tags.split(",") if name.strip()] if isinstance(tags, str) else list(tags)


__all__ = ["TAG_SOURCES", "TagSource", "Tags", "as_names", "check_tag_source", "check_tags", "resolve_tag_source"]
