"""T5's attention without what the language model of LION does not need.

Source: `T5Attention` of transformers, whose weights and results it keeps. It leaves out four things:

- the bias of zeros that T5 adds to the scores of every cross-attention;
- keys and values of the encoder's states for each beam: the beams of a sample read the same ones, so they stand beside
  one another as queries, and nothing is repeated or reordered;
- the mask in every layer: the first one adds it to the position bias, which all share;
- reading weights as PyTorch does for many rows, when there are few (`packed_linear.py`).

Shape letters: B batch of the encoder, N beams or returned sequences of each sample, L queries, S keys, H heads, C width
of one, D language-model width.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention, eager_attention_forward

from .configuration_lion import LionT5Config
from .packed_linear import PackedLinears

SHARING_IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention implementations whose masks may be of one row for all queries."""


class LionT5Attention(T5Attention):
    """Self-attention, or cross-attention of N times as many samples as the encoder has."""

    def __init__(
        self,
        config: LionT5Config,
        has_relative_attention_bias: bool = False,
        layer_idx: int | None = None,
        is_causal: bool = False,
    ) -> None:
        super().__init__(config, has_relative_attention_bias, layer_idx, is_causal)
        self.packed_inputs = PackedLinears()
        self.packed_output = PackedLinears()

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """As `T5Attention.forward`.

        Args:
            hidden_states: (B * N, L, D).
            mask: (B, 1, 1 or L, S), what T5's stack makes of a mask of the keys.
            key_value_states: (B, S, D) of the encoder, for cross-attention.
            position_bias: (1 or B, H, L, S) of the first layer's self-attention, `mask` and causality in it.
            past_key_values: read and extended.

        Returns:
            (B * N, L, D), the position bias for the next layers, and the attentions (B * N, H, L, S) if the
            implementation has them.
        """
        if key_value_states is None:
            query, key, value, num_past = self._project_self(hidden_states, past_key_values)
            if position_bias is None and self.has_relative_attention_bias:
                position_bias = self.compute_bias(query.shape[2], key.shape[2], query.device, num_past)
                position_bias = self._add_mask(position_bias, mask, key)
            if self._bias_holds_mask(position_bias, key):
                mask, kwargs["is_causal"] = None, False
        else:
            query = self._split_heads(self.packed_inputs([self.q], hidden_states)[0])
            key, value = self._project_encoder(key_value_states, past_key_values)
        num_beams, length = len(query) // len(key), query.shape[2]
        if num_beams > 1:
            query = query.unflatten(0, (-1, num_beams)).transpose(1, 2).flatten(2, 3)  # (B, H, N * L, C)
            mask = None if mask is None else mask[:, :, :1]
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        outputs, weights = attention(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            position_bias=position_bias,
            **kwargs,
        )
        outputs = outputs.reshape(-1, length, self.inner_dim)  # (B, N * L, H, C) -> (B * N, L, H * C)
        if weights is not None and num_beams > 1:
            weights = weights.unflatten(2, (num_beams, length)).transpose(1, 2).flatten(0, 1)
        return self.packed_output([self.o], outputs)[0], position_bias, weights

    def _project_self(
        self, hidden_states: torch.Tensor, past_key_values: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int | torch.Tensor]:
        """Queries, all keys and values up to now, each (B, H, L or S, C), and how many were there before."""
        query, key, value = map(self._split_heads, self.packed_inputs([self.q, self.k, self.v], hidden_states))
        num_past: int | torch.Tensor = 0
        if past_key_values is not None:
            num_past = past_key_values.get_seq_length(self.layer_idx)
            if isinstance(num_past, torch.Tensor):
                num_past = num_past.clone()  # a static cache counts on in place
            if isinstance(past_key_values, EncoderDecoderCache):
                past_key_values = past_key_values.self_attention_cache
            key, value = past_key_values.update(key, value, self.layer_idx)
        return query, key, value, num_past

    def _bias_holds_mask(self, position_bias: torch.Tensor | None, key: torch.Tensor) -> bool:
        """Whether `_add_mask` can express the mask in a bias for these keys."""
        if position_bias is None or self.config._attn_implementation not in SHARING_IMPLEMENTATIONS:
            return False
        # while an empty static cache is filled, transformers' attention cuts off the keys that are not there yet
        return not (self.is_causal and 1 < position_bias.shape[2] < key.shape[2])

    def _add_mask(self, position_bias: torch.Tensor, mask: torch.Tensor | None, key: torch.Tensor) -> torch.Tensor:
        """The bias (1, H, L, S) with the mask (B, 1, L, S) in it, or with causality if there is no mask."""
        if not self._bias_holds_mask(position_bias, key):
            return position_bias
        length = position_bias.shape[2]
        if mask is None and self.is_causal and length > 1:
            mask = torch.ones(length, length, dtype=torch.bool, device=key.device).tril()
        if mask is None:
            return position_bias.contiguous()
        if mask.dtype != torch.bool:
            return position_bias + mask
        return torch.where(mask, position_bias, torch.finfo(key.dtype).min)

    def _project_encoder(
        self, key_value_states: torch.Tensor, past_key_values: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the encoder's states, each (B, H, S, C); computed in the first step only."""
        cache = past_key_values
        if isinstance(past_key_values, EncoderDecoderCache):
            cache = past_key_values.cross_attention_cache
            if past_key_values.is_updated.get(self.layer_idx):
                layer = cache.layers[self.layer_idx]
                return layer.keys, layer.values
        key, value = self._split_heads(self.k(key_value_states)), self._split_heads(self.v(key_value_states))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
            if isinstance(past_key_values, EncoderDecoderCache):
                past_key_values.is_updated[self.layer_idx] = True
        return key, value

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, L, H * C) -> (B, H, L, C)."""
        return states.unflatten(-1, (self.n_heads, self.key_value_proj_dim)).transpose(1, 2)


class SharedCrossCache(EncoderDecoderCache):
    """A cache of which only the decoder's own part follows the beams: they move within their sample."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the self-attention's keys and values."""
        self.self_attention_cache.reorder_cache(beam_idx)


__all__ = ["LionT5Attention", "SharedCrossCache"]
