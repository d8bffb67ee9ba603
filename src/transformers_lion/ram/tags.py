"""Select tags from logits.

Source: Recognize Anything (arXiv:2306.03514). A tag is present if its score is above its threshold. Tags are reported
in the order of the tag list.

Shape letters: B batch, L tags.
"""

from collections.abc import Iterable
from typing import Any

import torch

from .configuration_ram import RamConfig


def select_tags(
    logits: torch.Tensor,
    config: RamConfig,
    threshold: float | None = None,
    top_k: int | None = None,
    sort_by_score: bool = False,
    allow: Iterable[str] | None = None,
    drop: Iterable[str] | None = None,
) -> list[list[dict[str, Any]]]:
    """Select the tags that are present.

    Args:
        logits: Tensor of shape (B, L).
        config: Tag names and thresholds.
        threshold: Score between 0 and 1 that a tag must exceed. Defaults to the threshold of each tag.
        top_k: Maximum number of tags, keeping those with the highest scores.
        sort_by_score: Sort by descending score instead of the order of the tag list.
        allow: Names of the only tags to report. Defaults to all tags.
        drop: Names of tags to leave out.

    Returns:
        A list of `{"label": name, "score": probability}` for each image.

    Raises:
        ValueError: If the number of logits does not match the number of tags, `threshold` or `top_k` is out of range,
            or a name in `allow` or `drop` is not a tag.
    """
    if logits.shape[-1] != config.num_labels:
        raise ValueError(
            f"There are logits for {logits.shape[-1]} tags, but the configuration has {config.num_labels} tags."
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but must be between 0 and 1.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, but must be at least 1.")
    scores = logits.detach().float().sigmoid().cpu()  # (B, L)
    limits = torch.tensor(config.thresholds if threshold is None else threshold, dtype=scores.dtype)
    present = (scores > limits) & _eligible_tags(config, allow, drop)
    return [
        [
            {"label": config.id2label[index], "score": row[index].item()}
            for index in _pick(row, here, top_k, sort_by_score)
        ]
        for row, here in zip(scores, present, strict=True)
    ]


def _pick(scores: torch.Tensor, present: torch.Tensor, top_k: int | None, sort_by_score: bool) -> list[int]:
    """Return the indices of the tags of one image, from its scores (L,) and its mask (L,)."""
    indices = present.nonzero().squeeze(-1)
    best = indices[scores[indices].argsort(descending=True, stable=True)][:top_k]
    return best.tolist() if sort_by_score else best.sort().values.tolist()


def _eligible_tags(config: RamConfig, allow: Iterable[str] | None, drop: Iterable[str] | None) -> torch.Tensor:
    """Return a mask (L,) of the tags that may be reported."""
    eligible = torch.full((config.num_labels,), allow is None)
    if allow is not None:
        eligible[_tag_indices(config, allow)] = True
    if drop is not None:
        eligible[_tag_indices(config, drop)] = False
    return eligible


def list_names(names: Iterable[str] | None) -> list[str] | None:
    """Return names as a list. A single string counts as a list of one name."""
    return [names] if isinstance(names, str) else None if names is None else list(names)


def _tag_indices(config: RamConfig, names: Iterable[str]) -> list[int]:
    """Return the indices of the tags with these names.

    Raises:
        ValueError: If a name is not a tag. The message lists all such names.
    """
    names = list_names(names) or []
    unknown = [name for name in names if name not in config.label2id]
    if unknown:
        raise ValueError(
            f"Unknown tags {unknown}; see `config.label2id` for the {config.num_labels} tags of this tagger."
        )
    return [config.label2id[name] for name in names]


__all__ = ["select_tags"]
