"""LION: vision tower -> Q-Former and aggregator -> merge with the prompt -> language model with adapters.

Source: LION (arXiv:2311.11860), section 3. The vision tower and the Q-Former are those of transformers. The aggregator
is in `modeling_aggregator.py`, the language model in `modeling_lion_t5.py`; the soft prompt and the merge are here.
Reading order: `LionModel.get_image_features`, `get_query_features`, `encode`, `forward`, and
`LionForConditionalGeneration`, which adds the head, the loss and `generate`.

Shape letters: B batch, P patches and CLS, Q query tokens, T text tokens, E encoder positions (Q + P + T), L label
tokens, V vision width, D language model width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithCrossAttentions,
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.models.instructblip.modeling_instructblip import (
    InstructBlipQFormerLayer,
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .compatibility import CACHE_NAMES, rename_cache, resolve_cache
from .configuration_lion import LionConfig, LionQFormerConfig, LionVisionConfig
from .modeling_aggregator import ATTENTION_RECORDERS, LionAggregatorProjection, LionVisionAggregator
from .modeling_lion_t5 import LionT5ForConditionalGeneration, LionT5Model
from .modeling_utils import BasePreTrainedModel

TEXT_INPUTS = (
    "input_ids", "attention_mask", "qformer_input_ids", "qformer_attention_mask", "task_type_ids", "image_indices",
    "labels",
)  # fmt: skip
"""Outputs of the processor that do not depend on the image."""

PEFT_PROMPT_LEARNING_PROBE = "embeddings.word_embeddings"
"""Name of a module that PEFT looks up only to set up prompt learning. LION has no module with this name."""


@dataclass
class LionImageFeatures(BaseModelOutputWithPooling):
    """Question-independent image features, which can be reused for any number of questions.

    Attributes:
        last_hidden_state: Output of the vision tower that the Q-Former reads, of shape (B, P, V). It includes the final
            layer norm if the model has a Q-Former branch.
        pooler_output: Projected features of the aggregator, of shape (B, P, D), or `None` without an aggregator branch.
        hidden_states, attentions: Hidden states and attentions of the vision tower, if requested.
        aggregator_outputs: Output (B, P, V) of the aggregator, with its hidden states and attentions if requested.
    """

    aggregator_outputs: BaseModelOutputWithCrossAttentions | None = None

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return self.last_hidden_state.shape[0]

    def repeat_interleave(self, repeats: int | torch.Tensor) -> "LionImageFeatures":
        """Repeat the features of each image to match its questions.

        Args:
            repeats: Number of repetitions, for all images or for each one as a tensor of shape (B,).
        """
        return LionImageFeatures(
            last_hidden_state=self.last_hidden_state.repeat_interleave(repeats, dim=0),
            pooler_output=None if self.pooler_output is None else self.pooler_output.repeat_interleave(repeats, dim=0),
        )

    def select(self, image_indices: torch.Tensor) -> "LionImageFeatures":
        """Select the image features for each question.

        Args:
            image_indices: Image index of each question, of shape (B,).

        Raises:
            ValueError: If an index is out of range. Only indices on the CPU are checked.
        """
        if image_indices.device.type == "cpu" and not torch.compiler.is_compiling() and image_indices.numel():
            first, last = int(image_indices.min()), int(image_indices.max())
            if first < 0 or last >= self.batch_size:
                wrong = first if first < 0 else last
                raise ValueError(
                    f"image_indices contains {wrong}, which is out of range for {self.batch_size} images, numbered "
                    "from 0."
                )
        image_indices = image_indices.to(self.last_hidden_state.device)
        return LionImageFeatures(
            last_hidden_state=self.last_hidden_state.index_select(0, image_indices),
            pooler_output=None if self.pooler_output is None else self.pooler_output.index_select(0, image_indices),
        )

    def match(self, batch_size: int, image_indices: torch.Tensor | None = None) -> "LionImageFeatures":
        """Match the features to a batch of questions.

        Args:
            batch_size: Number of questions.
            image_indices: Image index of each question. By default, a single image is used for all questions, and
                several images are matched to the questions in order.

        Raises:
            ValueError: If the number of questions does not match the number of images or indices.
        """
        if image_indices is not None:
            if image_indices.shape != (batch_size,):
                raise ValueError(
                    f"image_indices has shape {tuple(image_indices.shape)}, but must have shape ({batch_size},) for "
                    f"{batch_size} prompts."
                )
            return self.select(image_indices)
        if self.batch_size == batch_size:
            return self
        if self.batch_size == 1:
            return self.repeat_interleave(batch_size)
        raise ValueError(
            f"Got {self.batch_size} images for {batch_size} prompts. Pass one image, one image per prompt, or "
            "image_indices with the index of each prompt's image."
        )


@dataclass
class LionEncoderOutput(BaseModelOutput):
    """Output of `LionModel.encode`, with everything that the decoder needs.

    Attributes:
        last_hidden_state: Output of the language model's encoder, of shape (B, E, D).
        hidden_states, attentions: Hidden states and attentions of that encoder, if requested.
        attention_mask: Mask of shape (B, E), 1 for visual positions and the prompt, 0 for padding.
        image_hidden_states: Visual features that precede the text in the encoder, of shape (B, Q + P, D).
        vision_outputs: Image features, one row per prompt.
        qformer_outputs: Output of the Q-Former, or `None` without a Q-Former branch.
        aggregator_outputs: Output of the aggregator, or `None` without an aggregator branch or if image features were
            passed in.
    """

    attention_mask: torch.Tensor | None = None
    image_hidden_states: torch.Tensor | None = None
    vision_outputs: LionImageFeatures | None = None
    qformer_outputs: BaseModelOutputWithPoolingAndCrossAttentions | None = None
    aggregator_outputs: BaseModelOutputWithCrossAttentions | None = None

    @property
    def visual_outputs(self) -> dict[str, Any]:
        """Outputs of the parts before the language model, by name."""
        names = ("image_hidden_states", "vision_outputs", "qformer_outputs", "aggregator_outputs")
        return {name: getattr(self, name) for name in names}

    def select(self, rows: torch.Tensor) -> "LionEncoderOutput":
        """Select samples to decode. An index may occur more than once.

        Args:
            rows: Indices of samples, of shape (N,).
        """
        return LionEncoderOutput(
            last_hidden_state=self.last_hidden_state[rows],
            attention_mask=None if self.attention_mask is None else self.attention_mask[rows],
        )


@dataclass
class LionModelOutput(Seq2SeqModelOutput):
    """Output of the language model without a head, and of the visual parts.

    Attributes:
        image_hidden_states, vision_outputs, qformer_outputs, aggregator_outputs: See `LionEncoderOutput`.
    """

    image_hidden_states: torch.Tensor | None = None
    vision_outputs: LionImageFeatures | None = None
    qformer_outputs: BaseModelOutputWithPoolingAndCrossAttentions | None = None
    aggregator_outputs: BaseModelOutputWithCrossAttentions | None = None


@dataclass
class LionSeq2SeqLMOutput(Seq2SeqLMOutput):
    """Output of the language model and of the visual parts.

    Attributes:
        image_hidden_states, vision_outputs, qformer_outputs, aggregator_outputs: See `LionEncoderOutput`.
    """

    image_hidden_states: torch.Tensor | None = None
    vision_outputs: LionImageFeatures | None = None
    qformer_outputs: BaseModelOutputWithPoolingAndCrossAttentions | None = None
    aggregator_outputs: BaseModelOutputWithCrossAttentions | None = None


@dataclass
class LionVisionModelOutput(BaseModelOutput):
    """Output of the vision tower.

    Attributes:
        last_hidden_state: Output after the final layer norm, of shape (B, P, V).
        feature_maps: Output of each block in `feature_layers`, in that order and before the final layer norm, each of
            shape (B, P, V).
    """

    feature_maps: tuple[torch.Tensor, ...] | None = None


@dataclass
class LionVisionStates(ModelOutput):
    """Outputs of the vision tower that do not change during training, because the tower is frozen.

    Attributes:
        feature_maps: Output of each block in `LionModel.vision_state_layers`, before the final layer norm, each of
            shape (B, P, V).
    """

    feature_maps: tuple[torch.Tensor, ...] | None = None


class LionVisionModel(InstructBlipVisionModel):
    """InstructBLIP's EVA-ViT-g, with a separate epsilon for the final layer norm."""

    config: LionVisionConfig

    def __init__(self, config: LionVisionConfig):
        super().__init__(config)
        self.post_layernorm.eps = config.post_layernorm_eps

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        feature_layers: Sequence[int] = (),
        **kwargs: Unpack[TransformersKwargs],
    ) -> LionVisionModelOutput:
        """Run the vision tower.

        Args:
            pixel_values: Preprocessed pixels of shape (B, 3, H, W).
            interpolate_pos_encoding: Whether to interpolate the position embeddings for other image sizes.
            feature_layers: Zero-based indices of the blocks to return in `feature_maps`. (`output_hidden_states` would
                keep the outputs of all 39 blocks.)

        Raises:
            ValueError: If the image size differs from the configured size and `interpolate_pos_encoding` is `False`.
        """
        height, width = pixel_values.shape[-2:]
        size = self.config.image_size
        expected = (size, size) if isinstance(size, int) else tuple(size)
        if not interpolate_pos_encoding and (height, width) != expected:
            raise ValueError(
                f"pixel_values are {height}x{width}, but the vision tower expects {expected[0]}x{expected[1]}. Pass "
                "interpolate_pos_encoding=True to use other sizes."
            )
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        kept = {}
        for index, block in enumerate(self.encoder.layers):
            hidden_states = block(hidden_states, **kwargs)
            if index in feature_layers:
                kept[index] = hidden_states
        return LionVisionModelOutput(
            last_hidden_state=self.post_layernorm(hidden_states),
            feature_maps=tuple(kept[index] for index in feature_layers),
        )


