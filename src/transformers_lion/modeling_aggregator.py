"""Vision aggregator: combines spatial features from three depths of the vision tower for the language model.

Source: LION (arXiv:2311.11860), section 3.2, "Vision Aggregator". The sub-layers are the post-norm BERT layers of
InstructBLIP's Q-Former in transformers. There are no masks, so attention is bidirectional.

Shape letters: B batch, P patches and CLS, V vision width, D language model width.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.models.instructblip.modeling_instructblip import (
    InstructBlipQFormerAttention,
    InstructBlipQFormerIntermediate,
    InstructBlipQFormerMultiHeadAttention,
    InstructBlipQFormerOutput,
    InstructBlipQFormerSelfOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_lion import LionAggregatorConfig
from .modeling_utils import BasePreTrainedModel

ATTENTION_RECORDERS = {
    "attentions": OutputRecorder(InstructBlipQFormerMultiHeadAttention, index=1, layer_name="attention.attention"),
    "cross_attentions": OutputRecorder(InstructBlipQFormerMultiHeadAttention, index=1, layer_name="crossattention"),
}
"""Modules whose attentions are recorded. InstructBLIP's own pattern records cross-attentions as self-attentions."""


class LionAggregatorLayer(GradientCheckpointingLayer):
    """Post-norm layer of self-attention, cross-attention to one depth of the vision tower, and feed-forward layer."""

    def __init__(self, config: LionAggregatorConfig):
        super().__init__()
        self.attention = InstructBlipQFormerAttention(config)
        self.crossattention = InstructBlipQFormerAttention(config, is_cross_attention=True)
        self.intermediate = InstructBlipQFormerIntermediate(config)
        self.output = InstructBlipQFormerOutput(config)

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """(B, P, V) and (B, P, V) -> (B, P, V)."""
        hidden_states = self.attention(hidden_states, **kwargs)
        hidden_states = self.crossattention(hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs)
        return self.output(self.intermediate(hidden_states), hidden_states)


class LionVisionAggregator(BasePreTrainedModel):
    """Layers that refine the features of the first entry of `vision_feature_layers` with those of the others."""

    config: LionAggregatorConfig
    main_input_name = "hidden_states"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["LionAggregatorLayer"]
    _can_record_outputs = {
        "hidden_states": LionAggregatorLayer,
        **ATTENTION_RECORDERS,
    }

    def __init__(self, config: LionAggregatorConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([LionAggregatorLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # every sub-layer starts as the identity: its output projection is zero
        if isinstance(module, InstructBlipQFormerSelfOutput | InstructBlipQFormerOutput):
            init.zeros_(module.dense.weight)

    @capture_outputs
    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: tuple[torch.Tensor, ...],
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithCrossAttentions:
        """Run the layers.

        Args:
            hidden_states: Output of the block in `vision_feature_layers[0]`, of shape (B, P, V).
            encoder_hidden_states: Outputs of the other blocks in order, one per layer, each of shape (B, P, V).

        Returns:
            `last_hidden_state` of shape (B, P, V), and the hidden states and attentions of each layer if requested.
        """
        for layer, states in zip(self.layers, encoder_hidden_states, strict=True):
            hidden_states = layer(hidden_states, states, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)


class LionAggregatorProjection(nn.Module):
    """Layer norm and two-layer MLP from the aggregator to the language model."""

    def __init__(self, config: LionAggregatorConfig, text_hidden_size: int):
        super().__init__()
        assert config.hidden_size is not None  # LionConfig sets both
        assert config.projection_intermediate_size is not None
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.projection_layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.projection_intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.projection_intermediate_size, text_hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, P, V) -> (B, P, D)."""
        return self.fc2(self.activation_fn(self.fc1(self.layernorm(hidden_states))))


__all__ = ["LionAggregatorLayer", "LionAggregatorProjection", "LionVisionAggregator"]
