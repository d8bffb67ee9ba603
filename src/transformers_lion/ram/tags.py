"""From logits to tags: which are present, with which score.

Source: Recognize Anything (arXiv:2306.03514). A tag is present where its score is above its own threshold; tags come in
the order of the list.

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
    """Read the present tags off the logits.

    Args:
        logits: (B, L).
        config: the tag names and thresholds.
        threshold: score that a tag must exceed, between 0 and 1; each tag's own by default.
        top_k: keep at most so many of the present tags, the best.
        sort_by_score: best first, instead of the list's order.
        allow: names of the only tags to report; all by default.
        drop: names of tags not to report.

    Returns:
        For each image a list of `{"label": name, "score": probability}`.

    Raises:
        ValueError: if the logits are of another number of tags, if `threshold` or `top_k` is out of range, or if a
            name in `allow` or `drop` is no tag.
    """
    if logits.shape[-1] != config.num_labels:
        raise ValueError(f"The logits are of {logits.shape[-1]} tags, but the configuration has {config.num_labels}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but scores are between 0 and 1.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, but must be at least 1.")
    scores = logits.detach().float().sigmoid().cpu()  # (B, L)
    limits = torch.tensor(config.thresholds if threshold is None else threshold, dtype=scores.dtype)
    present = (scores > limits) & eligible_tags(config, allow, drop)
    return [
        [
            {"label": config.id2label[index], "score": row[index].item()}
            for index in pick(row, here, top_k, sort_by_score)
        ]
        for row, here in zip(scores, present, strict=True)
    ]


def pick(scores: torch.Tensor, present: torch.Tensor, top_k: int | None, sort_by_score: bool) -> list[int]:
    """The numbers of an image's present tags, from its scores (L,) and its mask (L,)."""
    indices = present.nonzero().squeeze(-1)
    best = indices[scores[indices].argsort(descending=True, stable=True)][:top_k]
    return best.tolist() if sort_by_score else best.sort().values.tolist()


def eligible_tags(config: RamConfig, allow: Iterable[str] | None, drop: Iterable[str] | None) -> torch.Tensor:
    """(L,), whether a tag may be reported."""
    eligible = torch.full((config.num_labels,), allow is None)
    if allow is not None:
        eligible[tag_indices(config, allow)] = True
    if drop is not None:
        eligible[tag_indices(config, drop)] = False
    return eligible


def list_names(names: Iterable[str] | None) -> list[str] | None:
    """Names as a list; a single one counts as a list of one."""
    return [names] if isinstance(names, str) else None if names is None else list(names)


def tag_indices(config: RamConfig, names: Iterable[str]) -> list[int]:
    """The numbers of the tags called `names`.

    Raises:
        ValueError: naming those that are no tags.
    """
    names = list_names(names) or []
    unknown = [name for name in names if name not in config.label2id]
    if unknown:
        raise ValueError(f"The tagger does not know {unknown}; `config.label2id` holds its {config.num_labels} tags.")
    return [config.label2id[name] for name in names]


__all__ = ["select_tags"]