class LionQFormerModel(InstructBlipQFormerModel):
    """InstructBLIP's text-conditioned Q-Former. It records self-attentions and cross-attentions separately."""

    config: LionQFormerConfig
    _can_record_outputs = {"hidden_states": InstructBlipQFormerLayer, **ATTENTION_RECORDERS}


class LionPreTrainedModel(BasePreTrainedModel):
    """Base class of LION's models, with their settings for transformers."""

    config: LionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = list(CACHE_NAMES)
    _no_split_modules = [
        "InstructBlipVisionEmbeddings",  # has parameters of its own, so offloading needs a hook on the whole module
        "InstructBlipEncoderLayer",
        "InstructBlipQFormerLayer",
        "LionAggregatorLayer",
        "LionT5Block",
    ]

    def get_submodule(self, target: str) -> nn.Module:
        """Return a submodule like `nn.Module.get_submodule`.

        Raises:
            ValueError: If PEFT sets up prompt learning. PEFT passes the learned prefix to the outer model, but the
                inner language model generates the answers, so the prefix would be trained and then ignored.
        """
        if target == PEFT_PROMPT_LEARNING_PROBE:
            raise ValueError(
                f"{type(self).__name__} does not support PEFT's prompt learning (prefix tuning, prompt tuning, "
                "p-tuning) because generate would ignore the learned prompt. Use LoRA, DoRA, IA3, LoKr or OFT."
            )
        return super().get_submodule(target)


