"""Parts of the tagger for inference. They compute the same products as the original ones, on less data at a time.

- A layer of the vision tower handles one large image, or a few small ones, at a time. It brings the tokens into the
  order of the windows in one step, which includes the shift, and adds position biases and masks once for all images.
- The head handles a block of tags at a time, because tags do not attend to each other. Hidden states of a block stay
  in the processor's cache. The first queries are computed once for all images.

Other calls, such as those that record attentions or need gradients, use the original parts, which are kept.

Shape letters: B batch, P tokens of an image, W windows, S tokens of a window, V vision width, H heads, L tags, D width
of the head, E width of the image tokens that the head reads, T image tokens.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.models.swin.modeling_swin import SwinLayer

from ..ram.modeling_ram import RamTaggingHead, RamTaggingLayer
from .wrapping import Replacement, is_wrapped

BLOCK = 1024
"""Number of rows of a feed-forward layer that are computed at a time. Their hidden states take about 12 MB."""

VALUES = 2**20
"""Approximate number of values of the images that a layer of the vision tower handles at a time."""


class InferenceSwinLayer(Replacement):
    """Replaces a `SwinLayer`, which is kept as `original`."""

    original: SwinLayer

    @staticmethod
    def accepts(layer: nn.Module) -> bool:
        """Whether a module is a layer that this class can replace. Some versions of transformers use other names."""
        return (
            type(layer) is SwinLayer
            and all(
                hasattr(layer.attention, name) for name in ("q_proj", "o_proj", "relative_position_bias", "scaling")
            )
            and hasattr(layer, "get_attn_mask")
            and not any(is_wrapped(module) for module in layer.modules())
        )

    def forward(
        self, hidden_states: torch.Tensor, input_dimensions: tuple[int, int], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """(B, P, V) -> (B, P, V), and no attentions. See `SwinLayer.forward` for the arguments."""
        layer = self.original
        layer.set_shift_and_window_size(input_dimensions)
        size, config = layer.window_size, layer.attention.config
        is_padded = any(side % size for side in input_dimensions)
        if args or is_padded or config._attn_implementation != "sdpa" or not self.is_for_inference(kwargs):
            return layer(hidden_states, input_dimensions, *args, **kwargs)
        order = order_by_window(*input_dimensions, size, layer.shift_size)
        bias = layer.attention.relative_position_bias()  # (1, H, S, S)
        mask = layer.get_attn_mask(*input_dimensions, dtype=bias.dtype, device=bias.device)
        if mask is not None:
            bias = bias + mask[:, None]
        outputs = torch.empty_like(hidden_states)
        count = max(1, VALUES // hidden_states[0].numel())
        for states, output in zip(hidden_states.split(count), outputs.split(count), strict=True):
            output.index_copy_(1, order, self._compute(states.index_select(1, order), bias))
        return outputs, None

    def _compute(self, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Run the layer on tokens in the order of the windows, (B, P, V) -> (B, P, V), in place."""
        layer, attention = self.original, self.original.attention
        size, width = bias.shape[-1], states.shape[-1]
        windows = layer.layernorm_before(states).view(-1, size, width)  # (B * W, S, V)
        query, key, value = (
            project(windows).view(len(windows), size, bias.shape[1], -1).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if len(bias) > 1:
            bias = bias.repeat(len(states), 1, 1, 1)
        attended = scaled_dot_product_attention(query, key, value, bias, scale=attention.scaling)
        states += attention.o_proj(attended.transpose(1, 2).reshape(states.shape))
        for block in states.view(-1, width).split(BLOCK):
            block += layer.mlp(layer.layernorm_after(block))
        return states


class InferenceTaggingHead(Replacement):
    """Replaces a `RamTaggingHead`, which is kept as `original`."""

    original: RamTaggingHead

    @staticmethod
    def accepts(head: nn.Module) -> bool:
        """Whether a module is a head that this class can replace."""
        return type(head) is RamTaggingHead and not any(is_wrapped(module) for module in head.modules())

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutputWithCrossAttentions:
        """(B, L, D) and (B, T, E) -> `last_hidden_state` (B, L, D). See `RamTaggingHead.forward`."""
        config = self.original.config
        if config._attn_implementation != "sdpa" or not self.is_for_inference(kwargs, config):
            return self.original(hidden_states, encoder_hidden_states, **kwargs)
        layers: Any = self.original.layers
        first = layers[0].crossattention.attention.query
        queries = first(hidden_states[:1] if hidden_states.stride(0) == 0 else hidden_states)  # (1 or B, L, D)
        queries = queries.expand(hidden_states.shape)
        outputs = torch.empty(hidden_states.shape)
        count = max(1, BLOCK // hidden_states.shape[1])
        for start in range(0, len(hidden_states), count):
            images = slice(start, start + count)
            keys_values = [self._project(layer, encoder_hidden_states[images]) for layer in layers]
            for begin in range(0, hidden_states.shape[1], BLOCK):
                tags = slice(begin, begin + BLOCK)
                states, query = hidden_states[images, tags], queries[images, tags]
                for index, (layer, (keys, values)) in enumerate(zip(layers, keys_values, strict=True)):
                    query = layer.crossattention.attention.query(states) if index else query
                    states = self._compute(layer, states, query, keys, values)
                outputs[images, tags] = states
        return BaseModelOutputWithCrossAttentions(last_hidden_state=outputs)

    def _project(self, layer: RamTaggingLayer, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the image tokens, (B, T, E) -> (B, H, T, D / H) each."""
        attention = layer.crossattention.attention
        return self._split(attention.key(tokens)), self._split(attention.value(tokens))

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        """(B, rows, D) -> (B, H, rows, D / H)."""
        return states.view(*states.shape[:2], self.original.config.num_attention_heads, -1).transpose(1, 2)

    def _compute(
        self,
        layer: RamTaggingLayer,
        states: torch.Tensor,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """Run a layer on a block of tags, (B, rows, D) -> (B, rows, D)."""
        scale = layer.crossattention.attention.scaling
        attended = scaled_dot_product_attention(self._split(query), keys, values, scale=scale)
        states = layer.crossattention.output(attended.transpose(1, 2).reshape(states.shape), states)
        return layer.output(layer.intermediate(states), states)


def order_by_window(height: int, width: int, size: int, shift: int) -> torch.Tensor:
    """Return the positions (P,) of the tokens of a grid, window by window.

    Args:
        height, width: Size of the grid, multiples of `size`.
        size: Side of a window.
        shift: Rows and columns by which the windows are shifted. Windows at the end wrap around.
    """
    grid = torch.arange(height * width).view(height, width)
    if shift:
        grid = grid.roll((-shift, -shift), (0, 1))
    return grid.view(height // size, size, width // size, size).transpose(1, 2).reshape(-1)


__all__ = ["InferenceSwinLayer", "InferenceTaggingHead"]
