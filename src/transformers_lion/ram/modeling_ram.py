"""RAM: Swin -> image tokens, preceded by their mean -> head that queries them for each tag -> one logit per tag.

Source: Recognize Anything (arXiv:2306.03514). Swin and the sub-layers of the head are those of transformers; the loss
is the asymmetric loss of Ridnik et al. (arXiv:2009.14119). Reading order: `get_image_features`, `get_label_queries`,
`forward`.

Shape letters: B batch, P patches after the last stage, V vision width, E width of the image tokens that the head reads,
L tags, D width of the head.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import SwinModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions, BaseModelOutputWithPooling
from transformers.models.instructblip.modeling_instructblip import (
    InstructBlipQFormerAttention,
    InstructBlipQFormerIntermediate,
    InstructBlipQFormerMultiHeadAttention,
    InstructBlipQFormerOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..modeling_utils import BasePreTrainedModel
from .configuration_ram import RamConfig, check_tags
from .tags import select_tags

UNKNOWN_LABEL = -100
"""Entry of `labels` for an unknown label, which the loss ignores."""


@dataclass
class RamImageTaggingOutput(ModelOutput):
    """Output of [`RamForImageTagging`].

    Attributes:
        loss: Asymmetric loss, if `labels` are passed.
        logits: Logits of shape (B, L).
        image_embeds: Projected image tokens, preceded by their mean, of shape (B, 1 + P, E).
        last_hidden_state: Output of the head, of shape (B, L, D).
        hidden_states, cross_attentions: Output and cross-attentions of each layer of the head, if requested.
        vision_hidden_states, vision_attentions: Hidden states and attentions of the vision tower, if requested.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    vision_hidden_states: tuple[torch.Tensor, ...] | None = None
    vision_attentions: tuple[torch.Tensor, ...] | None = None


