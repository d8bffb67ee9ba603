"""Parts of the tagger for inference. They compute the same products as the original ones, on less data at a time.

- A layer of the vision tower handles one image at a time. It brings the tokens into the order of the windows in one
  step, which includes the shift, and adds position biases and masks once for all images.
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
        for states, output in zip(hidden_states, outputs, strict=True):
            output.index_copy_(0, order, self._compute(states.index_select(0, order), bias))
        return outputs, None

    def _compute(self, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Run the layer on the tokens of an image in the order of the windows, (P, V) -> (P, V)."""
        layer, attention = self.original, self.original.attention
        windows = layer.layernorm_before(states).view(-1, bias.shape[-1], states.shape[1])  # (W, S, V)
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        query, key, value = (
            projection(windows).view(*windows.shape[:2], bias.shape[1], -1).transpose(1, 2)
            for projection in projections
        )
        attended = scaled_dot_product_attention(query, key, value, bias, scale=attention.scaling)
        states += attention.o_proj(attended.transpose(1, 2).reshape(states.shape))
        for block in states.split(BLOCK):
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
        query = layers[0].crossattention.attention.query
        shared = query(hidden_states[0]) if hidden_states.stride(0) == 0 else None
        outputs = torch.empty(hidden_states.shape)
        for states, tokens, output in zip(hidden_states, encoder_hidden_states, outputs, strict=True):
            keys_values = [self._project(layer, tokens) for layer in layers]
            queries = query(states) if shared is None else shared
            parts = zip(states.split(BLOCK), queries.split(BLOCK), output.split(BLOCK), strict=True)
            for block, first, result in parts:
                for index, (layer, (keys, values)) in enumerate(zip(layers, keys_values, strict=True)):
                    block = self._compute(layer, block, None if index else first, keys, values)
                result.copy_(block)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=outputs)

    def _project(self, layer: RamTaggingLayer, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the image tokens, (T, E) -> (1, H, T, D / H) each."""
        attention = layer.crossattention.attention
        return self._split(attention.key(tokens)), self._split(attention.value(tokens))

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, D) -> (1, H, rows, D / H)."""
        return states.view(1, len(states), self.original.config.num_attention_heads, -1).transpose(1, 2)

    def _compute(
        self,
        layer: RamTaggingLayer,
        states: torch.Tensor,
        queries: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """Run a layer on a block of tags, (rows, D) -> (rows, D)."""
        attention = layer.crossattention.attention
        query = self._split(attention.query(states) if queries is None else queries)
        attended = scaled_dot_product_attention(query, keys, values, scale=attention.scaling)
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
