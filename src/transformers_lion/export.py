"""The model's four parts as modules of tensors alone, for `torch.export` and ONNX.

LION as a whole decides in Python how often the decoder runs, so that it is exported in parts: images, the question, the
language model's encoder, and the decoder. Each takes any number of samples and, where there are texts, any length.

Shape letters: B batch, P patches and CLS, Q query tokens, T text tokens, E encoder positions, L decoder positions,
V vision width, D language model width.
"""

from typing import Any

import torch
from torch import nn
from torch.export import Dim

from .configuration_lion import LionConfig
from .modeling_lion import LionForConditionalGeneration, LionImageFeatures

EXAMPLE_SIZES = {"batch": 2, "text": 5, "encoder": 7, "decoder": 3}
"""Of the inputs that a part is traced with; none is 1, which would be taken for fixed."""


class ExportPart(nn.Module):
    """A part of the model whose inputs and outputs are tensors.

    Attributes:
        input_names, output_names: in the order of the arguments and results.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def __init__(self, model: LionForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Inputs of the smallest size that the part can be traced with, on the model's device."""
        raise NotImplementedError

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Which dimensions of each input may have another size, as `torch.export.export` wants it."""
        raise NotImplementedError

    def _ids(self, length: str) -> torch.Tensor:
        return torch.ones(EXAMPLE_SIZES["batch"], EXAMPLE_SIZES[length], dtype=torch.long, device=self.model.device)

    def _states(self, length: int, width: int) -> torch.Tensor:
        return torch.ones(EXAMPLE_SIZES["batch"], length, width, dtype=self.model.dtype, device=self.model.device)


class ImagePart(ExportPart):
    """(B, 3, H, W) pixels -> (B, P, V) for the Q-Former and (B, P, D) of the aggregator; needs both visual branches."""

    input_names = ("pixel_values",)
    output_names = ("last_hidden_state", "pooler_output")

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        features = self.model.get_image_features(pixel_values)
        return features.last_hidden_state, features.pooler_output

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """See `ExportPart`."""
        size = self.model.config.vision_config.image_size
        shape = (EXAMPLE_SIZES["batch"], 3, size, size)
        return (torch.ones(shape, dtype=self.model.dtype, device=self.model.device),)

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """See `ExportPart`."""
        return ({0: Dim("batch")},)


class QuestionPart(ExportPart):
    """(B, P, V) of the images and the questions' ids and mask (B, T) -> (B, Q, D)."""

    input_names = ("last_hidden_state", "qformer_input_ids", "qformer_attention_mask")
    output_names = ("query_features",)

    def forward(
        self, last_hidden_state: torch.Tensor, qformer_input_ids: torch.Tensor, qformer_attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """See the class."""
        features = LionImageFeatures(last_hidden_state=last_hidden_state)
        return self.model.get_query_features(features, qformer_input_ids, qformer_attention_mask)[0]

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """See `ExportPart`."""
        states = self._states(num_patches(self.model.config), self.model.config.vision_config.hidden_size)
        return states, self._ids("text"), self._ids("text")

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """See `ExportPart`."""
        batch = Dim("batch")
        length = Dim("text", min=2, max=self.model.config.qformer_config.max_position_embeddings)
        return {0: batch}, {0: batch, 1: length}, {0: batch, 1: length}


class EncoderPart(ExportPart):
    """Embeddings (B, E, D) of images and text, their mask (B, E) and tasks (B,) -> (B, E, D)."""

    input_names = ("inputs_embeds", "attention_mask", "task_type_ids")
    output_names = ("encoder_hidden_states",)

    def forward(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, task_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """See the class."""
        encoder = self.model.language_model.encoder
        return encoder(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, task_type_ids=task_type_ids
        ).last_hidden_state

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """See `ExportPart`."""
        states = self._states(EXAMPLE_SIZES["encoder"], self.model.config.text_config.d_model)
        return states, self._ids("encoder"), self._ids("encoder")[:, 0]

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """See `ExportPart`."""
        batch, length = Dim("batch"), Dim("encoder", min=2)
        return {0: batch, 1: length}, {0: batch, 1: length}, {0: batch}


class DecoderPart(ExportPart):
    """Answers so far (B, L), (B, E, D) of the encoder, its mask (B, E) and tasks (B,) -> logits (B, L, vocabulary)."""

    input_names = ("decoder_input_ids", "encoder_hidden_states", "attention_mask", "task_type_ids")
    output_names = ("logits",)

    def forward(
        self,
        decoder_input_ids: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        task_type_ids: torch.Tensor,
    ) -> torch.Tensor:
        """See the class."""
        return self.model.language_model(
            decoder_input_ids=decoder_input_ids,
            encoder_outputs=(encoder_hidden_states,),
            attention_mask=attention_mask,
            task_type_ids=task_type_ids,
            use_cache=False,
        ).logits

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """See `ExportPart`."""
        states = self._states(EXAMPLE_SIZES["encoder"], self.model.config.text_config.d_model)
        return self._ids("decoder"), states, self._ids("encoder"), self._ids("encoder")[:, 0]

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """See `ExportPart`."""
        batch, encoder = Dim("batch"), Dim("encoder", min=2)
        return {0: batch, 1: Dim("decoder")}, {0: batch, 1: encoder}, {0: batch, 1: encoder}, {0: batch}


def num_patches(config: LionConfig) -> int:
    """P, patches and CLS."""
    vision = config.vision_config
    return (vision.image_size // vision.patch_size) ** 2 + 1


def export_parts(model: LionForConditionalGeneration) -> dict[str, ExportPart]:
    """The four parts of a model, in the order in which they run.

    Args:
        model: with both visual branches. It is put into eval mode, and its attention becomes `"eager"`: the ONNX
            exporter of torch 2.13 stops at the strides of PyTorch's own attention, which here are those of the batch.

    Raises:
        ValueError: if it has one visual branch only.
    """
    if model.config.visual_branch != "both":
        raise ValueError(
            f"Parts are exported of a model with both visual branches, not {model.config.visual_branch!r}."
        )
    model.set_attn_implementation("eager")
    parts = {"image": ImagePart, "question": QuestionPart, "encoder": EncoderPart, "decoder": DecoderPart}
    return {name: part(model) for name, part in parts.items()}


__all__ = ["DecoderPart", "EncoderPart", "ExportPart", "ImagePart", "QuestionPart", "export_parts"]
