"""The mixture of adapters, and the FlanT5 that carries it in every feed-forward layer.

Source: LION (arXiv:2311.11860), section 3.3, "Mixture of Adapters with Router". The task of each sample travels as the
call argument `task_type_ids` from `forward`/`generate` to the router; no module keeps it.

Shape letters: B batch, T positions, D language-model width, K adapters, R router rows (task types).
"""

import copy
import math
from typing import Any

import torch
from torch import nn
from transformers import T5ForConditionalGeneration
from transformers import initialization as init
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.generation import GenerationConfig, GenerationMode
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions, Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import (
    T5Block,
    T5DenseGatedActDense,
    T5LayerFF,
    T5LayerNorm,
    T5PreTrainedModel,
    T5Stack,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .adapter_folding import FoldedMixture, folded_forward
from .configuration_lion import LionT5Config
from .derived_weights import DerivedWeights, derived_forms, is_wrapped, may_derive, plain_weights
from .initialization import InitializationMixin
from .packed_linear import PackedLinears
from .t5_attention import SHARING_IMPLEMENTATIONS, LionT5Attention, SharedCrossCache

MAX_PACKED_BYTES = 2**30
"""A decoder with more weights than this is packed for the CPU on request only: see `pack_decoder`."""


class LionAdapter(nn.Module):
    """Bottleneck with a learned scale: `scale * up(relu(down(x)))`."""

    def __init__(self, config: LionT5Config):
        super().__init__()
        self.down_proj = nn.Linear(config.d_model, config.adapter_hidden_size)
        self.up_proj = nn.Linear(config.adapter_hidden_size, config.d_model)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D), in the adapter's own dtype."""
        hidden_states = hidden_states.to(self.scale.dtype)
        return self.up_proj(nn.functional.relu(self.down_proj(hidden_states))) * self.scale


class LionAdapterMixture(nn.Module):
    """K adapters on the same input, each weighted by a learned vector of the sample's task; one alone has no router."""

    def __init__(self, config: LionT5Config):
        super().__init__()
        self.adapters = nn.ModuleList([LionAdapter(config) for _ in range(config.num_adapters)])
        self.router = nn.ModuleList()
        if config.num_adapters > 1:
            self.router.extend(nn.Embedding(config.num_task_types, config.d_model) for _ in self.adapters)
        self.folding = DerivedWeights[FoldedMixture]()

    def forward(self, hidden_states: torch.Tensor, task_type_ids: torch.Tensor | None) -> torch.Tensor:
        """(B, T, D), (B,) -> (B, T, D); in inference by the folded weights of `adapter_folding.py`.

        Raises:
            ValueError: if there is a router and no `task_type_ids`.
        """
        if self.router and task_type_ids is None:
            raise ValueError(
                "task_type_ids is missing: with 2 adapters each sample needs its task (0 region level, 1 image level)."
            )
        outputs = folded_forward(self.folding, list(self.adapters), list(self.router), hidden_states, task_type_ids)
        return self._plain_forward(hidden_states, task_type_ids) if outputs is None else outputs

    def _plain_forward(self, hidden_states: torch.Tensor, task_type_ids: torch.Tensor | None) -> torch.Tensor:
        """The mixture as the paper writes it."""
        if not self.router:
            return self.adapters[0](hidden_states)
        first, *others = (
            adapter(hidden_states) * gate(task_type_ids).unsqueeze(1)  # (B, T, D) * (B, 1, D)
            for adapter, gate in zip(self.adapters, self.router, strict=True)
        )
        return sum(others, start=first)


class LionT5LayerFF(T5LayerFF):
    """T5's feed-forward sub-layer with the mixture in parallel, on the same input before its norm."""

    def __init__(self, config: LionT5Config):
        super().__init__(config)
        self.adapter = LionAdapterMixture(config)
        self.packed_inputs = PackedLinears()
        self.packed_output = PackedLinears()

    def forward(self, hidden_states: torch.Tensor, task_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, D), (B,) -> (B, T, D)."""
        outputs = self._inference_forward(hidden_states)
        if outputs is None:
            outputs = super().forward(hidden_states)
        return outputs + self.adapter(hidden_states, task_type_ids).to(outputs.dtype)

    def _inference_forward(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """T5's own part in float32 inference, without dropout and casts; `None` elsewhere."""
        dense = self.DenseReluDense
        if not may_derive(self, hidden_states) or type(dense) is not T5DenseGatedActDense or is_wrapped(dense):
            return None
        linears = [dense.wi_0, dense.wi_1, dense.wo]
        if plain_weights(linears, torch.float32, hidden_states.device) is None:
            return None
        gate, linear = self.packed_inputs(linears[:2], self.layer_norm(hidden_states))
        return hidden_states + self.packed_output(linears[2:], dense.act(gate) * linear)[0]


