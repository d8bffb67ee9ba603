"""Decoder for inference. Each layer is a few tensor operations, and repeated work is done once per generation.

- The projections of query, key and value are fused, as are the two input projections of the feed-forward layer and the
  down-projections of the adapters. The scale and router row of an adapter are fused into its up-projection, with one
  up-projection per task.
- Tasks and masks are processed in the first step of a generation, and position biases when the cache grows.
- The cache is updated in place (`cache.py`).

Unsupported features, such as recording attentions, gradients, or a cache passed by the caller, fall back to the
original blocks, which are kept.

Shape letters: B encoder batch, N beams or returned sequences per sample, L new positions, S positions so far, T encoder
positions, H heads, C head width, D language model width, R router rows (tasks), A total bottleneck width of all
adapters.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.linalg import vector_norm
from torch.nn.functional import gelu, linear, relu, scaled_dot_product_attention
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense, T5LayerNorm

from ..compatibility import CACHE_NAME, resolve_cache
from ..modeling_lion_t5 import LionAdapterMixture, LionT5Stack, SharedCrossCache
from .cache import PreallocatedCache
from .linear import PackedLinear
from .wrapping import Replacement, is_wrapped

Product = Callable[[torch.Tensor], torch.Tensor]

_building = threading.Lock()


class UnsupportedModuleError(Exception):
    """A module of the decoder cannot be fused, such as an attention layer with LoRA."""


class FusedAdapters(NamedTuple):
    """A mixture of adapters, fused into two linear layers.

    Attributes:
        down: Weight (A, D) and bias (A,) of the down-projection.
        ups: Weight (D, A) and bias (D,) of the up-projection for each task, which are views of `joined_ups`.
        joined_ups: Up-projections of all tasks, (D, R * A), for batches with several tasks.
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


@dataclass
class Decoding:
    """State of a generation, created in its first step.

    Attributes:
        layers: Layers of the decoder.
        batch_size: B.
        encoder_mask: Mask of the encoder states as passed by the caller, (B, T).
        cross_mask: Additive mask of the cross-attention, (B, 1, 1, T), or `None` without padding.
        task_type_ids: Tasks as passed by the caller.
        task: Task of all rows, if they have the same one.
        one_hot: Tasks of the rows, (B * N, 1, R, 1), if they differ.
        keys_values: Keys and values of the encoder states for each layer, each (B, H, T, C).
        biases: Position biases of the keys before a query, (1, H, 1, capacity), with the nearest key last.
    """

    layers: list[DecoderLayer]
    batch_size: int
    encoder_mask: torch.Tensor | None
    cross_mask: torch.Tensor | None
    task_type_ids: torch.Tensor | None
    task: int
    one_hot: torch.Tensor | None
    keys_values: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    biases: torch.Tensor | None = None