class LionModel(LionPreTrainedModel):
    """LION without a head: vision tower, Q-Former, aggregator, and the encoder and decoder of the language model.

    Weights have the same names as in `LionForConditionalGeneration`, so each class loads checkpoints of the other.
    """

    language_model_class: type[LionT5Model] = LionT5Model

    def __init__(self, config: LionConfig):
        super().__init__(config)
        text_width = config.text_config.d_model
        self.vision_model = LionVisionModel(config.vision_config)
        if config.uses_qformer:
            self.query_tokens = nn.Embedding(config.num_query_tokens, config.qformer_config.hidden_size)
            self.qformer = LionQFormerModel(config.qformer_config)
            self.language_projection = nn.Linear(config.qformer_config.hidden_size, text_width)
        else:
            self.vision_model.post_layernorm = nn.Identity()  # only the Q-Former reads its output
        if config.uses_aggregator:
            self.aggregator = LionVisionAggregator(config.aggregator_config)
            self.aggregator_projection = LionAggregatorProjection(config.aggregator_config, text_width)
        if config.use_soft_prompt:
            self.soft_prompt = nn.Embedding(1, text_width)
        self.language_model = self.language_model_class(config.text_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.config.use_soft_prompt:
            init.normal_(self.soft_prompt.weight, std=self.config.text_config.initializer_factor)

    def train(self, mode: bool = True) -> "LionModel":
        """Set the training mode. A vision tower with only frozen blocks stays in eval mode, as in the reference."""
        super().train(mode)
        tower = self.vision_model
        blocks = [*tower.embeddings.parameters(), *tower.encoder.parameters()]
        if not any(parameter.requires_grad for parameter in blocks):
            tower.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the language model."""
        self.language_model.set_input_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, **kwargs: Any) -> nn.Module:
        """Resize the token embeddings like `PreTrainedModel.resize_token_embeddings`.

        Raises:
            ValueError: If the new vocabulary does not include the soft prompt marker.
        """
        marker = self.config.soft_prompt_token_id
        if new_num_tokens is not None and self.config.use_soft_prompt and new_num_tokens <= marker:
            raise ValueError(
                f"new_num_tokens is {new_num_tokens}, but must be greater than soft_prompt_token_id ({marker})."
            )
        return super().resize_token_embeddings(new_num_tokens, **kwargs)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the vision tower for `modality="image"`, otherwise the encoder of the language model."""
        return self.vision_model if modality == "image" else self.language_model.get_encoder()

    def get_decoder(self) -> nn.Module:
        """Return the decoder of the language model."""
        return self.language_model.get_decoder()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        chunk_size: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LionImageFeatures:
        """Compute the question-independent image features with the vision tower, the aggregator and its projection.

        Args:
            pixel_values: Preprocessed pixels of shape (B, 3, H, W).
            interpolate_pos_encoding: Whether to interpolate the position embeddings for other image sizes.
            output_hidden_states: Whether to return the hidden states of the vision tower and the aggregator.
            chunk_size: Number of images to encode at a time, which limits memory use. Hidden states and attentions are
                then not returned.
            **kwargs: Options of transformers. Text inputs are ignored, so the output of the processor can be passed.

        Returns:
            Features that `forward` and `generate` accept as `image_features=` instead of pixels.

        Raises:
            ValueError: If `chunk_size` is less than 1.
        """
        if chunk_size is not None:
            if chunk_size < 1:
                raise ValueError(f"chunk_size is {chunk_size}, but must be at least 1.")
            return concatenate_features(
                [
                    self.get_image_features(
                        pixels, interpolate_pos_encoding, output_hidden_states=False, return_dict=True, **kwargs
                    )
                    for pixels in pixel_values.split(chunk_size)
                ]
            )
        kwargs = {name: value for name, value in kwargs.items() if name not in TEXT_INPUTS}
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        vision_outputs = self.vision_model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            feature_layers=self.config.aggregator_config.vision_feature_layers if self.config.uses_aggregator else (),
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        return self._aggregate(vision_outputs, output_hidden_states=output_hidden_states, **kwargs)

    @property
    def vision_state_layers(self) -> tuple[int, ...]:
        """Zero-based indices of the vision tower's blocks whose outputs `get_vision_states` returns."""
        taps = self.config.aggregator_config.vision_feature_layers if self.config.uses_aggregator else ()
        return tuple(dict.fromkeys([*taps, self.config.vision_config.num_hidden_layers - 1]))

    def get_vision_states(self, pixel_values: torch.Tensor) -> LionVisionStates:
        """Compute the part of `get_image_features` that does not change during training.

        Args:
            pixel_values: Preprocessed pixels of shape (B, 3, H, W).

        Returns:
            States that `forward` accepts as `image_features=`. They can be reused while the vision tower is frozen.
        """
        outputs = self.vision_model(
            pixel_values=pixel_values, feature_layers=self.vision_state_layers, return_dict=True
        )
        return LionVisionStates(feature_maps=outputs.feature_maps)

    def complete_image_features(
        self, states: LionVisionStates, output_hidden_states: bool | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> LionImageFeatures:
        """Compute the remaining part of `get_image_features` from the output of `get_vision_states`.

        Args:
            states: Output of `get_vision_states`.
            output_hidden_states: Whether to return the hidden states of the aggregator.
            **kwargs: Options of transformers.

        Raises:
            ValueError: If `states` does not have one feature map for each of `vision_state_layers`.
        """
        layers, maps = self.vision_state_layers, states.feature_maps or ()
        if len(layers) != len(maps):
            raise ValueError(
                f"Got {len(maps)} feature_maps, but expected one for each of the {len(layers)} blocks {layers}."
            )
        found, last = dict(zip(layers, maps, strict=True)), self.config.vision_config.num_hidden_layers - 1
        taps = self.config.aggregator_config.vision_feature_layers if self.config.uses_aggregator else ()
        vision_outputs = LionVisionModelOutput(
            last_hidden_state=self.vision_model.post_layernorm(found[last]),
            feature_maps=tuple(found[layer] for layer in taps),
        )
        return self._aggregate(vision_outputs, output_hidden_states=output_hidden_states, **kwargs)

    def _aggregate(self, vision_outputs: LionVisionModelOutput, **kwargs: Any) -> LionImageFeatures:
        """Run the aggregator and its projection on the vision tower's outputs, and return the image features."""
        aggregator_outputs = projected = None
        if self.config.uses_aggregator:
            assert vision_outputs.feature_maps is not None
            start, *depths = vision_outputs.feature_maps
            aggregator_outputs = self.aggregator(start, tuple(depths), return_dict=True, **kwargs)
            projected = self.aggregator_projection(aggregator_outputs.last_hidden_state)
        return LionImageFeatures(
            last_hidden_state=vision_outputs.last_hidden_state,
            pooler_output=projected,
            hidden_states=vision_outputs.hidden_states,
            attentions=vision_outputs.attentions,
            aggregator_outputs=aggregator_outputs,
        )

    def get_query_features(
        self,
        image_features: LionImageFeatures,
        qformer_input_ids: torch.Tensor | None,
        qformer_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, BaseModelOutputWithPoolingAndCrossAttentions]:
        """Compute the question-dependent features with the Q-Former and its projection.

        Args:
            image_features: Image features, one row per question.
            qformer_input_ids: Question without tags, tokenized for the Q-Former, of shape (B, T').
            qformer_attention_mask: Mask of the question, of shape (B, T').
            **kwargs: Options of transformers.

        Returns:
            The projected features of shape (B, Q, D), and the output of the Q-Former.

        Raises:
            ValueError: If `qformer_input_ids` is missing or too long, or batch sizes differ.
        """
        if qformer_input_ids is None:
            raise ValueError("qformer_input_ids is missing. The Q-Former reads both the image and the question.")
        num_queries = self.config.num_query_tokens
        query_embeds = self.query_tokens(torch.arange(num_queries, device=qformer_input_ids.device))
        batch_size, length = qformer_input_ids.shape
        if batch_size != image_features.batch_size:
            raise ValueError(
                f"qformer_input_ids has {batch_size} questions, but there are {image_features.batch_size} samples."
            )
        limit = self.config.qformer_config.max_position_embeddings
        if length > limit:
            raise ValueError(f"qformer_input_ids has {length} tokens, but the Q-Former accepts at most {limit}.")
        if qformer_attention_mask is None:
            qformer_attention_mask = torch.ones_like(qformer_input_ids)
        qformer_outputs = self.qformer(
            input_ids=qformer_input_ids,
            attention_mask=prepend_ones(qformer_attention_mask, num_queries),
            query_embeds=query_embeds.expand(batch_size, -1, -1),
            encoder_hidden_states=image_features.last_hidden_state,
            return_dict=True,
            **kwargs,
        )
        return self.language_projection(qformer_outputs.last_hidden_state[:, :num_queries]), qformer_outputs

    def embed_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed tokens, (B, T) -> (B, T, D), and insert the soft prompt at its marker."""
        inputs_embeds = self.get_input_embeddings()(input_ids)
        if not self.config.use_soft_prompt:
            return inputs_embeds
        soft_prompt = self.soft_prompt(torch.zeros_like(input_ids[:1, :1]))  # (1, 1, D)
        is_marker = (input_ids == self.config.soft_prompt_token_id).unsqueeze(-1)
        return torch.where(is_marker, soft_prompt.to(inputs_embeds), inputs_embeds)

    @can_return_tuple
    def encode(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        image_features: LionImageFeatures | LionVisionStates | None = None,
        image_indices: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LionEncoderOutput:
        """Encode images and prompts. This is everything before the decoder.

        Args:
            pixel_values: Preprocessed pixels of shape (B, 3, H, W), or (1, 3, H, W) for one image shared by all
                prompts.
            input_ids: Prompt, consisting of the tag sentence and the question, of shape (B, T).
            attention_mask: Mask of the prompt, of shape (B, T). Visual positions are never masked.
            qformer_input_ids, qformer_attention_mask: Question without tags for the Q-Former, and its mask, of shape
                (B, T').
            task_type_ids: Task of each sample, of shape (B,): 0 for region level, 1 for image level. Required if the
                model has two adapters.
            image_features: Output of `get_image_features` or `get_vision_states` to use instead of `pixel_values`.
            image_indices: Index of each prompt's image in `pixel_values` or `image_features`, of shape (B,), so that an
                image with several questions is encoded only once. By default, images and prompts are matched in order.
            inputs_embeds: Embeddings of shape (B, T, D) to use instead of `input_ids`. `embed_text` computes them,
                including the soft prompt.
            interpolate_pos_encoding: Whether to interpolate the position embeddings for other image sizes.
            **kwargs: Options of transformers.

        Returns:
            Output that `forward` accepts as `encoder_outputs=`. It can be reused.

        Raises:
            ValueError: If not exactly one of `pixel_values` and `image_features`, or of `input_ids` and
                `inputs_embeds`, is set; if the numbers of images, prompts and tasks do not match; or if
                `task_type_ids` or `qformer_input_ids` is missing.
        """
        inputs_embeds = self._embed_prompt(input_ids, inputs_embeds, task_type_ids)
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Pass exactly one of pixel_values and image_features (from `get_image_features`).")
        if image_features is None:
            image_features = self.get_image_features(pixel_values, interpolate_pos_encoding, return_dict=True, **kwargs)
        elif isinstance(image_features, LionVisionStates):
            image_features = self.complete_image_features(image_features, **kwargs)
        image_features = image_features.match(inputs_embeds.shape[0], image_indices)
        visual_features, qformer_outputs = self._project_images(
            image_features, qformer_input_ids, qformer_attention_mask, **kwargs
        )
        image_hidden_states = torch.cat([features.to(inputs_embeds) for features in visual_features], dim=1)
        attention_mask = prompt_mask(attention_mask, inputs_embeds)
        attention_mask = prepend_ones(attention_mask, image_hidden_states.shape[1])
        outputs = self.language_model.encoder(
            inputs_embeds=torch.cat([image_hidden_states, inputs_embeds], dim=1),
            attention_mask=attention_mask,
            task_type_ids=task_type_ids,
            return_dict=True,
            **kwargs,
        )
        return LionEncoderOutput(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            attention_mask=attention_mask,
            image_hidden_states=image_hidden_states,
            vision_outputs=image_features,
            qformer_outputs=qformer_outputs,
            aggregator_outputs=image_features.aggregator_outputs,
        )

    def _embed_prompt(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        task_type_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """Check the arguments that do not concern the image, and return the prompt embeddings (B, T, D)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if input_ids is not None:
            inputs_embeds = self.embed_text(input_ids)
        assert inputs_embeds is not None
        if self.config.text_config.num_adapters > 1:
            check_task_type_ids(task_type_ids, inputs_embeds.shape[0], self.config.text_config.num_task_types)
        return inputs_embeds

    def _project_images(
        self,
        image_features: LionImageFeatures,
        qformer_input_ids: torch.Tensor | None,
        qformer_attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[list[torch.Tensor], BaseModelOutputWithPoolingAndCrossAttentions | None]:
        """Return the features of each branch, (B, Q, D) and (B, P, D), and the output of the Q-Former."""
        features: list[torch.Tensor] = []
        qformer_outputs = None
        if self.config.uses_qformer:
            query_features, qformer_outputs = self.get_query_features(
                image_features, qformer_input_ids, qformer_attention_mask, **kwargs
            )
            features.append(query_features)
        if self.config.uses_aggregator:
            features.append(image_features.pooler_output)
        return features, qformer_outputs

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        image_features: LionImageFeatures | LionVisionStates | None = None,
        image_indices: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: tuple[torch.Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LionModelOutput:
        """Encode images and prompts, then run the decoder.

        Args:
            pixel_values, input_ids, attention_mask, qformer_input_ids, qformer_attention_mask, task_type_ids,
                image_features, image_indices, inputs_embeds, interpolate_pos_encoding: See `encode`.
            decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds: Decoder inputs of shape (B, L) or
                (B, L, D).
            encoder_outputs: Output of `encode`, to skip encoding; or a tuple whose first element is the encoder output.
                For a tuple, `attention_mask` is extended to the visual positions.
            past_key_values, cache: Cache of the decoder. transformers renamed `past_key_values` to `cache`; both are
                accepted.
            use_cache: Whether to return a cache.
            **kwargs: Options of transformers.

        Raises:
            ValueError: If the decoder input is missing, or for the reasons given in `encode`.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("Pass decoder_input_ids or decoder_inputs_embeds.")
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                pixel_values=pixel_values,
                input_ids=input_ids,
                attention_mask=attention_mask,
                qformer_input_ids=qformer_input_ids,
                qformer_attention_mask=qformer_attention_mask,
                task_type_ids=task_type_ids,
                image_features=image_features,
                image_indices=image_indices,
                inputs_embeds=inputs_embeds,
                interpolate_pos_encoding=interpolate_pos_encoding,
                return_dict=True,
                **kwargs,
            )
        encoded = to_encoder_output(encoder_outputs, attention_mask)
        outputs = self.language_model(
            encoder_outputs=encoded,
            attention_mask=encoded.attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            cache=resolve_cache(past_key_values, cache),
            use_cache=use_cache,
            task_type_ids=task_type_ids,
            return_dict=True,
            **kwargs,
        )
        return LionModelOutput(**outputs, **encoded.visual_outputs)


class LionForConditionalGeneration(LionModel, GenerationMixin):
    """LION with a language modeling head. It generates captions, answers and boxes for images and prompts."""

    _keys_to_ignore_on_load_unexpected = None
    language_model_class = LionT5ForConditionalGeneration

    @property
    def generation_config(self) -> GenerationConfig:
        """Default generation config. It is stored in the language model, which does the generation."""
        return self.language_model.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if "language_model" in self._modules:  # transformers also sets it before the language model exists
            self.language_model.generation_config = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the `lm_head` of the language model, which is not tied to the embeddings."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the `lm_head` of the language model."""
        self.language_model.set_output_embeddings(new_embeddings)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Shift labels (B, L) right and prepend the decoder start token, for losses computed outside the model."""
        return self.language_model.prepare_decoder_input_ids_from_labels(labels)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        image_features: LionImageFeatures | LionVisionStates | None = None,
        image_indices: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: tuple[torch.Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LionSeq2SeqLMOutput:
        """Compute logits, and the loss if there are labels. See `LionModel.forward` for the other arguments.

        Args:
            decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds: Decoder inputs of shape (B, L) or
                (B, L, D). By default, they are derived from `labels`.
            labels: Answer tokens of shape (B, L). Labels of -100 are ignored.
            num_items_in_batch: Number of label tokens over all accumulated batches and processes, by which the loss is
                divided.
            logits_to_keep: Number of last positions to compute logits for, or their indices. 0 means all positions.

        Raises:
            ValueError: If the decoder input is missing, or for the reasons given in `encode`.
        """
        if labels is None and decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError(
                "Pass labels, decoder_input_ids or decoder_inputs_embeds. (With label_smoothing_factor, the Trainer "
                "does not pass labels to the model: use make_trainer, or set decoder_start_token_id of "
                "LionDataCollator.)"
            )
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                pixel_values=pixel_values,
                input_ids=input_ids,
                attention_mask=attention_mask,
                qformer_input_ids=qformer_input_ids,
                qformer_attention_mask=qformer_attention_mask,
                task_type_ids=task_type_ids,
                image_features=image_features,
                image_indices=image_indices,
                inputs_embeds=inputs_embeds,
                interpolate_pos_encoding=interpolate_pos_encoding,
                return_dict=True,
                **kwargs,
            )
        encoded = to_encoder_output(encoder_outputs, attention_mask)
        outputs = self.language_model(
            encoder_outputs=encoded,
            attention_mask=encoded.attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            cache=resolve_cache(past_key_values, cache),
            use_cache=use_cache,
            task_type_ids=task_type_ids,
            labels=labels,
            num_items_in_batch=num_items_in_batch,
            logits_to_keep=logits_to_keep,
            return_dict=True,
            **kwargs,
        )
        return LionSeq2SeqLMOutput(**outputs, **encoded.visual_outputs)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        qformer_input_ids: torch.Tensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        task_type_ids: torch.Tensor | None = None,
        image_features: LionImageFeatures | LionVisionStates | None = None,
        image_indices: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        labels: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Generate answers by encoding once and calling `generate` of the language model.

        Args:
            pixel_values, input_ids, attention_mask, qformer_input_ids, qformer_attention_mask, task_type_ids,
                image_features, image_indices, inputs_embeds, interpolate_pos_encoding: See `encode`.
            labels: Ignored, so that training batches can be passed unchanged.
            generation_config: Generation config to use instead of the model's `generation_config`.
            **generate_kwargs: Options of `transformers.GenerationMixin.generate`.

        Returns:
            The output of `transformers.GenerationMixin.generate`: token ids of shape (B, L), or an output class.

        Raises:
            ValueError: If `assistant_model` is set, or for the reasons given in `encode`.
            SelfCheckError: If transformers or torch is newer than the tested versions and produces different results.
        """
        from .self_check import ensure_checked  # imported here because it uses this class

        ensure_checked()
        if generate_kwargs.get("assistant_model") is not None:
            raise ValueError(
                "assistant_model is not supported because transformers would pass this model's image features to the "
                "draft model. Use prompt_lookup_num_tokens instead, with one sample at a time."
            )
        self.language_model.__dict__.pop("_previous_max_cache_length", None)  # otherwise static caches never shrink
        if hasattr(self, "hf_device_map") and hasattr(self.language_model, "_hf_hook"):
            self.language_model._hf_hook.io_same_device = True  # `generate` bypasses the hook of the outer model
        configs = [generation_config, self.generation_config]
        encoded = self.encode(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
            task_type_ids=task_type_ids,
            image_features=image_features,
            image_indices=image_indices,
            inputs_embeds=inputs_embeds,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=bool(find_setting("output_attentions", generate_kwargs, configs)),
            output_hidden_states=bool(find_setting("output_hidden_states", generate_kwargs, configs)),
            return_dict=True,
        )
        outputs = self.language_model.generate(
            encoded.last_hidden_state,  # only its batch size and device are used
            encoder_outputs=BaseModelOutput(encoded.last_hidden_state, encoded.hidden_states, encoded.attentions),
            attention_mask=encoded.attention_mask,
            task_type_ids=task_type_ids,
            generation_config=generation_config,
            **rename_cache(generate_kwargs),
        )
        prompt = generate_kwargs.get("decoder_input_ids")
        ends = {
            "end_ids": find_setting("eos_token_id", generate_kwargs, configs),
            "pad_id": find_setting("pad_token_id", generate_kwargs, configs),
        }
        start = 1 if prompt is None else prompt.shape[1]
        if isinstance(outputs, torch.Tensor):
            return pad_after_end(outputs, start, **ends)
        outputs.sequences = pad_after_end(outputs.sequences, start, **ends)
        return outputs


def concatenate_features(parts: Sequence[LionImageFeatures]) -> LionImageFeatures:
    """Concatenate the features of several batches of images."""
    projected = [part.pooler_output for part in parts if part.pooler_output is not None]
    return LionImageFeatures(
        last_hidden_state=torch.cat([part.last_hidden_state for part in parts]),
        pooler_output=torch.cat(projected) if projected else None,
    )


def prepend_ones(mask: torch.Tensor, count: int) -> torch.Tensor:
    """(B, T) -> (B, count + T)."""
    return torch.cat([mask.new_ones(mask.shape[0], count), mask], dim=1)


def prompt_mask(attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """Return the mask of a prompt, (B, T), on the prompt's device. Defaults to ones.

    Raises:
        ValueError: If the mask does not match the shape of the prompt (B, T, D).
    """
    shape, device = inputs_embeds.shape[:2], inputs_embeds.device
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.long, device=device)
    if attention_mask.shape != shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but the prompt has shape {tuple(shape)}."
        )
    return attention_mask.to(device)


def to_encoder_output(encoder_outputs: Any, attention_mask: torch.Tensor | None) -> LionEncoderOutput:
    """Convert encoder outputs to `LionEncoderOutput`. If they have no mask, extend the mask of the prompt (B, T)."""
    if isinstance(encoder_outputs, LionEncoderOutput):
        return encoder_outputs
    if isinstance(encoder_outputs, tuple | list):
        encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
    states = encoder_outputs.last_hidden_state
    if attention_mask is not None:
        attention_mask = prepend_ones(attention_mask, states.shape[1] - attention_mask.shape[1])
    return LionEncoderOutput(
        last_hidden_state=states,
        hidden_states=encoder_outputs.hidden_states,
        attentions=encoder_outputs.attentions,
        attention_mask=attention_mask,
    )


def find_setting(name: str, arguments: Mapping[str, Any], configs: Sequence[GenerationConfig | None]) -> Any:
    """Resolve a generation setting like `generate`: from the argument, otherwise from the first config that sets it."""
    if name in arguments:
        return arguments[name]
    return next((value for config in configs if (value := getattr(config, name, None)) is not None), None)


def pad_after_end(
    ids: torch.Tensor, start: int, end_ids: Sequence[int] | int | None, pad_id: int | None
) -> torch.Tensor:
    """Replace all tokens after the first end token with padding.

    Beam search in transformers fills finished rows with the end token if the id of the padding token is 0, as in T5.
    The reference, like greedy decoding, fills them with padding.

    Args:
        ids: Generated ids of shape (B, L).
        start: Index of the first generated token. Earlier tokens are not changed.
        end_ids: One or more end tokens.
        pad_id: Padding token.
    """
    if end_ids is None or pad_id is None:
        return ids
    is_end = torch.isin(ids, torch.as_tensor(end_ids, device=ids.device))
    is_end[:, :start] = False
    is_after_end = is_end.long().cumsum(1) - is_end.long() > 0
    return ids.masked_fill(is_after_end, pad_id)


def check_task_type_ids(task_type_ids: torch.Tensor | None, batch_size: int, num_task_types: int) -> None:
    """Raise `ValueError` unless there is one valid task per sample. Values are only checked on the CPU."""
    if task_type_ids is None:
        raise ValueError(
            "task_type_ids is missing. Each sample needs a task: 0 for region level, 1 for image level. The processor "
            "returns task_type_ids for task_type=."
        )
    if not isinstance(task_type_ids, torch.Tensor) or task_type_ids.is_floating_point():
        kind = getattr(task_type_ids, "dtype", type(task_type_ids).__name__)
        raise ValueError(f"task_type_ids must be an integer tensor, but is {kind}.")
    if task_type_ids.shape != (batch_size,):
        raise ValueError(
            f"task_type_ids has shape {tuple(task_type_ids.shape)}, but must have shape ({batch_size},) for "
            f"{batch_size} prompts."
        )
    if task_type_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        for task in task_type_ids.tolist():
            if not 0 <= task < num_task_types:
                raise ValueError(f"task_type_ids contains {task}, but must be from 0 to {num_task_types - 1}.")


__all__ = [
    "LionEncoderOutput",
    "LionForConditionalGeneration",
    "LionImageFeatures",
    "LionModel",
    "LionModelOutput",
    "LionPreTrainedModel",
    "LionSeq2SeqLMOutput",
    "LionVisionModel",
    "LionVisionStates",
]