class LionT5Block(T5Block):
    """T5's block with LION's feed-forward behind it: T5Block hands its own last sub-layer nothing but hidden states."""

    def __init__(
        self, config: LionT5Config, has_relative_attention_bias: bool = False, layer_idx: int | None = None
    ) -> None:
        super().__init__(config, has_relative_attention_bias=has_relative_attention_bias, layer_idx=layer_idx)
        self.layer[-1] = nn.Identity()
        self.layer[0].SelfAttention = LionT5Attention(
            config, has_relative_attention_bias, layer_idx, is_causal=config.is_decoder
        )
        if config.is_decoder:
            self.layer[1].EncDecAttention = LionT5Attention(config, layer_idx=layer_idx)
        self.feed_forward = LionT5LayerFF(config)

    def forward(self, *args: Any, task_type_ids: torch.Tensor | None = None, **kwargs: Any) -> tuple[Any, ...]:
        """As `T5Block.forward`, with the task of each sample, (B,)."""
        hidden_states, *position_biases = super().forward(*args, **kwargs)
        hidden_states = self.feed_forward(hidden_states, task_type_ids)
        if hidden_states.dtype == torch.float16:  # as T5Block guards its own feed-forward
            limit = torch.finfo(torch.float16).max - 1000
            hidden_states = hidden_states.clamp(-limit, limit)
        return hidden_states, *position_biases


class LionT5PreTrainedModel(InitializationMixin, T5PreTrainedModel):
    """Initialisation and loading rules of the language model."""

    config: LionT5Config
    _no_split_modules = ["LionT5Block"]
    # the residual stream that the adapters read outgrows float16, as T5's own `wo` does. Quantisers skip these modules
    # too, and match from the start of a name
    _keep_in_fp32_modules = [r".*\.DenseReluDense\.wo", r".*\.feed_forward\.adapter"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LionAdapter):
            init.kaiming_uniform_(module.down_proj.weight, a=math.sqrt(5))
            init.zeros_(module.up_proj.weight)
            init.ones_(module.scale)
        elif isinstance(module, LionAdapterMixture):
            for index, gate in enumerate(module.router):  # adapter 0 starts as row 0's expert, adapter 1 as row 1's
                weight = gate.get_parameter("weight")
                init.copy_(weight, torch.eye(len(weight))[:, index : index + 1].expand_as(weight))


