"""LION: vision tower -> Q-Former and aggregator -> merge with the prompt -> language model with adapters.

Source: LION (arXiv:2311.11860), section 3. The towers are transformers' own; what LION adds is in
`modeling_aggregator.py` and `modeling_lion_t5.py`, and the soft prompt and the merge are here. Reading order:
`LionModel.get_image_features`, `get_query_features`, `encode`, `forward`, and `LionForConditionalGeneration`, which
adds the head, the loss and `generate`.

Shape letters: B batch, P patches and CLS, Q query tokens, T text tokens, E encoder positions (Q + P + T), L label
tokens, V vision width, D language-model width.
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

from .compatibility import CACHE_NAMES, one_cache, with_cache_name
from .configuration_lion import LionConfig, LionQFormerConfig, LionVisionConfig
from .modeling_aggregator import ATTENTION_RECORDERS, LionAggregatorProjection, LionVisionAggregator
from .modeling_lion_t5 import LionT5ForConditionalGeneration, LionT5Model
from .modeling_utils import BasePreTrainedModel

TEXT_INPUTS = (
    "input_ids", "attention_mask", "qformer_input_ids", "qformer_attention_mask", "task_type_ids", "image_indices",
    "labels",
)  # fmt: skip
"""What of a processor's output has nothing to do with the image."""

PEFT_PROMPT_LEARNING_PROBE = "embeddings.word_embeddings"
"""The module that PEFT looks up when it sets prompt learning up, and for nothing else. LION has no such module."""


@dataclass
class LionImageFeatures(BaseModelOutputWithPooling):
    """What LION knows of images before it has read a question. Computed once, it serves any number of questions.

    Attributes:
        last_hidden_state: (B, P, V), the last block behind its norm: what the Q-Former reads. (Without a Q-Former
            branch there is no such norm.)
        pooler_output: (B, P, D), the aggregator's projected features; `None` without an aggregator branch.
        hidden_states, attentions: the vision tower's, on request.
        aggregator_outputs: the aggregator's states (B, P, V), and on request its hidden states and attentions.
    """

    aggregator_outputs: BaseModelOutputWithCrossAttentions | None = None

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return self.last_hidden_state.shape[0]

    def repeat_interleave(self, repeats: int | torch.Tensor) -> "LionImageFeatures":
        """The features with each image repeated, to stand beside its questions.

        Args:
            repeats: how often, for all images or (B,) for each.
        """
        return LionImageFeatures(
            last_hidden_state=self.last_hidden_state.repeat_interleave(repeats, dim=0),
            pooler_output=None if self.pooler_output is None else self.pooler_output.repeat_interleave(repeats, dim=0),
        )

    def select(self, image_indices: torch.Tensor) -> "LionImageFeatures":
        """The features of the image of each question.

        Args:
            image_indices: (B,), a row of these features for each question.

        Raises:
            ValueError: if there is no such row (looked at on the CPU only).
        """
        if image_indices.device.type == "cpu" and not torch.compiler.is_compiling() and image_indices.numel():
            first, last = int(image_indices.min()), int(image_indices.max())
            if first < 0 or last >= self.batch_size:
                wrong = first if first < 0 else last
                raise ValueError(f"image_indices has {wrong}, but there are {self.batch_size} images, from 0 on.")
        image_indices = image_indices.to(self.last_hidden_state.device)
        return LionImageFeatures(
            last_hidden_state=self.last_hidden_state.index_select(0, image_indices),
            pooler_output=None if self.pooler_output is None else self.pooler_output.index_select(0, image_indices),
        )

    def match(self, batch_size: int, image_indices: torch.Tensor | None = None) -> "LionImageFeatures":
        """The features for a batch of questions: by `image_indices`, or one image serves them all, or row for row.

        Raises:
            ValueError: if there are several images and another number of questions, or not one index a question.
        """
        if image_indices is not None:
            if image_indices.shape != (batch_size,):
                raise ValueError(
                    f"image_indices has shape {tuple(image_indices.shape)}, but {batch_size} prompts need "
                    f"({batch_size},)."
                )
            return self.select(image_indices)
        if self.batch_size == batch_size:
            return self
        if self.batch_size == 1:
            return self.repeat_interleave(batch_size)
        raise ValueError(
            f"{self.batch_size} images for {batch_size} prompts. Give one image for all, as many of both, or "
            "image_indices with the image of each prompt."
        )


