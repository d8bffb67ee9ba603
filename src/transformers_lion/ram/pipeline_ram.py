"""`pipeline("image-tagging")`: returns the tags whose scores are above their thresholds.

The `image-classification` pipeline of transformers also accepts a tagger, as a multi-label classifier, but returns the
`top_k` best scores regardless of the thresholds.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature, ImageClassificationPipeline

from ..images import is_batch
from .modeling_ram import RamForImageTagging


class ImageTaggingPipeline(ImageClassificationPipeline):
    """Tag images. Each image has a list of `{"label", "score"}`.

    The pipeline accepts the arguments of `select_tags`: `threshold`, `top_k`, `sort_by_score`, `allow` and `drop`.
    """

    def check_model_type(self, supported_models: Any) -> None:
        """Log an error if the model is not a tagger."""
        super().check_model_type([RamForImageTagging.__name__])

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """Tag an image in any form, or a list, array, table column, generator or dataset of images."""
        inputs = kwargs.pop("images", inputs)  # older name of the argument
        if hasattr(inputs, "ndim") and is_batch(inputs):
            inputs = list(inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        threshold: float | None = None,
        top_k: int | None = None,
        sort_by_score: bool | None = None,
        allow: list[str] | None = None,
        drop: list[str] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        selection = {
            "threshold": threshold, "top_k": top_k, "sort_by_score": sort_by_score, "allow": allow, "drop": drop,
        }  # fmt: skip
        return {}, {}, {name: value for name, value in selection.items() if value is not None}

    @property
    def preprocess(self) -> "TaggerPreprocessing":
        """The preprocessing step. It holds no reference to the model, so dataloader workers don't copy the weights."""
        return TaggerPreprocessing(self.image_processor, self.dtype)

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        return {"logits": self.model(**model_inputs).logits}

    def postprocess(self, model_outputs: dict[str, Any], **selection: Any) -> list[dict[str, Any]]:
        """Convert logits (1, L) to tags."""
        return self.model.post_process_tagging(model_outputs, **selection)[0]


@dataclass(frozen=True)
class TaggerPreprocessing:
    """Preprocesses images for the pipeline, in dataloader workers if `num_workers` is set."""

    image_processor: Any
    dtype: torch.dtype

    def __call__(self, image: Any) -> BatchFeature:
        """Preprocess one image."""
        return self.image_processor(images=image, return_tensors="pt").to(self.dtype)


__all__ = ["ImageTaggingPipeline"]
