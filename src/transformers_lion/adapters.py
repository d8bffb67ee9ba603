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
from transformers.cache_utils import Cache
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.models.t5.modeling_t5 import T5Block, T5LayerFF, T5LayerNorm, T5PreTrainedModel, T5Stack
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_lion import LionT5Config
from .initialization import InitializationMixin


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

    def forward(self, hidden_states: torch.Tensor, task_type_ids: torch.Tensor | None) -> torch.Tensor:
        """(B, T, D), (B,) -> (B, T, D).

        Raises:
            ValueError: if there is a router and no `task_type_ids`.
        """
        if not self.router:
            return self.adapters[0](hidden_states)
        if task_type_ids is None:
            raise ValueError(
                "task_type_ids is missing: with 2 adapters each sample needs its task (0 region level, 1 image level)."
            )
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

    def forward(self, hidden_states: torch.Tensor, task_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, D), (B,) -> (B, T, D)."""
        outputs = super().forward(hidden_states)
        return outputs + self.adapter(hidden_states, task_type_ids).to(outputs.dtype)


class LionT5Block(T5Block):
    """T5's block with LION's feed-forward behind it: T5Block hands its own last sub-layer nothing but hidden states."""

    def __init__(
        self, config: LionT5Config, has_relative_attention_bias: bool = False, layer_idx: int | None = None
    ) -> None:
        super().__init__(config, has_relative_attention_bias=has_relative_attention_bias, layer_idx=layer_idx)
        self.layer[-1] = nn.Identity()
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
        self.loss_type = "ForMaskedLM"  # labels stand where their logits stand: the decoder input is what is shifted
        self.post_init()

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
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """As `T5ForConditionalGeneration.forward`, with the task of each sample and a loss that counts tokens.

        Args:
            task_type_ids: (B,), 0 region level, 1 image level.
            num_items_in_batch: number of label tokens over all accumulated batches and processes. When given, the loss
                is the sum over this batch's tokens divided by it; otherwise it is their mean.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
            if decoder_attention_mask is None:  # the reference masks the answers' padding in the decoder too
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
            return_dict=True,
            **kwargs,
        )
        if labels is None:
            return outputs
        loss = self.loss_function(
            outputs.logits,
            labels.contiguous(),  # a slice of longer labels is not, and transformers' loss takes a view
            vocab_size=outputs.logits.shape[-1],
            num_items_in_batch=num_items_in_batch,
        )
        return Seq2SeqLMOutput(loss=loss, **outputs)


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