@dataclass
class LionEncoderOutput(BaseModelOutput):
    """What `LionModel.encode` computes, and all that the decoder needs of an image and a prompt.

    Attributes:
        last_hidden_state: (B, E, D), the language model's encoder.
        hidden_states, attentions: the same encoder's, on request.
        attention_mask: (B, E), 1 for visual positions and the prompt, 0 for padding.
        image_hidden_states: (B, Q + P, D), what stands before the text in the encoder.
        vision_outputs: the question-independent part, row for row with the prompts.
        qformer_outputs: the Q-Former's, `None` without that branch.
        aggregator_outputs: the aggregator's, `None` without that branch or if the image features were given.
    """

    attention_mask: torch.Tensor | None = None
    image_hidden_states: torch.Tensor | None = None
    vision_outputs: LionImageFeatures | None = None
    qformer_outputs: BaseModelOutputWithPoolingAndCrossAttentions | None = None
    aggregator_outputs: BaseModelOutputWithCrossAttentions | None = None

    @property
    def visual_outputs(self) -> dict[str, Any]:
        """The outputs of the parts before the language model, by their names."""
        names = ("image_hidden_states", "vision_outputs", "qformer_outputs", "aggregator_outputs")
        return {name: getattr(self, name) for name in names}

    def select(self, rows: torch.Tensor) -> "LionEncoderOutput":
        """The encoder's states and the mask of some samples, each as often as it is named, to decode them.

        Args:
            rows: (N,), indices of samples.
        """
        return LionEncoderOutput(
            last_hidden_state=self.last_hidden_state[rows],
            attention_mask=None if self.attention_mask is None else self.attention_mask[rows],
        )


@dataclass
class LionModelOutput(Seq2SeqModelOutput):
    """The language model's output without a head, and the visual parts'.

    Attributes:
        image_hidden_states, vision_outputs, qformer_outputs, aggregator_outputs: see `LionEncoderOutput`.
    """

    image_hidden_states: torch.Tensor | None = None
    vision_outputs: LionImageFeatures | None = None
    qformer_outputs: BaseModelOutputWithPoolingAndCrossAttentions | None = None
    aggregator_outputs: BaseModelOutputWithCrossAttentions | None = None


@dataclass
class LionSeq2SeqLMOutput(Seq2SeqLMOutput):
    """The language model's output, and the visual parts'.

    Attributes:
        image_hidden_states, vision_outputs, qformer_outputs, aggregator_outputs: see `LionEncoderOutput`.
    """

    image_hidden_states: torch.Tensor | None = None
    vision_outputs: LionImageFeatures | None = None
    qformer_outputs: BaseModelOutputWithPoolingAndCrossAttentions | None = None
    aggregator_outputs: BaseModelOutputWithCrossAttentions | None = None


@dataclass
class LionVisionModelOutput(BaseModelOutput):
    """The vision tower's output.

    Attributes:
        last_hidden_state: (B, P, V), behind the last norm.
        feature_maps: (B, P, V) of each block that was asked for, before any norm, in the order of asking.
    """

    feature_maps: tuple[torch.Tensor, ...] | None = None


@dataclass
class LionVisionStates(ModelOutput):
    """All that LION reads of a frozen vision tower: the outputs of some of its blocks, before anything that trains.

    Attributes:
        feature_maps: (B, P, V) of each block in `LionModel.vision_state_layers`, before any norm.
    """

    feature_maps: tuple[torch.Tensor, ...] | None = None


