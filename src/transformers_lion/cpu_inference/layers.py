"""Weights of the decoder's layers, fused for `decoder.py`.

Shape letters: H heads, C head width, D language model width, R router rows (tasks), A total bottleneck width of all
adapters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.linalg import vector_norm
from torch.nn.functional import gelu, linear
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense, T5LayerNorm

from ..modeling_lion_t5 import LionAdapterMixture
from .linear import PackedLinear
from .wrapping import is_wrapped

Product = Callable[[torch.Tensor], torch.Tensor]


class UnsupportedModuleError(Exception):
    """A module of the decoder cannot be fused, such as an attention layer with LoRA."""


class FusedAdapters(NamedTuple):
    """A mixture of adapters, fused into two linear layers.

    Attributes:
        down: Weight (A, D) and bias (A,) of the down-projection.
        ups: Weight (D, A) and bias (D,) of the up-projection for each task, which are views of `joined_ups`.
        joined_ups: Up-projections and biases of all tasks, (D, R * A + R), for batches with several tasks.
    """

    down: tuple[torch.Tensor, torch.Tensor]
    ups: list[tuple[torch.Tensor, torch.Tensor]]
    joined_ups: torch.Tensor


class Norm(NamedTuple):
    """T5's layer norm, computed from the norm of each row: `x / sqrt(norm(x)^2 + epsilon * D) * (weight * sqrt(D))`.

    Attributes:
        epsilon: `sqrt(epsilon * D)`, a scalar tensor.
        weight: Weight (D,) multiplied by `sqrt(D)`.
    """

    epsilon: torch.Tensor
    weight: torch.Tensor

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, D) -> (rows, D)."""
        return (states / torch.hypot(vector_norm(states, dim=-1, keepdim=True), self.epsilon)).mul_(self.weight)


class DecoderLayer(NamedTuple):
    """Weights of one layer. `norms` are those of the self-attention, the cross-attention and the feed-forward layer."""

    norms: tuple[Norm, Norm, Norm]
    query_key_value: Product
    output: Product
    cross_query: Product
    cross_key_value: Product
    cross_output: Product
    wi: Product
    wo: Product
    activation: Callable[[torch.Tensor], torch.Tensor]
    is_gated: bool
    adapters: FusedAdapters


def make_norm(norm: T5LayerNorm) -> Norm:
    """Return the norm of a T5 layer."""
    width = norm.weight.shape[0]
    return Norm(torch.tensor((norm.variance_epsilon * width) ** 0.5), norm.weight.detach() * width**0.5)


def make_layer(block: Any) -> DecoderLayer:
    """Collect and fuse the weights of a block.

    Raises:
        UnsupportedModuleError: If a module is wrapped or of another class.
    """
    own, cross, feed_forward = block.layer[0], block.layer[1], block.feed_forward
    attention, other, dense = own.SelfAttention, cross.EncDecAttention, feed_forward.DenseReluDense
    is_gated = type(dense) is T5DenseGatedActDense
    if not is_gated and type(dense) is not T5DenseActDense:
        raise UnsupportedModuleError
    inputs = [dense.wi_0, dense.wi_1] if is_gated else [dense.wi]
    norms = own.layer_norm, cross.layer_norm, feed_forward.layer_norm
    if any(is_wrapped(module) for module in block.modules()) or any(type(norm) is not T5LayerNorm for norm in norms):
        raise UnsupportedModuleError
    return DecoderLayer(
        norms=(make_norm(norms[0]), make_norm(norms[1]), make_norm(norms[2])),
        query_key_value=_fuse_linears(attention.q, attention.k, attention.v),
        output=_fuse_linears(attention.o),
        cross_query=_fuse_linears(other.q),
        cross_key_value=_fuse_linears(other.k, other.v),
        cross_output=_fuse_linears(other.o),
        wi=_fuse_linears(*inputs),
        wo=_fuse_linears(dense.wo),
        activation=_fast_gelu if type(dense.act) is NewGELUActivation else dense.act,
        is_gated=is_gated,
        adapters=_fuse_adapters(feed_forward.adapter),
    )


def _fast_gelu(states: torch.Tensor) -> torch.Tensor:
    return gelu(states, approximate="tanh")


def _fuse_linears(*linears: Any) -> Product:
    """Fuse linear layers with the same input and no bias."""
    first = linears[0]
    if isinstance(first, PackedLinear):
        packs = {id(layer.pack) if isinstance(layer, PackedLinear) else None for layer in linears}
        if len(packs) == 1 and sum(layer.out_features for layer in linears) == first.pack.shape[0]:
            return first.pack
        raise UnsupportedModuleError
    weights = [layer.weight.detach() for layer in linears if type(layer) is nn.Linear and layer.bias is None]
    if len(weights) < len(linears) or any(weight.dtype != torch.float32 for weight in weights):
        raise UnsupportedModuleError
    return partial(linear, weight=weights[0] if len(weights) == 1 else torch.cat(weights))


@torch.no_grad()
def _fuse_adapters(mixture: LionAdapterMixture) -> FusedAdapters:
    """Fuse a mixture of adapters: one down-projection for all of them, and one up-projection per task."""
    adapters: list[Any] = list(mixture.adapters)
    if type(mixture) is not LionAdapterMixture or any(p.dtype != torch.float32 for p in mixture.parameters()):
        raise UnsupportedModuleError
    if any(type(layer) is not nn.Linear for adapter in adapters for layer in (adapter.down_proj, adapter.up_proj)):
        raise UnsupportedModuleError
    down = torch.cat([a.down_proj.weight for a in adapters]), torch.cat([a.down_proj.bias for a in adapters])
    factors: list[Any] = [adapter.scale[None] for adapter in adapters]  # (R, D) or (1, 1)
    if len(mixture.router):
        factors = [factor * gate.weight for factor, gate in zip(factors, mixture.router, strict=True)]
    pairs = list(zip(factors, adapters, strict=True))
    up = torch.cat([factor[..., None] * adapter.up_proj.weight for factor, adapter in pairs], dim=-1)
    bias = torch.stack([factor * adapter.up_proj.bias for factor, adapter in pairs]).sum(0)
    joined_ups = torch.cat([up.transpose(0, 1).flatten(1), bias.T], dim=1)
    ups = joined_ups[:, : -len(bias)].unflatten(1, (len(bias), -1)).unbind(1)
    return FusedAdapters(down, list(zip(ups, bias, strict=True)), joined_ups)


__all__ = ["DecoderLayer", "FusedAdapters", "Norm", "Product", "UnsupportedModuleError", "make_layer", "make_norm"]
