"""`pipeline("image-tagging")`: the tags that are present, by each tag's own threshold.

The stock `image-classification` pipeline takes a tagger too, as multi-label: it gives the best `top_k` scores, whether
they are above their thresholds or not.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature, ImageClassificationPipeline

from ..images import is_batch
from .modeling_ram import RamForImageTagging


class ImageTaggingPipeline(ImageClassificationPipeline):
    """Tags of images: for each a list of `{"label", "score"}`.

    It takes the arguments of `select_tags`: `threshold`, `top_k`, `sort_by_score`, `allow` and `drop`.
    """

    def check_model_type(self, supported_models: Any) -> None:
        """Report a model that is no tagger."""
        super().check_model_type([RamForImageTagging.__name__])

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """Tag an image in any form, or several: a list, an array or a column of a table, a generator or a data set."""
        inputs = kwargs.pop("images", inputs)  # its older name
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
        given = {name: value for name, value in selection.items() if value is not None}
        return {}, {}, given

    @property
    def preprocess(self) -> "TaggerPreprocessing":
        """What makes pixels of an image: no part of the model, so that worker processes get none of its weights."""
        return TaggerPreprocessing(self.image_processor, self.dtype)

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        return {"logits": self.model(**model_inputs).logits}

    def postprocess(self, model_outputs: dict[str, Any], **selection: Any) -> list[dict[str, Any]]:
        """Logits (1, L) to tags."""
        return self.model.post_process_tagging(model_outputs, **selection)[0]


@dataclass(frozen=True)
class TaggerPreprocessing:
    """Makes pixels for the pipeline, in worker processes with `num_workers`."""

    image_processor: Any
    dtype: torch.dtype

    def __call__(self, image: Any) -> BatchFeature:
        """One image to pixels."""
        return self.image_processor(images=image, return_tensors="pt").to(self.dtype)


__all__ = ["ImageTaggingPipeline"]
