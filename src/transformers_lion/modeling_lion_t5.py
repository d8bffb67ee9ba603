"""Language model of LION: FlanT5 with a mixture of adapters in every feed-forward layer.

Source: T5 (arXiv:1910.10683), version 1.1, and LION (arXiv:2311.11860), section 3.3, "Mixture of Adapters with
Router". Reading order: adapter, mixture, attention, the three sub-layers, block, stack, model. The task of each sample
is passed from `forward` and `generate` to the router as the argument `task_type_ids`; no module stores it.

Attention, layers, stack and model are implemented here instead of derived from transformers' T5, because its call
signatures change between releases. Only the leaf layers (norm and dense layers) are those of transformers. The weights
have the same names as in T5, and without adapters the outputs are the same. Two computations that T5 repeats are
shared here: the first layer adds the mask to the position bias that all layers use, and all beams of a sample use the
same keys and values of the encoder states (`SharedCrossCache`).

Shape letters: B encoder batch, N beams or returned sequences per sample, T encoder positions, L decoder positions or
queries, S keys, H heads, C head width, D language model width, K adapters, R task types.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout as apply_dropout
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationConfig, GenerationMode
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense, T5LayerNorm
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .compatibility import CACHE_NAME, CACHE_NAMES, get_cache, resolve_cache
from .configuration_lion import LionT5Config
from .modeling_utils import BasePreTrainedModel

SHARING_IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention implementations that accept a mask with one row for all queries."""


class LionAdapter(nn.Module):
    """Bottleneck adapter with a learned scale: `scale * up(relu(down(x)))`."""

    def __init__(self, config: LionT5Config):
        super().__init__()
        self.down_proj = nn.Linear(config.d_model, config.adapter_hidden_size)
        self.up_proj = nn.Linear(config.adapter_hidden_size, config.d_model)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D), in the dtype of the adapter."""
        hidden_states = hidden_states.to(self.scale.dtype)
        return self.up_proj(nn.functional.relu(self.down_proj(hidden_states))) * self.scale


class LionAdapterMixture(nn.Module):
    """K adapters on the same input. A router weights each one by a learned vector for the task, unless K is 1."""

    def __init__(self, config: LionT5Config):
        super().__init__()
        self.adapters = nn.ModuleList([LionAdapter(config) for _ in range(config.num_adapters)])
        self.router = nn.ModuleList()
        if config.num_adapters > 1:
            self.router.extend(nn.Embedding(config.num_task_types, config.d_model) for _ in self.adapters)

    def forward(self, hidden_states: torch.Tensor, task_type_ids: torch.Tensor | None) -> torch.Tensor:
        """(B, T, D), (B,) -> (B, T, D).

        Raises:
            ValueError: If there is a router, but `task_type_ids` is `None`.
        """
        if self.router and task_type_ids is None:
            raise ValueError(
                "task_type_ids is missing. With 2 adapters, each sample needs a task: 0 for region level, 1 for image "
                "level."
            )
        if not self.router:
            return self.adapters[0](hidden_states)
        first, *others = (
            adapter(hidden_states) * gate(task_type_ids).unsqueeze(1)  # (B, T, D) * (B, 1, D)
            for adapter, gate in zip(self.adapters, self.router, strict=True)
        )
        return sum(others, start=first)


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
    """Eager attention with the signature of transformers' attention functions.

    Returns:
        Outputs of shape (B, L, H, C) and attention weights of shape (B, H, L, S).
    """
    scores = query @ key.transpose(2, 3) * scaling
    for bias in (position_bias, attention_mask):
        if bias is not None:
            scores = scores + bias
    weights = apply_dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def bucket_distances(distances: torch.Tensor, num_buckets: int, max_distance: int, is_causal: bool) -> torch.Tensor:
    """Map distances between queries and keys to buckets. Small distances have a bucket each; larger ones share
    buckets of logarithmically growing width.

    Args:
        distances: Position of the key minus that of the query, of shape (L, S).
        num_buckets: Number of rows in the bias table. Without `is_causal`, each direction uses half of them.
        max_distance: Minimum distance at which all keys share the last bucket.
        is_causal: Whether all keys after the query share bucket 0.
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