class InferenceDecoder(Replacement):
    """Replaces the `LionT5Stack` of the decoder, which is kept as `stack`."""

    kept_as = "stack"
    stack: LionT5Stack

    def __init__(self, stack: LionT5Stack) -> None:
        super().__init__(stack)
        self._head_shape = stack.config.num_heads, stack.config.d_kv
        self._layers: list[DecoderLayer] | None = None
        self._fingerprint: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Drop the fused weights. A copy creates its own."""
        return {**self.__dict__, "_layers": None, "_fingerprint": []}

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        task_type_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run the decoder. See `LionT5Stack.forward` for the arguments."""
        cache = resolve_cache(past_key_values, cache)
        if (
            (input_ids is None) != (inputs_embeds is None)
            and encoder_hidden_states is not None
            and (attention_mask is None or attention_mask.dim() == 2)
            and self._is_for_inference(kwargs)
        ):
            states = self.stack.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            cache = self.stack._choose_cache(cache, use_cache)
            decoding = self._start(states, encoder_hidden_states, encoder_attention_mask, task_type_ids, cache)
            if decoding is not None:
                states = self._decode(decoding, states, attention_mask, encoder_hidden_states, cache)
                return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states, **{CACHE_NAME: cache})
            inputs_embeds, input_ids = states, None
        return self.stack(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            task_type_ids=task_type_ids,
            cache=cache,
            **kwargs,
        )

    def _is_for_inference(self, options: dict[str, Any]) -> bool:
        """Whether the call only needs the last hidden states, without gradients."""
        config = self.stack.config
        return self.is_for_inference(options, config) and config._attn_implementation in ("sdpa", "eager")

    def _start(
        self,
        states: torch.Tensor,
        encoder_states: torch.Tensor,
        encoder_mask: torch.Tensor | None,
        task_type_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> Decoding | None:
        """Return the state of the generation, from the cache or newly created, or `None` to use the original blocks."""
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else None
        if isinstance(own, PreallocatedCache):
            known = own.decoding
            if known.encoder_mask is encoder_mask and known.task_type_ids is task_type_ids:
                return known
            decoding = self._prepare(states, encoder_states, encoder_mask, task_type_ids, known.layers)
            if decoding is not None:
                decoding.keys_values, decoding.biases, own.decoding = known.keys_values, known.biases, decoding
            return decoding
        if cache is not None and not (own is not None and _is_fresh(cache)):
            return None
        layers = self._get_layers()
        decoding = self._prepare(states, encoder_states, encoder_mask, task_type_ids, layers) if layers else None
        if decoding is not None and isinstance(cache, EncoderDecoderCache):
            cache.self_attention_cache = PreallocatedCache(len(decoding.layers), decoding)
        return decoding

    def _prepare(
        self,
        states: torch.Tensor,
        encoder_states: torch.Tensor,
        encoder_mask: torch.Tensor | None,
        task_type_ids: torch.Tensor | None,
        layers: list[DecoderLayer],
    ) -> Decoding | None:
        """Process tasks and masks. Return `None` if their shapes differ from those in `generate`."""
        batch_size, rows = encoder_states.shape[0], states.shape[0]
        num_tasks = len(layers[0].adapters.ups)
        cross_mask = one_hot = None
        if encoder_mask is not None:
            if encoder_mask.shape != encoder_states.shape[:2]:
                return None
            if not bool(encoder_mask.all()):
                cross_mask = _hide(encoder_mask.bool())[:, None, None]
        tasks = {0}
        if num_tasks > 1:
            tasks = set() if task_type_ids is None else set(task_type_ids.tolist())
        if not tasks or rows % batch_size or not 0 <= min(tasks) <= max(tasks) < num_tasks:
            return None
        if len(tasks) > 1:
            assert task_type_ids is not None
            if task_type_ids.shape != (rows,):
                return None
            one_hot = nn.functional.one_hot(task_type_ids.long(), num_tasks).float()[:, None, :, None]
        return Decoding(layers, batch_size, encoder_mask, cross_mask, task_type_ids, min(tasks), one_hot)

    def _decode(
        self,
        decoding: Decoding,
        states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_states: torch.Tensor,
        cache: Cache | None,
    ) -> torch.Tensor:
        """Run all layers, (B * N, L, D) -> (B * N, L, D)."""
        rows, length, width = states.shape
        own = cache.self_attention_cache.layers if isinstance(cache, EncoderDecoderCache) else None
        past = own[0].get_seq_length() if own else 0
        mask = self._make_mask(decoding, length, past, attention_mask)
        cross = decoding.keys_values
        if not cross:
            cross = [self._project_encoder(layer, encoder_states) for layer in decoding.layers]
            if isinstance(cache, EncoderDecoderCache):
                decoding.keys_values = cross
                for index, (keys, values) in enumerate(cross):
                    cache.cross_attention_cache.update(keys, values, index)
                    cache.is_updated[index] = True
        elif isinstance(cache, EncoderDecoderCache):
            cross = [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]
        states = states.reshape(-1, width).float()
        for index, layer in enumerate(decoding.layers):
            states = self._attend(layer, states, rows, mask, own and own[index])
            states = self._attend_encoder(layer, states, cross[index], decoding)
            states = _feed_forward(layer, states, decoding, rows)
        return _make_norm(self.stack.final_layer_norm)(states).view(rows, length, width)

    def _attend(
        self, layer: DecoderLayer, states: torch.Tensor, rows: int, mask: torch.Tensor, cache_layer: Any
    ) -> torch.Tensor:
        """Self-attention and residual, (B * N * L, D) -> (B * N * L, D)."""
        projected = layer.query_key_value(layer.norms[0](states))
        query, *rest = parts = self._split(projected, rows, 3)
        keys, values = rest if cache_layer is None else cache_layer.append(parts[1:])
        outputs = scaled_dot_product_attention(query, keys, values, mask, scale=1.0)
        return layer.output(outputs.transpose(1, 2).reshape(states.shape[0], -1)).add_(states)

    def _attend_encoder(
        self,
        layer: DecoderLayer,
        states: torch.Tensor,
        keys_values: tuple[torch.Tensor, torch.Tensor],
        decoding: Decoding,
    ) -> torch.Tensor:
        """Cross-attention and residual. All rows of a sample are queries of the same attention."""
        queries = layer.cross_query(layer.norms[1](states))
        query = self._split(queries, keys_values[0].shape[0], 1)[0]
        outputs = scaled_dot_product_attention(query, *keys_values, decoding.cross_mask, scale=1.0)
        return layer.cross_output(outputs.transpose(1, 2).reshape(states.shape[0], -1)).add_(states)

    def _project_encoder(self, layer: DecoderLayer, encoder_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the encoder states, each (B, H, T, C)."""
        keys, values = self._split(
            layer.cross_key_value(encoder_states.float()), encoder_states.shape[0], 2
        ).contiguous()
        return keys, values

    def _split(self, states: torch.Tensor, rows: int, count: int) -> torch.Tensor:
        """(..., count * H * C) -> (count, rows, H, positions, C)."""
        return states.view(rows, -1, count, *self._head_shape).permute(2, 0, 3, 1, 4)

    def _make_mask(
        self, decoding: Decoding, length: int, past: int, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return position biases with masked positions, (1 or B * N, H, L, S)."""
        total = past + length
        attention: Any = self.stack.get_submodule("block.0.layer.0.SelfAttention")
        if length == 1:
            if decoding.biases is None or decoding.biases.shape[-1] < total:
                capacity = max(32, 2 * total)
                decoding.biases = attention._compute_bias(1, capacity, capacity - 1, torch.device("cpu"))
            mask = decoding.biases[..., decoding.biases.shape[-1] - total :]
        else:
            is_seen = torch.ones(length, total, dtype=torch.bool).tril(past)
            mask = attention._compute_bias(length, total, past, torch.device("cpu")) + _hide(is_seen)
        if attention_mask is not None and not bool(attention_mask.all()):
            mask = mask + _hide(attention_mask.bool())[:, None, None]
        return mask

    def _get_layers(self) -> list[DecoderLayer]:
        """Return the fused weights of all layers, or an empty list if a module is not supported."""
        with _building:
            fingerprint = list(_fingerprint(self.stack))
            if self._layers is None or fingerprint != self._fingerprint:
                try:
                    self._layers = [_make_layer(block) for block in self.stack.block]
                except UnsupportedModuleError:
                    self._layers = []
                self._fingerprint = fingerprint
            return self._layers


def _make_norm(norm: T5LayerNorm) -> Norm:
    width = norm.weight.shape[0]
    return Norm(torch.tensor((norm.variance_epsilon * width) ** 0.5), norm.weight.detach() * width**0.5)


def _feed_forward(layer: DecoderLayer, states: torch.Tensor, decoding: Decoding, rows: int) -> torch.Tensor:
    """Feed-forward, adapters and residual, (B * N * L, D) -> (B * N * L, D)."""
    hidden = layer.wi(layer.norms[2](states))
    if layer.is_gated:
        gate, hidden = hidden.chunk(2, -1)
        hidden = layer.activation(gate) * hidden
    else:
        hidden = layer.activation(hidden)
    outputs = layer.wo(hidden).add_(states)
    adapters = layer.adapters
    bottleneck = relu(linear(states, *adapters.down))
    if decoding.one_hot is None:
        return outputs.add_(linear(bottleneck, *adapters.ups[decoding.task]))
    chosen = bottleneck.view(rows, -1, 1, bottleneck.shape[-1]) * decoding.one_hot  # (B * N, L, R, A)
    biases = torch.stack([bias for _, bias in adapters.ups])
    bias = (biases * decoding.one_hot[:, 0]).sum(1)  # (B * N, D)
    adapted = linear(chosen.flatten(2), adapters.joined_ups) + bias[:, None]
    return outputs.add_(adapted.flatten(0, 1))


def _make_layer(block: Any) -> DecoderLayer:
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
        norms=(_make_norm(norms[0]), _make_norm(norms[1]), _make_norm(norms[2])),
        query_key_value=_fuse_linears(attention.q, attention.k, attention.v),
        output=_fuse_linears(attention.o),
        cross_query=_fuse_linears(other.q),
        cross_key_value=_fuse_linears(other.k, other.v),
        cross_output=_fuse_linears(other.o),
        wi=_fuse_linears(*inputs),
        wo=_fuse_linears(dense.wo),
        activation=partial(gelu, approximate="tanh") if type(dense.act) is NewGELUActivation else dense.act,
        is_gated=is_gated,
        adapters=_fuse_adapters(feed_forward.adapter),
    )


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
    joined = up.transpose(0, 1).contiguous()  # (D, R, A)
    return FusedAdapters(down, list(zip(joined.unbind(1), bias, strict=True)), joined.flatten(1))


def _is_fresh(cache: Cache) -> bool:
    """Whether the cache is empty and was created by `generate` or this decoder."""
    if type(cache) not in (EncoderDecoderCache, SharedCrossCache):
        return False
    parts = cache.self_attention_cache, cache.cross_attention_cache
    return all(type(part) is DynamicCache and not part.get_seq_length() and not part.offloading for part in parts)


def _hide(is_seen: torch.Tensor) -> torch.Tensor:
    """Convert a boolean mask to an additive one."""
    return torch.zeros(is_seen.shape).masked_fill_(~is_seen, torch.finfo(torch.float32).min)


def _fingerprint(stack: LionT5Stack) -> Iterator[Any]:
    """Yield values that change when a module is replaced or wrapped, or a weight is replaced or written to."""
    for module in stack.modules():
        yield id(module), is_wrapped(module)
    for weight in stack.parameters():
        yield id(weight), weight.data_ptr(), None if weight.is_inference() else weight._version


__all__ = ["InferenceDecoder"]
