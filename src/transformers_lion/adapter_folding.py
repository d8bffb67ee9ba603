"""The mixture of adapters as two linear layers: what inference computes instead of K adapters and their router.

`sum_k G_k[t] * scale_k * (W_up,k relu(W_down,k x + b_k) + b'_k)` has one hidden layer: the K bottlenecks side by side.
Scale and router row multiply the rows of `W_up,k`, so each task has one up-projection of its own, and all tasks share
the down-projection. The sums are the same up to the rounding of float32; weights of other dtypes are not folded, since
a product rounded to half precision is another number.

Shape letters: B batch, T positions, D language-model width, K adapters, A bottleneck width of one, R router rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear, relu

from .derived_weights import DerivedWeights, is_plain_weight, is_wrapped, may_derive, plain_weights
from .packed_linear import CAN_PACK, MAX_PACKED_ROWS, may_pack, pack_weights, packed_linear


class FoldedMixture(NamedTuple):
    """The folded weights.

    Attributes:
        down: (K * A, D) and (K * A), all bottlenecks.
        ups: for each task (D, K * A) and (D); one alone if there is no router.
        all_ups: (R * D, K * A) and (R * D), the same below one another.
        packed_down, packed_ups: for few rows on the CPU; empty where there is no such form.
    """

    down: tuple[torch.Tensor, torch.Tensor]
    ups: list[tuple[torch.Tensor, torch.Tensor]]
    all_ups: tuple[torch.Tensor, torch.Tensor]
    packed_down: list[tuple]
    packed_ups: list[tuple]


def folded_forward(
    folding: DerivedWeights[FoldedMixture],
    adapters: Sequence[Any],
    router: Sequence[Any],
    hidden_states: torch.Tensor,
    task_type_ids: torch.Tensor | None,
) -> torch.Tensor | None:
    """(B, T, D) -> (B, T, D), or `None` where the plain form has to be computed.

    Args:
        folding: where the folded weights are kept.
        adapters, router: the mixture's parts.
        hidden_states: in any dtype; the folded weights are in float32.
        task_type_ids: (B,), `None` without a router.
    """
    first = adapters[0]
    if not may_derive(first, hidden_states):
        return None
    weights = mixture_weights(adapters, router, hidden_states.device)
    if weights is None:
        return None
    tasks = tasks_on_cpu(task_type_ids) if len(router) else None
    if tasks and not 0 <= min(tasks) <= max(tasks) < router[0].num_embeddings:
        return None  # the plain form refuses it
    folded = folding.get(weights, lambda: fold(adapters, router))
    hidden_states = hidden_states.float()
    few = bool(folded.packed_down) and hidden_states.shape[0] * hidden_states.shape[1] <= MAX_PACKED_ROWS
    down = packed_linear if few else linear
    hidden = relu(down(hidden_states, *(folded.packed_down[0] if few else folded.down)))
    if len(folded.ups) == 1 or (tasks and len(tasks) == 1):
        task = tasks.pop() if tasks else 0
        return packed_linear(hidden, *folded.packed_ups[task]) if few else linear(hidden, *folded.ups[task])
    assert task_type_ids is not None
    outputs = linear(hidden, *folded.all_ups).unflatten(-1, (len(folded.ups), -1))  # (B, T, R, D)
    samples = torch.arange(len(outputs), device=outputs.device)
    return outputs[samples, :, task_type_ids.to(outputs.device)]


def mixture_weights(adapters: Sequence[Any], router: Sequence[Any], device: torch.device) -> list[torch.Tensor] | None:
    """All weights of the mixture, or `None` if they cannot be folded."""
    scales = [adapter._parameters.get("scale") for adapter in adapters]
    if any(is_wrapped(adapter) for adapter in adapters) or not all(is_plain_weight(scale) for scale in scales):
        return None
    projections = [adapter._modules[name] for adapter in adapters for name in ("down_proj", "up_proj")]
    weights = plain_weights([*projections, *router], torch.float32, device)
    return None if weights is None else [*weights, *scales]


def fold(adapters: Sequence[Any], router: Sequence[Any]) -> FoldedMixture:
    """Compute the folded weights."""
    down = (
        torch.cat([adapter.down_proj.weight for adapter in adapters]),
        torch.cat([adapter.down_proj.bias for adapter in adapters]),
    )
    factors = [adapter.scale.unsqueeze(0) for adapter in adapters]  # (R, D) or (1, 1) each
    if len(router):
        factors = [scale * gate.weight for scale, gate in zip(factors, router, strict=True)]
    up = torch.cat(
        [factor.unsqueeze(-1) * adapter.up_proj.weight for adapter, factor in zip(adapters, factors, strict=True)],
        dim=-1,
    )  # (R, D, K * A)
    bias = sum(factor * adapter.up_proj.bias for adapter, factor in zip(adapters, factors, strict=True))  # (R, D)
    ups = list(zip(up, bias, strict=True))
    packs = CAN_PACK and may_pack(down[0])
    return FoldedMixture(
        down=down,
        ups=ups,
        all_ups=(up.flatten(0, 1), bias.flatten()),
        packed_down=[pack_weights(*down)] if packs else [],
        packed_ups=[pack_weights(*up) for up in ups] if packs else [],
    )


def tasks_on_cpu(task_type_ids: torch.Tensor | None) -> set[int] | None:
    """The tasks of the batch, or `None` if there are none or looking would make the processor wait for a device."""
    if task_type_ids is None or task_type_ids.device.type != "cpu":
        return None
    return set(task_type_ids.tolist())


__all__ = ["FoldedMixture", "folded_forward"]
