"""Splits the model into four modules with tensor inputs and outputs, for `torch.export` and ONNX.

Generation is a Python loop over the decoder, so LION is exported in parts: images, questions, the encoder of the
language model, and its decoder. All parts accept any batch size and text length.

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
"""Sizes of the example inputs. None is 1, which `torch.export` would treat as a constant."""


class ExportPart(nn.Module):
    """Part of the model with tensors as inputs and outputs.

    Attributes:
        input_names, output_names: Names of the inputs and outputs, in order.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def __init__(self, model: LionForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Return small inputs for tracing, on the device of the model."""
        raise NotImplementedError

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Return the dynamic dimensions of each input, in the format of `torch.export.export`."""
        raise NotImplementedError

    def _ids(self, length: str) -> torch.Tensor:
        return torch.ones(EXAMPLE_SIZES["batch"], EXAMPLE_SIZES[length], dtype=torch.long, device=self.model.device)

    def _states(self, length: int, width: int) -> torch.Tensor:
        return torch.ones(EXAMPLE_SIZES["batch"], length, width, dtype=self.model.dtype, device=self.model.device)


class ImagePart(ExportPart):
    """Vision tower and aggregator: pixels (B, 3, H, W) -> Q-Former input (B, P, V) and projected features (B, P, D)."""

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
    """Q-Former: image features (B, P, V), token ids and mask of the questions (B, T) -> features (B, Q, D)."""

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
    """Encoder: embeddings of images and text (B, E, D), their mask (B, E) and tasks (B,) -> states (B, E, D)."""

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
    """Decoder: token ids (B, L), encoder states (B, E, D), mask (B, E) and tasks (B,) -> logits (B, L, vocabulary)."""

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
    """Return P, the number of patches plus one for CLS."""
    vision = config.vision_config
    return (vision.image_size // vision.patch_size) ** 2 + 1


def export_parts(model: LionForConditionalGeneration) -> dict[str, ExportPart]:
    """Split a model into parts for export.

    Args:
        model: Model with both visual branches. It is put in eval mode, and its attention implementation is set to
            `"eager"`, because the ONNX exporter of torch 2.13 fails on the strides of SDPA with a dynamic batch size.

    Returns:
        The four parts by name, in the order in which they run.

    Raises:
        ValueError: If the model has only one visual branch.
    """
    if model.config.visual_branch != "both":
        raise ValueError(
            f'Export requires a model with visual_branch="both", but it is {model.config.visual_branch!r}.'
        )
    model.set_attn_implementation("eager")
    parts = {"image": ImagePart, "question": QuestionPart, "encoder": EncoderPart, "decoder": DecoderPart}
    return {name: part(model) for name, part in parts.items()}


__all__ = ["DecoderPart", "EncoderPart", "ExportPart", "ImagePart", "QuestionPart", "export_parts"]