class LionT5Attention(nn.Module):
    """Self-attention, or cross-attention in which N decoder samples share one encoder sample.

    Args:
        config: Configuration of the language model.
        layer_idx: Index of the layer in the cache.
        is_causal: Whether positions only attend to earlier ones, as in the decoder's self-attention.
        has_relative_attention_bias: Whether the layer has the table of position biases, which all layers share.
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
        """Compute attention.

        Args:
            hidden_states: Input of shape (B * N, L, D).
            mask: Boolean or additive mask of shape (B, 1, 1 or L, S).
            encoder_states: Encoder states of shape (B, S, D) for cross-attention.
            position_bias: Position bias from the first layer's self-attention, of shape (1 or B, H, L, S). It includes
                `mask` and causality.
            cache: Cache to read and extend.
            **kwargs: Options of the attention function.

        Returns:
            The output (B * N, L, D), the position bias for the next layers, and the attention weights (B * N, H, L, S)
            if the attention implementation returns them.
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
        """Return queries, all keys and values so far, each (B, H, L or S, C), and the number of past positions."""
        query, key, value = (self._split_heads(project(hidden_states)) for project in (self.q, self.k, self.v))
        num_past: int | torch.Tensor = 0
        if cache is not None:
            num_past = cache.get_seq_length(self.layer_idx)
            if isinstance(num_past, torch.Tensor):
                num_past = num_past.clone()  # a static cache updates this counter in place
            own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
            key, value = own.update(key, value, self.layer_idx)
        return query, key, value, num_past

    def _project_encoder(self, encoder_states: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the encoder states, each (B, H, S, C). With a cache, they are computed once."""
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
        """Return the learned bias for each query and key, (1, H, L, S)."""
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
        # when prefilling a static cache, transformers' attention drops the keys of positions that are still empty
        return not (self.is_causal and position_bias.shape[2] < key.shape[2] and position_bias.shape[2] > 1)

    def _add_mask(self, position_bias: torch.Tensor, mask: torch.Tensor | None, key: torch.Tensor) -> torch.Tensor:
        """Add the mask (B, 1, L, S), or causality if there is no mask, to the bias (1, H, L, S)."""
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
    """Layer norm, self-attention and residual connection."""

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
        """(B, L, D) -> (B, L, D), the position bias for all layers, and the attention weights if available."""
        outputs, position_bias, attentions = self.SelfAttention(
            self.layer_norm(hidden_states), mask=attention_mask, position_bias=position_bias, cache=cache, **kwargs
        )
        return hidden_states + self.dropout(outputs), position_bias, attentions


class LionT5LayerCrossAttention(nn.Module):
    """Layer norm, cross-attention to the encoder states and residual connection."""

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
        """(B, L, D) and (B, T, D) -> (B, L, D), and the attention weights if available."""
        outputs, _, attentions = self.EncDecAttention(
            self.layer_norm(hidden_states),
            mask=encoder_attention_mask,
            encoder_states=encoder_hidden_states,
            cache=cache,
            **kwargs,
        )
        return hidden_states + self.dropout(outputs), attentions


class LionT5LayerFF(nn.Module):
    """Layer norm, feed-forward and residual connection, in parallel with adapters that read the unnormalized input."""

    def __init__(self, config: LionT5Config) -> None:
        super().__init__()
        self.DenseReluDense = (T5DenseGatedActDense if config.is_gated_act else T5DenseActDense)(config)
        self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.adapter = LionAdapterMixture(config)

    def forward(self, hidden_states: torch.Tensor, task_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L, D), (B,) -> (B, L, D)."""
        outputs = hidden_states + self.dropout(self.DenseReluDense(self.layer_norm(hidden_states)))
        return outputs + self.adapter(hidden_states, task_type_ids).to(outputs.dtype)


def clamp_float16(hidden_states: torch.Tensor) -> torch.Tensor:
    """Clamp infinite float16 values like T5 in transformers. Other dtypes are returned unchanged."""
    if hidden_states.dtype != torch.float16:
        return hidden_states
    limit = torch.finfo(torch.float16).max - 1000
    return hidden_states.clamp(-limit, limit)


class LionT5Block(GradientCheckpointingLayer):
    """Self-attention, cross-attention (in the decoder only), and the feed-forward layer with its adapters."""

    def __init__(self, config: LionT5Config, layer_idx: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList([LionT5LayerSelfAttention(config, layer_idx)])
        if config.is_decoder:
            self.layer.append(LionT5LayerCrossAttention(config, layer_idx))
        self.feed_forward = LionT5LayerFF(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the block.

        Args:
            hidden_states: Input of shape (B, L, D).
            attention_mask: Mask of the self-attention, from transformers' mask functions.
            position_bias: Position bias from the first block, of shape (1 or B, H, L, S), or `None` in the first block.
            encoder_hidden_states: Encoder states of shape (B, T, D), in the decoder.
            encoder_attention_mask: Mask of the cross-attention.
            task_type_ids: Task of each sample, of shape (B,).
            cache: Cache to read and extend.
            **kwargs: Options of the attention function.

        Returns:
            The output (B, L, D) and the position bias.
        """
        self_attention, *cross_attention = self.layer
        hidden_states, position_bias, _ = self_attention(hidden_states, attention_mask, position_bias, cache, **kwargs)
        hidden_states = clamp_float16(hidden_states)
        for layer in cross_attention:
            if encoder_hidden_states is not None:
                hidden_states, _ = layer(hidden_states, encoder_hidden_states, encoder_attention_mask, cache, **kwargs)
                hidden_states = clamp_float16(hidden_states)
        return clamp_float16(self.feed_forward(hidden_states, task_type_ids)), position_bias


class LionT5PreTrainedModel(BasePreTrainedModel):
    """Base class of the language model, with its initialization and its settings for transformers."""

    config: LionT5Config
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = False  # FlashAttention does not support a position bias
    _can_compile_fullgraph = True
    _skip_keys_device_placement = list(CACHE_NAMES)
    _no_split_modules = ["LionT5Block"]
    # the adapters read the residual stream, which overflows float16, as does the output of T5's `wo`. Quantizers skip
    # these modules, too, and match patterns from the start of a name
    _keep_in_fp32_modules = [r".*\.DenseReluDense\.wo", r".*\.feed_forward\.adapter"]
    _can_record_outputs = {
        "hidden_states": OutputRecorder(LionT5Block, index=0),
        "attentions": OutputRecorder(LionT5LayerSelfAttention, index=-1),
        "cross_attentions": OutputRecorder(LionT5LayerCrossAttention, index=-1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize weights like T5, and adapters like the reference."""
        super()._init_weights(module)
        config, factor = self.config, self.config.initializer_factor
        if isinstance(module, T5LayerNorm):
            init.constant_(module.weight, factor)
        elif isinstance(module, LionT5Model):
            init.normal_(module.shared.weight, std=factor)
        elif isinstance(module, T5DenseActDense | T5DenseGatedActDense):
            for name, layer in module.named_children():
                if isinstance(layer, nn.Linear):
                    width = config.d_ff if name == "wo" else config.d_model
                    init.normal_(layer.weight, std=factor * width**-0.5)
        elif isinstance(module, LionT5Attention):
            init.normal_(module.q.weight, std=factor * (config.d_model * config.d_kv) ** -0.5)
            init.normal_(module.k.weight, std=factor * config.d_model**-0.5)
            init.normal_(module.v.weight, std=factor * config.d_model**-0.5)
            init.normal_(module.o.weight, std=factor * module.o.in_features**-0.5)
            if module.has_relative_attention_bias:
                init.normal_(module.relative_attention_bias.weight, std=factor * config.d_model**-0.5)
        elif isinstance(module, LionAdapter):
            init.kaiming_uniform_(module.down_proj.weight, a=math.sqrt(5))
            init.zeros_(module.up_proj.weight)
            init.ones_(module.scale)
        elif isinstance(module, LionAdapterMixture):
            for index, gate in enumerate(module.router):  # each adapter starts as the expert for one task
                weight = gate.get_parameter("weight")
                init.copy_(weight, torch.eye(len(weight))[:, index : index + 1].expand_as(weight))


class LionT5Stack(LionT5PreTrainedModel):
    """Encoder or decoder of the language model."""

    def __init__(self, config: LionT5Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.is_decoder = config.is_decoder
        self.block = nn.ModuleList(LionT5Block(config, index) for index in range(config.num_layers))
        self.final_layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
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
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run all blocks.

        Args:
            input_ids or inputs_embeds: Token ids of shape (B, L), or embeddings of shape (B, L, D).
            attention_mask: Mask of shape (B, L). In the decoder, it includes the positions in the cache.
            encoder_hidden_states, encoder_attention_mask: Encoder states of shape (B, T, D) and their mask (B, T), in
                the decoder.
            past_key_values, cache: Cache of the decoder, under either name.
            use_cache: Whether to return a cache. Defaults to `config.use_cache`.
            task_type_ids: Task of each sample, of shape (B,).
            **kwargs: Options of transformers.

        Raises:
            ValueError: If not exactly one of `input_ids` and `inputs_embeds` is set, or the cache is passed under both
                names.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        cache = self._choose_cache(resolve_cache(past_key_values, cache), use_cache)
        own_mask, encoder_mask = self._make_masks(
            inputs_embeds, attention_mask, encoder_hidden_states, encoder_attention_mask, cache
        )
        hidden_states, position_bias = self.dropout(inputs_embeds), None
        for block in self.block:  # checkpointing only tracks gradients of positional arguments
            hidden_states, position_bias = block(
                hidden_states,
                own_mask,
                position_bias,
                encoder_hidden_states,
                encoder_mask,
                task_type_ids=task_type_ids,
                cache=cache,
                **kwargs,
            )
        hidden_states = self.dropout(self.final_layer_norm(hidden_states))
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states, **{CACHE_NAME: cache})

    def _choose_cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """Return the cache to extend. The encoder has none, and neither does a decoder with gradient checkpointing."""
        if not self.is_decoder or (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return None
        use_cache = self.config.use_cache if use_cache is None else use_cache
        return EncoderDecoderCache(DynamicCache(), DynamicCache()) if use_cache and cache is None else cache

    def _make_masks(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        cache: Cache | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the masks of self-attention and cross-attention, in the format of the attention implementation."""
        if not self.is_decoder:
            return create_bidirectional_mask(self.config, inputs_embeds, attention_mask), None
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        causal_mask = create_causal_mask(self.config, inputs_embeds, attention_mask, own)
        if encoder_hidden_states is None:
            return causal_mask, None
        return causal_mask, create_bidirectional_mask(
            self.config, inputs_embeds, encoder_attention_mask, encoder_hidden_states
        )


class SharedCrossCache(EncoderDecoderCache):
    """Cache whose cross-attention part is shared by all beams of a sample, so that only the self-attention part is
    reordered.
    """

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the keys and values of the self-attention."""
        self.self_attention_cache.reorder_cache(beam_idx)


def encoder_config(config: LionT5Config) -> LionT5Config:
    """Return the configuration of the encoder. That of the decoder is `config.get_text_config(decoder=True)`."""
    encoder = copy.deepcopy(config)
    encoder.is_decoder = encoder.use_cache = False
    return encoder


class LionT5Model(LionT5PreTrainedModel):
    """FlanT5 with a mixture of adapters: encoder and decoder without a head."""

    _tied_weights_keys = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }
    _keys_to_ignore_on_load_unexpected: list[str] | None = [r"lm_head\.weight$"]  # in checkpoints with a head

    def __init__(self, config: LionT5Config):
        super().__init__(config)
        self._add_modules(config)
        self.post_init()  # after a subclass has added its modules

    def _add_modules(self, config: LionT5Config) -> None:
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = LionT5Stack(encoder_config(config))
        self.decoder = LionT5Stack(config.get_text_config(decoder=True))

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings, which the encoder and the decoder share."""
        return self.shared

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the model, the encoder and the decoder."""
        for module, name in ((self, "shared"), (self.encoder, "embed_tokens"), (self.decoder, "embed_tokens")):
            setattr(module, name, value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: tuple[torch.Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        task_type_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """Run the model like `T5Model.forward`, with a task for each sample.

        The batch size of the decoder may be a multiple of that of the encoder, with the beams or sequences of a sample
        in consecutive rows.

        Args:
            past_key_values, cache: Cache of the decoder, under either name.
            task_type_ids: Task of each sample, of shape (B,): 0 for region level, 1 for image level.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                task_type_ids=task_type_ids,
                return_dict=True,
                **kwargs,
            )
        encoded: Any = encoder_outputs
        if isinstance(encoded, tuple | list):
            encoded = BaseModelOutput(*encoded[:3])
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            cache=resolve_cache(past_key_values, cache),
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            use_cache=use_cache,
            task_type_ids=task_type_ids,
            return_dict=True,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
            **{CACHE_NAME: get_cache(outputs)},
        )


class LionT5ForConditionalGeneration(LionT5Model, GenerationMixin):
    """FlanT5 with a mixture of adapters and a language modeling head.

    As in FlanT5, `lm_head` is not tied to the embeddings.
    """

    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, config: LionT5Config):
        super().__init__(config)
        self.loss_type = "ForMaskedLM"  # the decoder input is shifted, so labels must not be shifted again

    def _add_modules(self, config: LionT5Config) -> None:
        super()._add_modules(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Shift labels right and prepend the decoder start token.

        Args:
            labels: Labels of shape (B, L). -100 is replaced by the padding token.
        """
        start, padding = self.config.decoder_start_token_id, self.config.pad_token_id
        assert start is not None
        assert padding is not None
        shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, padding)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: tuple[torch.Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        task_type_ids: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Compute logits, and the loss if there are labels. See `LionT5Model.forward` for the other arguments.

        Args:
            labels: Labels of shape (B, L). Labels of -100 are ignored. By default, the decoder input is derived from
                them.
            logits_to_keep: Number of last positions to compute logits for, or their indices. 0 means all positions.
            num_items_in_batch: Number of label tokens over all accumulated batches and processes. If set, the loss is
                the sum over the tokens of this batch divided by this number, otherwise their mean.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            if decoder_attention_mask is None:  # like the reference, mask the padding of answers in the decoder
                decoder_attention_mask = (labels != -100).long()
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            task_type_ids=task_type_ids,
            cache=cache,
            return_dict=True,
            **kwargs,
        )
        fields = dict(outputs)
        logits, loss = self._compute_logits(fields.pop("last_hidden_state"), logits_to_keep), None
        if labels is not None:
            loss = self.loss_function(
                logits,
                labels.contiguous(),  # transformers' loss calls `view`, which fails for slices of longer labels
                vocab_size=logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
            )
        return Seq2SeqLMOutput(loss=loss, logits=logits, **fields)

    def _compute_logits(self, states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """Compute logits, (B, L, D) -> (B, number of kept positions, vocabulary size)."""
        states = states[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
        if self.config.scale_decoder_outputs:
            states = states * self.config.d_model**-0.5
        return self.lm_head(states)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Repeat the inputs for each beam, except the encoder states and their mask, which beams share."""
        shared = {}
        if self._shares_encoder(model_kwargs):
            shared = {name: model_kwargs.pop(name, None) for name in ("encoder_outputs", "attention_mask")}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder and not shared,
            input_ids=input_ids,
            **model_kwargs,
        )
        return input_ids, {**model_kwargs, **shared}

    def _shares_encoder(self, model_kwargs: dict[str, Any]) -> bool:
        """Whether beams can share the encoder states, which a cache passed by the caller prevents."""
        is_shareable = self.decoder.config._attn_implementation in SHARING_IMPLEMENTATIONS
        return is_shareable and get_cache(model_kwargs) is None

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Prepare the cache, with `SharedCrossCache` unless the caller passed one."""
        is_own = get_cache(model_kwargs) is None
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        cache = get_cache(model_kwargs)
        if is_own and isinstance(cache, EncoderDecoderCache):
            model_kwargs[CACHE_NAME] = SharedCrossCache(cache.self_attention_cache, cache.cross_attention_cache)


__all__ = [
    "LionAdapter",
    "LionAdapterMixture",
    "LionT5Attention",
    "LionT5Block",
    "LionT5ForConditionalGeneration",
    "LionT5LayerCrossAttention",
    "LionT5LayerFF",
    "LionT5LayerSelfAttention",
    "LionT5Model",
    "LionT5PreTrainedModel",
    "LionT5Stack",
    "SharedCrossCache",
]
