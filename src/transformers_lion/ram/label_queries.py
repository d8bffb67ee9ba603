"""The head's image-independent part, computed once for many images.

What the head asks does not depend on the image: the tags' embeddings, projected, and the first layer's query projection
of them. In inference the result is kept beside the weights it was computed from, and is computed anew as soon as these
are others, whatever changed them: the weights themselves are compared.

Shape letters: L tags, D width of the head.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn


class LabelQueries(NamedTuple):
    """What the head asks, for every image the same.

    Attributes:
        hidden_states: (1, L, D), what the head starts from.
        query_states: (1, L, D), the first layer's query projection of it.
    """

    hidden_states: torch.Tensor
    query_states: torch.Tensor


class LabelQueryCache:
    """The label queries with the weights they belong to; no part of the state dict, and never copied or pickled."""

    def __init__(self) -> None:
        self._entry: tuple[list[torch.Tensor], LabelQueries] | None = None

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()

    def get(self, modules: Iterable[nn.Module], compute: Callable[[], LabelQueries]) -> LabelQueries:
        """The queries for the current weights of `modules`, by `compute` if they are not at hand.

        Threads may call it at once: an entry is never changed, only replaced.
        """
        weights = plain_weights(modules)
        if weights is None:
            return compute()
        entry = self._entry
        if entry is None or not same_tensors(entry[0], weights):
            entry = [weight.detach().clone() for weight in weights], compute()
            self._entry = entry
        return entry[1]


def plain_weights(modules: Iterable[nn.Module]) -> list[torch.Tensor] | None:
    """The weights of `modules`, or `None` if the outputs do not depend on them alone.

    That is so where anything was wrapped around a module (LoRA, hooks, quantization, sharding, offloading), and in
    replicas of it.
    """
    weights: list[torch.Tensor] = []
    for module in modules:
        wrapped = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
        if wrapped or type(module) not in (nn.Linear, nn.Embedding, nn.Identity):
            return None
        weights.extend(getattr(module, name) for name in ("weight", "bias") if getattr(module, name, None) is not None)
    return weights if all(type(weight) is nn.Parameter and not weight.is_meta for weight in weights) else None


def same_tensors(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    """Whether the lists hold the same numbers, on the same devices and in the same dtypes."""
    return len(first) == len(second) and all(
        one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
        for one, other in zip(first, second, strict=True)
    )


__all__ = ["LabelQueries", "LabelQueryCache"]
