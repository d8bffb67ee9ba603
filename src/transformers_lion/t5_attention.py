"""T5's attention, with the position bias in its scores, and the two sub-layers around it.

Source: T5 (arXiv:1910.10683), section 2.1. Weights and results are those of `T5Attention` in transformers. It differs
from it in what it does not compute:

- the bias of zeros that T5 adds to the scores of every cross-attention;
- keys and values of the encoder's states for each beam: the beams of a sample read the same ones, so they stand beside
  one another as queries, and nothing is repeated or reordered;
- the mask in every layer: the first one adds it to the position bias, which all share.

Shape letters: B batch of the encoder, N beams or returned sequences of each sample, L queries, S keys, H heads, C width
of one, D language-model width.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout as apply_dropout
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5LayerNorm

from .configuration_lion import LionT5Config

SHARING_IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention implementations whose masks may be of one row for all queries."""


class LionT5Attention(nn.Module):
    """Self-attention, or cross-attention of N times as many samples as the encoder has.

    Args:
        config: sizes of the language model.
        layer_idx: the layer's place in the cache.
        is_causal: whether positions see only those before them, as in the decoder's self-attention.
        has_relative_attention_bias: whether the layer holds the table of position biases that all layers share.
    """

    def __init__(
        self,
        config: LionT5Config,
        layer_idx: int | None = None,
        is_causal: bool = False,
        has_relative_attention_bias: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.has_relative_attention_bias = has_relative_attention_bias
        self.n_heads = config.num_heads
        self.key_value_proj_dim = config.d_kv
        self.dropout = config.dropout_rate
        inner_dim = config.num_heads * config.d_kv
        self.q = nn.Linear(config.d_model, inner_dim, bias=False)
        self.k = nn.Linear(config.d_model, inner_dim, bias=False)
        self.v = nn.Linear(config.d_model, inner_dim, bias=False)
        self.o = nn.Linear(inner_dim, config.d_model, bias=False)
        if has_relative_attention_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        encoder_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Attend.

        Args:
            hidden_states: (B * N, L, D).
            mask: (B, 1, 1 or L, S), boolean or to be added to the scores.
            encoder_states: (B, S, D), for cross-attention.
            position_bias: (1 or B, H, L, S) of the first layer's self-attention, `mask` and causality in it.
            cache: read and extended.
            **kwargs: options of transformers' attention function.

        Returns:
            (B * N, L, D), the position bias for the next layers, and the attentions (B * N, H, L, S) if the
            implementation has them.
        """
        if encoder_states is None:
            query, key, value, num_past = self._project_self(hidden_states, cache)
            if position_bias is None and self.has_relative_attention_bias:
                position_bias = self._compute_bias(query.shape[2], key.shape[2], num_past, query.device)
                position_bias = self._add_mask(position_bias, mask, key)
            if self._bias_holds_mask(position_bias, key):
                mask, kwargs["is_causal"] = None, False
        else:
            query = self._split_heads(self.q(hidden_states))
            key, value = self._project_encoder(encoder_states, cache)
        num_beams, length = query.shape[0] // key.shape[0], query.shape[2]
        if num_beams > 1:
            query = query.unflatten(0, (-1, num_beams)).transpose(1, 2).flatten(2, 3)  # (B, H, N * L, C)
            mask = None if mask is None else mask[:, :, :1]
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        outputs, weights = attention(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=1.0,  # T5 does not scale the scores
            position_bias=position_bias,
            **kwargs,
        )
        outputs = outputs.reshape(-1, length, self.o.in_features)  # (B, N * L, H, C) -> (B * N, L, H * C)
        if weights is not None and num_beams > 1:
            weights = weights.unflatten(2, (num_beams, length)).transpose(1, 2).flatten(0, 1)
        return self.o(outputs), position_bias, weights

    def _project_self(
        self, hidden_states: torch.Tensor, cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int | torch.Tensor]:
        """Queries, all keys and values up to now, each (B, H, L or S, C), and how many were there before."""
        query, key, value = (self._split_heads(project(hidden_states)) for project in (self.q, self.k, self.v))
        num_past: int | torch.Tensor = 0
        if cache is not None:
            num_past = cache.get_seq_length(self.layer_idx)
            if isinstance(num_past, torch.Tensor):
                num_past = num_past.clone()  # a static cache counts on in place
            own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
            key, value = own.update(key, value, self.layer_idx)
        return query, key, value, num_past

    def _project_encoder(self, encoder_states: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the encoder's states, each (B, H, S, C); computed in the first step only."""
        if isinstance(cache, EncoderDecoderCache) and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        key, value = self._split_heads(self.k(encoder_states)), self._split_heads(self.v(encoder_states))
        if isinstance(cache, EncoderDecoderCache):
            key, value = cache.cross_attention_cache.update(key, value, self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        return key, value

    def _compute_bias(
        self, num_queries: int, num_keys: int, num_past: int | torch.Tensor, device: torch.device
    ) -> torch.Tensor:
        """(1, H, L, S): the learned bias of each distance, in buckets."""
        positions = torch.arange(num_queries, device=device)[:, None] + num_past
        distances = torch.arange(num_keys, device=device)[None, :] - positions
        buckets = bucket_distances(
            distances,
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
            is_causal=self.is_causal,
        )
        return self.relative_attention_bias(buckets).permute(2, 0, 1).unsqueeze(0)

    def _bias_holds_mask(self, position_bias: torch.Tensor | None, key: torch.Tensor) -> bool:
        """Whether `_add_mask` can express the mask in a bias for these keys."""
        if position_bias is None or self.config._attn_implementation not in SHARING_IMPLEMENTATIONS:
            return False
        # while an empty static cache is filled, transformers' attention cuts off the keys that are not there yet
        return not (self.is_causal and position_bias.shape[2] < key.shape[2] and position_bias.shape[2] > 1)

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

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, L, H * C) -> (B, H, L, C)."""
        return states.unflatten(-1, (self.n_heads, self.key_value_proj_dim)).transpose(1, 2)


class LionT5LayerSelfAttention(nn.Module):
    """Norm, self-attention, residual."""

    def __init__(self, config: LionT5Config, layer_idx: int) -> None:
        super().__init__()
        self.SelfAttention = LionT5Attention(
            config, layer_idx, is_causal=config.is_decoder, has_relative_attention_bias=layer_idx == 0
        )
        self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_bias: torch.Tensor | None,
        cache: Cache | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """(B, L, D) -> (B, L, D), the position bias of all layers, and the attentions if there are any."""
        outputs, position_bias, attentions = self.SelfAttention(
            self.layer_norm(hidden_states), mask=attention_mask, position_bias=position_bias, cache=cache, **kwargs
        )
        return hidden_states + self.dropout(outputs), position_bias, attentions


class LionT5LayerCrossAttention(nn.Module):
    """Norm, attention to the encoder's states, residual."""

    def __init__(self, config: LionT5Config, layer_idx: int) -> None:
        super().__init__()
        self.EncDecAttention = LionT5Attention(config, layer_idx)
        self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
        cache: Cache | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, L, D) and (B, T, D) -> (B, L, D), and the attentions if there are any."""
        outputs, _, attentions = self.EncDecAttention(
            self.layer_norm(hidden_states),
            mask=encoder_attention_mask,
            encoder_states=encoder_hidden_states,
            cache=cache,
            **kwargs,
        )
        return hidden_states + self.dropout(outputs), attentions


def bucket_distances(distances: torch.Tensor, num_buckets: int, max_distance: int, is_causal: bool) -> torch.Tensor:
    """The bucket of each distance from a query to a key: one each for the near ones, wider ones by the logarithm.

    Args:
        distances: (L, S), position of the key less that of the query.
        num_buckets: rows of the table of biases. Where positions see both sides, each side has half of them.
        max_distance: distances from here on share the last bucket.
        is_causal: whether keys behind the query share bucket 0.
    """
    buckets = torch.zeros_like(distances)
    if is_causal:
        distances = -distances.clamp(max=0)
    else:
        num_buckets //= 2
        buckets = (distances > 0).long() * num_buckets
        distances = distances.abs()
    num_near = num_buckets // 2
    share = torch.log(distances.float() / num_near) / math.log(max_distance / num_near)
    far = num_near + (share * (num_buckets - num_near)).long()
    return buckets + torch.where(distances < num_near, distances, far.clamp(max=num_buckets - 1))


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention step by step, as transformers' attention functions are called: (B, L, H, C) and (B, H, L, S)."""
    scores = query @ key.transpose(2, 3) * scaling
    for bias in (position_bias, attention_mask):
        if bias is not None:
            scores = scores + bias
    weights = apply_dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SharedCrossCache(EncoderDecoderCache):
    """A cache of which only the decoder's own part follows the beams: they move within their sample."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the self-attention's keys and values."""
        self.self_attention_cache.reorder_cache(beam_idx)


__all__ = ["LionT5Attention", "LionT5LayerCrossAttention", "LionT5LayerSelfAttention", "SharedCrossCache"]