class LionVisionModel(InstructBlipVisionModel):
    """EVA-ViT-g as InstructBLIP has it; the norm after the last block has an epsilon of its own."""

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
        """Run the tower, and keep the outputs of the zero-based blocks in `feature_layers` on the way.

        (`output_hidden_states` would keep those of all 39 blocks.)
        """
        height, width = pixel_values.shape[-2:]
        size = self.config.image_size
        expected = (size, size) if isinstance(size, int) else tuple(size)
        if not interpolate_pos_encoding and (height, width) != expected:
            raise ValueError(
                f"pixel_values are {height}x{width}, but the vision tower reads {expected[0]}x{expected[1]}; "
                "interpolate_pos_encoding=True allows other sizes."
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
    """The text-conditioned Q-Former of InstructBLIP, recording the right attentions."""

    config: LionQFormerConfig
    _can_record_outputs = {"hidden_states": InstructBlipQFormerLayer, **ATTENTION_RECORDERS}


class LionPreTrainedModel(BasePreTrainedModel):
    """What all of LION's models share with transformers."""

    config: LionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = list(CACHE_NAMES)
    _no_split_modules = [
        "InstructBlipVisionEmbeddings",  # it has parameters of its own, which only a hook on the whole of it can bring
        "InstructBlipEncoderLayer",
        "InstructBlipQFormerLayer",
        "LionAggregatorLayer",
        "LionT5Block",
    ]

    def get_submodule(self, target: str) -> nn.Module:
        """As of all modules.

        Raises:
            ValueError: if PEFT is about to wrap the model for prompt learning. The wrapper gives the learned prefix to
                the model that it wraps, but LION's language model generates: it would be trained, and then ignored.
        """
        if target == PEFT_PROMPT_LEARNING_PROBE:
            raise ValueError(
                f"{type(self).__name__} does not support PEFT's prompt learning (prefix tuning, prompt tuning, "
                "p-tuning): generate would ignore what it learns. LoRA, DoRA, IA3, LoKr and OFT work."
            )
        return super().get_submodule(target)


class LionModel(LionPreTrainedModel):
    """LION without a head: vision tower, Q-Former, aggregator, and the language model's encoder and decoder.

    The names of its weights are those of `LionForConditionalGeneration`, so each loads the other's checkpoints.
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
            self.vision_model.post_layernorm = nn.Identity()  # only the Q-Former reads behind it
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
        """As of all modules; but a vision tower whose blocks are all frozen stays in eval mode, as in the reference."""
        super().train(mode)
        tower = self.vision_model
        blocks = [*tower.embeddings.parameters(), *tower.encoder.parameters()]
        if not any(parameter.requires_grad for parameter in blocks):
            tower.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, **kwargs: Any) -> nn.Module:
        """As of all models.

        Raises:
            ValueError: if the soft prompt's marker would be outside of the vocabulary.
        """
        marker = self.config.soft_prompt_token_id
        if new_num_tokens is not None and self.config.use_soft_prompt and new_num_tokens <= marker:
            raise ValueError(f"A vocabulary of {new_num_tokens} has no soft_prompt_token_id {marker}.")
        return super().resize_token_embeddings(new_num_tokens, **kwargs)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The encoder of a modality: the vision tower for `"image"`, else the language model's encoder."""
        return self.vision_model if modality == "image" else self.language_model.get_encoder()

    def get_decoder(self) -> nn.Module:
        """The language model's decoder."""
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
        """Compute the question-independent part: vision tower, aggregator and its projection.

        Args:
            pixel_values: (B, 3, H, W), preprocessed.
            interpolate_pos_encoding: resize the position table to another image size than the configured one.
            output_hidden_states: keep the states of every block of the tower and of every layer of the aggregator.
            chunk_size: encode so many images at a time, to bound the memory; the result then holds the features alone.
            **kwargs: options of transformers; the text's inputs are ignored, so that a processor's output can be given.

        Returns:
            Features that `forward` and `generate` take as `image_features=` instead of pixels.

        Raises:
            ValueError: if `chunk_size` is less than 1.
        """
        if chunk_size is not None:
            if chunk_size < 1:
                raise ValueError(f"chunk_size is {chunk_size}, but at least 1 image is encoded at a time.")
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
        """Compute the part of `get_image_features` that no stage of the training changes.

        Args:
            pixel_values: (B, 3, H, W), preprocessed.

        Returns:
            States that `forward` takes as `image_features=`. They can be kept as long as the vision tower is frozen.
        """
        outputs = self.vision_model(
            pixel_values=pixel_values, feature_layers=self.vision_state_layers, return_dict=True
        )
        return LionVisionStates(feature_maps=outputs.feature_maps)

    def complete_image_features(
        self, states: LionVisionStates, output_hidden_states: bool | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> LionImageFeatures:
        """Compute the part of `get_image_features` that remains after `get_vision_states`.

        Args:
            states: from `get_vision_states`.
            output_hidden_states: keep the states of every layer of the aggregator.
            **kwargs: options of transformers.

        Raises:
            ValueError: if `states` does not have one feature map for each of `vision_state_layers`.
        """
        layers, maps = self.vision_state_layers, states.feature_maps or ()
        if len(layers) != len(maps):
            raise ValueError(f"There are {len(maps)} feature_maps for the {len(layers)} blocks {layers}.")
        found, last = dict(zip(layers, maps, strict=True)), self.config.vision_config.num_hidden_layers - 1
        taps = self.config.aggregator_config.vision_feature_layers if self.config.uses_aggregator else ()
        vision_outputs = LionVisionModelOutput(
            last_hidden_state=self.vision_model.post_layernorm(found[last]),
            feature_maps=tuple(found[layer] for layer in taps),
        )
        return self._aggregate(vision_outputs, output_hidden_states=output_hidden_states, **kwargs)

    def _aggregate(self, vision_outputs: LionVisionModelOutput, **kwargs: Any) -> LionImageFeatures:
        """The image features of the vision tower's outputs: with the aggregator's, projected."""
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
        """Compute the question-dependent part: the Q-Former and its projection.

        Args:
            image_features: of the same images as the questions, row for row.
            qformer_input_ids: (B, T'), the question alone in the Q-Former's vocabulary.
            qformer_attention_mask: (B, T').

        Returns:
            (B, Q, D), and the Q-Former's outputs.

        Raises:
            ValueError: if there are no `qformer_input_ids`.
        """
        if qformer_input_ids is None:
            raise ValueError("qformer_input_ids is missing: the Q-Former reads the question beside the image.")
        num_queries = self.config.num_query_tokens
        query_embeds = self.query_tokens(torch.arange(num_queries, device=qformer_input_ids.device))
        batch_size, length = qformer_input_ids.shape
        if batch_size != image_features.batch_size:
            raise ValueError(f"qformer_input_ids has {batch_size} questions for {image_features.batch_size} samples.")
        limit = self.config.qformer_config.max_position_embeddings
        if length > limit:
            raise ValueError(f"qformer_input_ids has {length} tokens, but the Q-Former reads {limit} at most.")
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
        """Token embeddings, (B, T) -> (B, T, D), with the soft prompt at its marker."""
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
        """Encode images and prompts: everything before the decoder.

        Args:
            pixel_values: (B, 3, H, W), or (1, 3, H, W) for one image under all prompts.
            input_ids: (B, T), the prompt: tag sentence and question.
            attention_mask: (B, T), of the prompt alone: visual positions are always attended to.
            qformer_input_ids, qformer_attention_mask: (B, T'), the question alone, for the Q-Former.
            task_type_ids: (B,), 0 region level, 1 image level; needed where there are two adapters.
            image_features: from `get_image_features` or `get_vision_states`, instead of `pixel_values`.
            image_indices: (B,), for each prompt the row of its image in `pixel_values` or `image_features`, so that an
                image with several questions is encoded once; left out, images and prompts stand row for row.
            inputs_embeds: (B, T, D), instead of `input_ids`; `embed_text` makes them, with the soft prompt.
            interpolate_pos_encoding: resize the position table to another image size than the configured one.

        Returns:
            Outputs that `forward` takes as `encoder_outputs=`, any number of times.

        Raises:
            ValueError: if not exactly one of pixels and features, or of ids and embeddings, is given; if counts of
                images, prompts and tasks differ; if a task or the Q-Former's question is missing.
        """
        inputs_embeds = self._embed_prompt(input_ids, inputs_embeds, task_type_ids)
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Give exactly one of pixel_values and image_features (from `get_image_features`).")
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
        """The prompt's embeddings (B, T, D), after the checks that need no image."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
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
        """The features of each branch, (B, Q, D) and (B, P, D), and the Q-Former's outputs if there is one."""
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
        """Run the whole model: encode images and prompts, and decode.

        Args:
            pixel_values, input_ids, attention_mask, qformer_input_ids, qformer_attention_mask, task_type_ids,
                image_features, image_indices, inputs_embeds, interpolate_pos_encoding: see `encode`.
            decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds: (B, L) or (B, L, D).
            encoder_outputs: from `encode`, to decode without encoding again; or a tuple that begins with the encoder's
                states, to which `attention_mask` is extended.
            past_key_values, cache: the decoder's cache, under its old or its new name in transformers.

        Raises:
            ValueError: if the decoder's input is missing, and as of `encode`.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("The decoder has nothing to read: give decoder_input_ids or decoder_inputs_embeds.")
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
        encoded = as_encoder_output(encoder_outputs, attention_mask)
        outputs = self.language_model(
            encoder_outputs=encoded,
            attention_mask=encoded.attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            cache=one_cache(past_key_values, cache),
            use_cache=use_cache,
            task_type_ids=task_type_ids,
            return_dict=True,
            **kwargs,
        )
        return LionModelOutput(**outputs, **encoded.visual_outputs)


class LionForConditionalGeneration(LionModel, GenerationMixin):
    """LION: captions, answers and locates, given an image, a prompt and the task of each sample."""

    _keys_to_ignore_on_load_unexpected = None
    language_model_class = LionT5ForConditionalGeneration

    @property
    def generation_config(self) -> GenerationConfig:
        """The defaults of `generate`: one object, kept by the language model, which does the generating."""
        return self.language_model.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if "language_model" in self._modules:  # transformers also sets one before there is a language model
            self.language_model.generation_config = value

    def get_output_embeddings(self) -> nn.Module:
        """The language model's `lm_head`, which is not tied to the embeddings."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's `lm_head`."""
        self.language_model.set_output_embeddings(new_embeddings)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (B, L), shifted right behind the decoder's start token, for losses that are computed outside."""
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
        """As `LionModel.forward`, with logits and a loss.

        Args:
            decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds: (B, L) or (B, L, D); made from `labels` if
                those are given alone.
            labels: (B, L), answer tokens; -100 is not counted.
            num_items_in_batch: label tokens over all accumulated batches and processes, which the loss is divided by.
            logits_to_keep: number of last positions to compute logits of, or the positions; 0 stands for all.

        Raises:
            ValueError: if the decoder's input is missing, and as of `encode`.
        """
        if labels is None and decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError(
                "The decoder has nothing to read: give labels, decoder_input_ids or decoder_inputs_embeds. (With "
                "label_smoothing_factor, the Trainer keeps the labels from the model: use make_trainer, or give "
                "LionDataCollator decoder_start_token_id.)"
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
        encoded = as_encoder_output(encoder_outputs, attention_mask)
        outputs = self.language_model(
            encoder_outputs=encoded,
            attention_mask=encoded.attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            cache=one_cache(past_key_values, cache),
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
        """Generate answers: encode once, then the language model's own `generate`.

        Args:
            pixel_values, input_ids, attention_mask, qformer_input_ids, qformer_attention_mask, task_type_ids,
                image_features, image_indices, inputs_embeds, interpolate_pos_encoding: see `encode`.
            labels: ignored, so that a training batch can be passed as it is.
            generation_config: instead of the model's own `generation_config`.
            **generate_kwargs: anything that `transformers.GenerationMixin.generate` takes.

        Returns:
            What `transformers.GenerationMixin.generate` returns: (B, L) token ids, or its output classes.

        Raises:
            ValueError: if inputs do not fit together, as in `encode`, or if there is an `assistant_model`.
            SelfCheckError: if transformers or torch is newer than those tested with, and computes something else.
        """
        from .self_check import ensure_checked  # which makes models of this class

        ensure_checked()
        if generate_kwargs.get("assistant_model") is not None:
            raise ValueError(
                "assistant_model is not supported: transformers gives a draft model the image features of this one. "
                "prompt_lookup_num_tokens works, for one sample at a time."
            )
        self.language_model.__dict__.pop("_previous_max_cache_length", None)  # or static caches would never shrink
        if hasattr(self, "hf_device_map") and hasattr(self.language_model, "_hf_hook"):
            self.language_model._hf_hook.io_same_device = True  # `generate` enters below the hook
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
            encoded.last_hidden_state,  # for the batch size and the device alone
            encoder_outputs=BaseModelOutput(encoded.last_hidden_state, encoded.hidden_states, encoded.attentions),
            attention_mask=encoded.attention_mask,
            task_type_ids=task_type_ids,
            generation_config=generation_config,
            **with_cache_name(generate_kwargs),
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
    """The features of several batches of images, one behind the other."""
    projected = [part.pooler_output for part in parts if part.pooler_output is not None]
    return LionImageFeatures(
        last_hidden_state=torch.cat([part.last_hidden_state for part in parts]),
        pooler_output=torch.cat(projected) if projected else None,
    )


def prepend_ones(mask: torch.Tensor, count: int) -> torch.Tensor:
    """(B, T) -> (B, count + T)."""
    return torch.cat([mask.new_ones(mask.shape[0], count), mask], dim=1)


def prompt_mask(attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """The mask of a prompt, (B, T), on its device; ones by default.

    Raises:
        ValueError: if the mask is of another shape than the prompt (B, T, D).
    """
    shape, device = inputs_embeds.shape[:2], inputs_embeds.device
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.long, device=device)
    if attention_mask.shape != shape:
        raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, but the prompt is {tuple(shape)}.")
    return attention_mask.to(device)


def as_encoder_output(encoder_outputs: Any, attention_mask: torch.Tensor | None) -> LionEncoderOutput:
    """Encoder outputs of any kind with their mask; if they come without one, that of the prompt (B, T) is extended."""
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
    """A setting of generation as `generate` resolves it: the argument, else the first configuration's that has one."""
    if name in arguments:
        return arguments[name]
    return next((value for config in configs if (value := getattr(config, name, None)) is not None), None)


def pad_after_end(
    ids: torch.Tensor, start: int, end_ids: Sequence[int] | int | None, pad_id: int | None
) -> torch.Tensor:
    """Replace what stands behind the first end token by padding, (B, L) -> (B, L).

    Beam search in transformers fills finished rows with the end token where the padding token's id is 0, as T5's is;
    the reference, like greedy search, fills them with padding.

    Args:
        ids: generated ids.
        start: where the generated part begins; what the caller gave before is left alone.
        end_ids: one or several end tokens.
        pad_id: the padding token.
    """
    if end_ids is None or pad_id is None:
        return ids
    is_end = torch.isin(ids, torch.as_tensor(end_ids, device=ids.device))
    is_end[:, :start] = False
    is_behind = is_end.long().cumsum(1) - is_end.long() > 0
    return ids.masked_fill(is_behind, pad_id)


def check_task_type_ids(task_type_ids: torch.Tensor | None, batch_size: int, num_task_types: int) -> None:
    """Raise `ValueError` unless there is one valid task for each sample (values are looked at on the CPU only)."""
    if task_type_ids is None:
        raise ValueError(
            "task_type_ids is missing: each sample needs its task, 0 region level or 1 image level; the processor's "
            "task_type= makes them."
        )
    if not isinstance(task_type_ids, torch.Tensor) or task_type_ids.is_floating_point():
        kind = getattr(task_type_ids, "dtype", type(task_type_ids).__name__)
        raise ValueError(f"task_type_ids must be a tensor of integers, but is {kind}.")
    if task_type_ids.shape != (batch_size,):
        raise ValueError(
            f"task_type_ids has shape {tuple(task_type_ids.shape)}, but {batch_size} prompts need ({batch_size},)."
        )
    if task_type_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        for task in task_type_ids.tolist():
            if not 0 <= task < num_task_types:
                raise ValueError(f"task_type_ids has {task}, but the router knows 0 to {num_task_types - 1}.")


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