class RamTaggingLayer(GradientCheckpointingLayer):
    """Post-norm cross-attention to the image and feed-forward layer. Tags do not attend to each other."""

    def __init__(self, config: RamConfig):
        super().__init__()
        self.crossattention = InstructBlipQFormerAttention(config, is_cross_attention=True)
        self.intermediate = InstructBlipQFormerIntermediate(config)
        self.output = InstructBlipQFormerOutput(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """(B, L, D) and (B, 1 + P, E) -> (B, L, D)."""
        hidden_states = self.crossattention(hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs)
        return self.output(self.intermediate(hidden_states), hidden_states)


class RamPreTrainedModel(BasePreTrainedModel):
    """Base class of RAM's models, with their settings for transformers."""

    config: RamConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["SwinStage", "RamTaggingLayer"]


class RamTaggingHead(RamPreTrainedModel):
    """Layers that query the image for each tag."""

    main_input_name = "hidden_states"
    _can_record_outputs = {
        # without the input, because the label queries are the same for every image
        "hidden_states": OutputRecorder(RamTaggingLayer, index=0, capture_initial_hidden_state=False),
        "cross_attentions": OutputRecorder(InstructBlipQFormerMultiHeadAttention, index=1),
    }

    def __init__(self, config: RamConfig):
        super().__init__(config)
        self.layers = nn.ModuleList([RamTaggingLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    @capture_outputs
    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithCrossAttentions:
        """Run the layers.

        Args:
            hidden_states: Label queries of shape (B, L, D).
            encoder_hidden_states: Image tokens of shape (B, 1 + P, E).

        Returns:
            `last_hidden_state` of shape (B, L, D), and the outputs and attentions of each layer if requested.
        """
        for layer in self.layers:
            hidden_states = layer(hidden_states, encoder_hidden_states, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)


class RamForImageTagging(RamPreTrainedModel):
    """Recognize Anything, which predicts the tags that an image shows."""

    def __init__(self, config: RamConfig):
        super().__init__(config)
        self.vision_model = SwinModel(config.vision_config)
        self.vision_projection = nn.Linear(config.vision_config.hidden_size, config.encoder_hidden_size)
        self.label_embeddings = nn.Embedding(config.num_labels, config.label_embed_dim)
        self.label_projection: nn.Module = nn.Identity()
        if config.projects_labels:
            self.label_projection = nn.Linear(config.label_embed_dim, config.hidden_size)
        self.head = RamTaggingHead(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embeddings of the vision tower."""
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Run the vision tower.

        Args:
            pixel_values: Preprocessed pixels of shape (B, 3, H, W), with the configured size.
            **kwargs: Options of transformers.

        Returns:
            `last_hidden_state` (B, 1 + P, V), the image tokens preceded by their mean; `pooler_output` (B, 1 + P, E),
            their projection; and the hidden states and attentions of the vision tower if requested.

        Raises:
            ValueError: If the images have another size. Swin would accept them, but changes the state of its layers
                for each size.
        """
        if tuple(pixel_values.shape[-2:]) != self.config.image_size:
            height, width = self.config.image_size
            raise ValueError(
                f"pixel_values are {pixel_values.shape[-2]}x{pixel_values.shape[-1]}, but the tagger expects "
                f"{height}x{width} (vision_config.image_size)."
            )
        outputs = self.vision_model(pixel_values.to(self.vision_model.dtype), return_dict=True, **kwargs)
        tokens = torch.cat([outputs.pooler_output.unsqueeze(1), outputs.last_hidden_state], dim=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=self.vision_projection(tokens),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def get_label_queries(self, device: torch.device) -> torch.Tensor:
        """Compute the input of the head, which is the same for every image.

        Args:
            device: Device of the image tokens. (With offloading, the weights may be on another device until needed.)

        Returns:
            One query per tag, of shape (1, L, D).
        """
        labels = torch.arange(self.label_embeddings.num_embeddings, device=device)
        return nn.functional.relu(self.label_projection(self.label_embeddings(labels.unsqueeze(0))))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RamImageTaggingOutput:
        """Score every tag on every image.

        Args:
            pixel_values: Preprocessed pixels of shape (B, 3, H, W).
            labels: Labels of shape (B, L): 1 for present tags, 0 for absent tags, -100 for tags to ignore.
            num_items_in_batch: Number of labels over all accumulated batches and processes, without ignored ones, by
                which the loss is divided.
            **kwargs: Options of transformers.

        Raises:
            ValueError: If the images do not have the configured size, or the labels do not have shape (B, L).
        """
        image_features = self.get_image_features(pixel_values, return_dict=True, **kwargs)
        image_embeds = image_features.pooler_output
        queries = self.get_label_queries(image_embeds.device).expand(image_embeds.shape[0], -1, -1)
        outputs = self.head(queries, image_embeds, return_dict=True, **kwargs)
        logits = self.classifier(outputs.last_hidden_state).squeeze(-1)
        return RamImageTaggingOutput(
            loss=None if labels is None else self.compute_loss(logits, labels, num_items_in_batch),
            logits=logits,
            image_embeds=image_embeds,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            cross_attentions=outputs.cross_attentions,
            vision_hidden_states=image_features.hidden_states,
            vision_attentions=image_features.attentions,
        )

    def compute_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Compute the asymmetric loss, summed over tags and averaged over images.

        Labels of -100 are ignored, and the weight of the others is increased accordingly.

        Args:
            logits, labels: Logits and labels of shape (B, L).
            num_items_in_batch: See `forward`. Defaults to the number of labels in this batch.

        Raises:
            ValueError: If the shapes differ.
        """
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, but must have shape {tuple(logits.shape)} for "
                f"{logits.shape[0]} images and {logits.shape[1]} tags: 1 for each present tag, 0 for each absent one."
            )
        labels = labels.to(logits.device)
        known = labels != UNKNOWN_LABEL
        losses = asymmetric_loss(
            logits,
            torch.where(known, labels, 0),
            gamma_positive=self.config.loss_gamma_positive,
            gamma_negative=self.config.loss_gamma_negative,
            clip=self.config.loss_clip,
        )
        count = known.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return torch.where(known, losses, 0.0).sum() * logits.shape[1] / count

    def post_process_tagging(
        self,
        outputs: RamImageTaggingOutput,
        threshold: float | None = None,
        top_k: int | None = None,
        sort_by_score: bool = False,
        allow: Iterable[str] | None = None,
        drop: Iterable[str] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Convert outputs to a list of `{"label", "score"}` for each image. See `select_tags` for the arguments."""
        return select_tags(outputs["logits"], self.config, threshold, top_k, sort_by_score, allow, drop)

    @torch.no_grad()
    def add_tags(
        self, names: Sequence[str], text_embeds: torch.Tensor, thresholds: Sequence[float] | float | None = None
    ) -> None:
        """Add tags to the vocabulary. They are saved with the model. An optimized model is restored first.

        Don't add tags while another thread uses the model. Add them before you create an optimizer.

        Args:
            names: N names of tags.
            text_embeds: Text embeddings of the names in RAM's label space, of shape (N, `label_embed_dim`).
            thresholds: One threshold for all names or one for each. Defaults to `default_threshold`.

        Raises:
            ValueError: If the numbers of names, embeddings and thresholds or the width do not match, a name already
                exists, or a threshold is out of range.
        """
        names = [names] if isinstance(names, str) else list(names)
        width = self.config.label_embed_dim
        if text_embeds.shape != (len(names), width):
            raise ValueError(
                f"text_embeds has shape {tuple(text_embeds.shape)}, but must have shape {(len(names), width)} for "
                f"{len(names)} names."
            )
        if thresholds is None or isinstance(thresholds, float | int):
            thresholds = [self.config.default_threshold if thresholds is None else thresholds] * len(names)
        self.leave_inference_form()
        all_names = [self.config.id2label[index] for index in range(self.config.num_labels)] + names
        all_thresholds = list(self.config.thresholds or []) + [float(threshold) for threshold in thresholds]
        check_tags(all_names, all_thresholds)
        weight = self.label_embeddings.weight
        extended = torch.cat([weight, text_embeds.to(weight)])
        self.label_embeddings = nn.Embedding.from_pretrained(extended, freeze=not weight.requires_grad)
        self.config.id2label = dict(enumerate(all_names))
        self.config.label2id = {name: index for index, name in enumerate(all_names)}
        self.config.thresholds = all_thresholds


def asymmetric_loss(
    logits: torch.Tensor, labels: torch.Tensor, gamma_positive: float, gamma_negative: float, clip: float
) -> torch.Tensor:
    """Compute the asymmetric loss of each tag in float32 (Ridnik et al., arXiv:2009.14119, equations 4 to 6).

    Args:
        logits: Logits of any shape.
        labels: Labels of the same shape: 1 for present, 0 for absent, or a value in between to mix the two losses.
        gamma_positive, gamma_negative: Focusing exponents that reduce the weight of easy examples.
        clip: Probability that is subtracted from the scores of absent tags.
    """
    logits, labels = logits.float(), labels.float()
    absent = (torch.sigmoid(-logits) + clip).clamp(max=1)  # 1 - p_m
    log_absent = absent.log() if clip > 0 else nn.functional.logsigmoid(-logits)
    with torch.no_grad():  # the weights have no gradient, as in the authors' code
        right = labels * torch.sigmoid(logits) + (1 - labels) * absent
        weights = (1 - right) ** (labels * gamma_positive + (1 - labels) * gamma_negative)
    return -weights * (labels * nn.functional.logsigmoid(logits) + (1 - labels) * log_absent)


__all__ = ["RamForImageTagging", "RamImageTaggingOutput", "RamPreTrainedModel", "RamTaggingHead"]
