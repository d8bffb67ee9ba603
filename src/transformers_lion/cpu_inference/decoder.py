"""Decoder for inference. Each layer is a few tensor operations, and repeated work is done once per generation.

- The projections of query, key and value are fused, as are the two input projections of the feed-forward layer and the
  down-projections of the adapters. The scale and router row of an adapter are fused into its up-projection, with one
  up-projection per task.
- Tasks and masks are processed in the first step of a generation, and position biases when the cache grows.
- The cache is updated in place (`cache.py`).
- On request, a layer is compiled (`compiled.py`). All steps with one new position then call the compiled layer.

Unsupported features, such as recording attentions, gradients, or a cache passed by the caller, fall back to the
original blocks, which are kept.

Shape letters: B encoder batch, N beams or returned sequences per sample, L new positions, S positions so far, T encoder
positions, H heads, C head width, D language model width, R router rows (tasks), A total bottleneck width of all
adapters.
"""

import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, relu, scaled_dot_product_attention
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from ..compatibility import CACHE_NAME, resolve_cache
from ..modeling_lion_t5 import LionT5Stack, SharedCrossCache
from .cache import PreallocatedCache, PreallocatedLayer
from .compiled import CompiledStep
from .layers import DecoderLayer, Norm, UnsupportedModuleError, make_layer, make_norm
from .wrapping import Replacement, is_wrapped

_building = threading.Lock()


@dataclass
class Decoding:
    """State of a generation, created in its first step.

    Attributes:
        layers: Layers of the decoder.
        final_norm: Norm after the last layer.
        batch_size: B.
        encoder_mask: Mask of the encoder states as passed by the caller, (B, T).
        cross_mask: Additive mask of the cross-attention, (B, 1, 1, T), or `None` without padding.
        task_type_ids: Tasks as passed by the caller.
        task: Task of all rows, if they have the same one.
        one_hot: Tasks of the rows, (B * N, 1, R, 1), if they differ.
        keys_values: Keys and values of the encoder states for each layer, each (B, H, T, C).
        biases: Position biases of the keys before a query, (1, H, 1, capacity), with the nearest key last.
        compiled: The compiled layers, in the first step that uses them.
    """

    layers: list[DecoderLayer]
    final_norm: Norm
    batch_size: int
    encoder_mask: torch.Tensor | None
    cross_mask: torch.Tensor | None
    task_type_ids: torch.Tensor | None
    task: int
    one_hot: torch.Tensor | None
    keys_values: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    biases: torch.Tensor | None = None
    compiled: CompiledStep | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Decoding":
        """Share the weights with the copy, which belongs to a copy of the cache."""
        return copy.copy(self)


class InferenceDecoder(Replacement):
    """Replaces the decoder of the language model.

    Args:
        stack: Decoder to replace, which is kept.
        compiles: Whether to compile a layer with `torch.compile`.
    """

    kept_as = "stack"
    stack: LionT5Stack

    def __init__(self, stack: LionT5Stack, compiles: bool = False) -> None:
        super().__init__(stack)
        self.compiles = compiles
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
        final_norm = make_norm(self.stack.final_layer_norm)
        return Decoding(layers, final_norm, batch_size, encoder_mask, cross_mask, task_type_ids, min(tasks), one_hot)

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
                    stored = cache.cross_attention_cache.layers[index]
                    stored.keys, stored.values = keys, values  # `update` has copied them
                    cache.is_updated[index] = True
        elif isinstance(cache, EncoderDecoderCache):
            cross = [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]
        states = states.reshape(-1, width).float()
        if self.compiles and own and length == 1 and len(mask) == 1:
            states = self._run_compiled(decoding, states, mask, cross, own)
        else:
            for index, layer in enumerate(decoding.layers):
                states = self._attend(layer, states, rows, mask, own and own[index])
                states = self._attend_encoder(layer, states, cross[index], decoding)
                states = _feed_forward(layer, states, decoding, rows)
        return decoding.final_norm(states).view(rows, length, width)

    def _run_compiled(
        self,
        decoding: Decoding,
        states: torch.Tensor,
        mask: torch.Tensor,
        cross: list[tuple[torch.Tensor, torch.Tensor]],
        own: list[PreallocatedLayer],
    ) -> torch.Tensor:
        """Run all layers for one new position, (B * N, D) -> (B * N, D)."""
        if decoding.compiled is None or decoding.compiled.num_rows != len(states):
            decoding.compiled = self._prepare_compiled(decoding, len(states), cross[0][0].shape[2])
        return decoding.compiled.run(states, mask[0, :, 0], cross, own)

    def _prepare_compiled(self, decoding: Decoding, rows: int, length: int) -> CompiledStep:
        """Compile the layers, or get them if they are compiled already, for `length` encoder positions."""
        num_tasks = len(decoding.layers[0].adapters.ups)
        tasks = decoding.one_hot
        if tasks is None:
            tasks = nn.functional.one_hot(torch.full((rows,), decoding.task), num_tasks).float()
        mask = decoding.cross_mask
        return CompiledStep(
            decoding.layers,
            self._head_shape,
            tasks.view(decoding.batch_size, -1, num_tasks),
            torch.zeros(decoding.batch_size, 1, 1, length) if mask is None else mask,
        )

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
                    with torch.inference_mode(False), torch.no_grad():
                        self._layers = [make_layer(block) for block in self.stack.block]
                except UnsupportedModuleError:
                    self._layers = []
                self._fingerprint = fingerprint
            return self._layers


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
    tasks = decoding.one_hot[..., 0].expand(-1, chosen.shape[1], -1)  # (B * N, L, R)
    adapted = linear(torch.cat([chosen.flatten(2), tasks], dim=-1), adapters.joined_ups)
    return outputs.add_(adapted.flatten(0, 1))


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