class LionT5Stack(LionT5PreTrainedModel, T5Stack):
    """T5's encoder or decoder, built from `LionT5Block`."""

    def __init__(self, config: LionT5Config):
        super(T5Stack, self).__init__(config)  # not T5Stack's own, which would build T5's blocks
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.is_decoder = config.is_decoder
        self.block = nn.ModuleList(
            LionT5Block(config, has_relative_attention_bias=index == 0, layer_idx=index)
            for index in range(config.num_layers)
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """As `T5Stack.forward`; before a first token, forms that inference derived from other weights are dropped."""
        drop_stale_forms(self, past_key_values)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class LionT5ForConditionalGeneration(LionT5PreTrainedModel, T5ForConditionalGeneration):
    """FlanT5 with the mixture of adapters, an `lm_head` of its own, and a loss that the Trainer scales right."""

    # T5 in transformers also ties lm_head; FlanT5's is a tensor of its own
    _tied_weights_keys = {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }

    def __init__(self, config: LionT5Config):
        super(T5ForConditionalGeneration, self).__init__(config)  # not T5's own, which would build T5's stacks
        self.model_dim = config.d_model
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = LionT5Stack(stack_config(config, is_decoder=False))
        self.decoder = LionT5Stack(stack_config(config, is_decoder=True))
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.packed_head = PackedLinears()
        self.loss_type = "ForMaskedLM"  # labels stand where their logits stand: the decoder input is what is shifted
        self.post_init()
        weights = [*self.decoder.block.parameters(), *self.lm_head.parameters()]
        self.pack_decoder(4 * sum(weight.numel() for weight in weights) <= MAX_PACKED_BYTES)

    def pack_decoder(self, enabled: bool = True) -> None:
        """Whether decoding in float32 on the CPU keeps a second copy of the decoder's weights, which it reads faster.

        It is made at the first generated token. By default so for decoders of up to a GiB.
        """
        for form in (*derived_forms(self.decoder), self.packed_head):
            if isinstance(form, PackedLinears):
                form.enabled = enabled
                form.drop()

    def train(self, mode: bool = True) -> "LionT5ForConditionalGeneration":
        """As of all modules; what inference derived from the weights is dropped."""
        for form in derived_forms(self):
            form.drop()
        return super().train(mode)

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
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """As `T5ForConditionalGeneration.forward`, with the task of each sample and a loss that counts tokens.

        The decoder may have a multiple of the encoder's samples: so many beams or sequences of each sample, one behind
        the other.

        Args:
            logits_to_keep: number of last positions to compute logits of, or the positions; 0 stands for all.
            task_type_ids: (B,), 0 region level, 1 image level.
            num_items_in_batch: number of label tokens over all accumulated batches and processes. When given, the loss
                is the sum over this batch's tokens divided by it; otherwise it is their mean.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
            if decoder_attention_mask is None:  # the reference masks the answers' padding in the decoder too
                decoder_attention_mask = (labels != -100).long()
        if starts_anew(past_key_values):
            self.packed_head.drop_if_stale()
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
            past_key_values=past_key_values,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            use_cache=use_cache,
            task_type_ids=task_type_ids,
            return_dict=True,
            **kwargs,
        )
        logits, loss = self._compute_logits(outputs.last_hidden_state, logits_to_keep), None
        if labels is not None:
            loss = self.loss_function(
                logits,
                labels.contiguous(),  # a slice of longer labels is not, and transformers' loss takes a view
                vocab_size=logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
            )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )

    def _compute_logits(self, states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T or as many as are kept, vocabulary)."""
        states = states[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]
        if self.config.scale_decoder_outputs:
            states = states * self.model_dim**-0.5
        return self.packed_head([self.lm_head], states)[0]

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.Tensor | None, dict[str, Any]]:
        """Repeat what each beam has of its own; the encoder's states and their mask are one for all of a sample."""
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
        """Whether beams can read one copy of the encoder's states: not with a cache that the caller made."""
        is_shareable = self.decoder.config._attn_implementation in SHARING_IMPLEMENTATIONS
        return is_shareable and model_kwargs.get("past_key_values") is None

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """As of all models, with a cache whose cross-attention part stays where it is."""
        is_own = model_kwargs.get("past_key_values") is None
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        cache = model_kwargs.get("past_key_values")
        if is_own and isinstance(cache, EncoderDecoderCache):
            model_kwargs["past_key_values"] = SharedCrossCache(cache.self_attention_cache, cache.cross_attention_cache)


def starts_anew(past_key_values: Cache | None) -> bool:
    """Whether nothing was decoded yet (while compiling, nobody asks)."""
    if torch.compiler.is_compiling():
        return False
    return past_key_values is None or int(past_key_values.get_seq_length()) == 0


def drop_stale_forms(module: nn.Module, past_key_values: Cache | None) -> None:
    """Forget what inference derived from weights of `module` that are others by now, before a first token."""
    if not module.training and starts_anew(past_key_values):
        for form in derived_forms(module):
            form.drop_if_stale()


def stack_config(config: LionT5Config, is_decoder: bool) -> LionT5Config:
    """The configuration of one stack, as T5 derives it from the model's."""
    stack = copy.deepcopy(config)
    stack.is_decoder = is_decoder
    if is_decoder:
        stack.num_layers = config.num_decoder_layers
    else:
        stack.use_cache = False
    return stack


__all__ = ["LionAdapterMixture", "LionT5Block", "LionT5ForConditionalGeneration", "LionT5Stack"]
