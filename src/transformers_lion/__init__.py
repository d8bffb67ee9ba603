"""LION, a multimodal language model with dual-level visual knowledge, for Hugging Face transformers.

Importing the package registers LION with transformers' Auto classes and pipelines. Public names are imported on first
access (PEP 562) and registration is deferred (see `deferred_registration`), so that `lion --help` imports neither
transformers nor torch.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .deferred_registration import register_with_transformers

if TYPE_CHECKING:
    from .configuration_lion import LionAggregatorConfig, LionConfig, LionQFormerConfig, LionT5Config, LionVisionConfig
    from .example import example_checkpoint
    from .grounding import draw_boxes
    from .image_processing_lion import LionImageProcessor
    from .images import to_rgb
    from .inference import Answer, Lion, Request
    from .modeling_lion import (
        LionEncoderOutput,
        LionForConditionalGeneration,
        LionImageFeatures,
        LionModel,
        LionModelOutput,
        LionPreTrainedModel,
        LionSeq2SeqLMOutput,
    )
    from .modeling_lion_t5 import LionT5ForConditionalGeneration, LionT5Model
    from .pipelines import LionImageToTextPipeline
    from .processing_lion import LionProcessor
    from .ram import (
        ImageTagger,
        ImageTaggingPipeline,
        RamConfig,
        RamForImageTagging,
        RamImageProcessor,
        RamImageTaggingOutput,
        TaggedImage,
    )
    from .registration import register

__version__ = "0.1.0.dev0"

MODULES = {
    name: module
    for module, names in {
        "configuration_lion": (
            "LionAggregatorConfig",
            "LionConfig",
            "LionQFormerConfig",
            "LionT5Config",
            "LionVisionConfig",
        ),
        "example": ("example_checkpoint",),
        "grounding": ("draw_boxes",),
        "images": ("to_rgb",),
        "image_processing_lion": ("LionImageProcessor",),
        "inference": (
            "Answer",
            "Lion",
            "Request",
        ),
        "modeling_lion": (
            "LionEncoderOutput",
            "LionForConditionalGeneration",
            "LionImageFeatures",
            "LionModel",
            "LionModelOutput",
            "LionPreTrainedModel",
            "LionSeq2SeqLMOutput",
        ),
        "modeling_lion_t5": (
            "LionT5ForConditionalGeneration",
            "LionT5Model",
        ),
        "pipelines": ("LionImageToTextPipeline",),
        "processing_lion": ("LionProcessor",),
        "ram": (
            "ImageTagger",
            "ImageTaggingPipeline",
            "RamConfig",
            "RamForImageTagging",
            "RamImageProcessor",
            "RamImageTaggingOutput",
            "TaggedImage",
        ),
        "registration": ("register",),
    }.items()
    for name in names
}
"""Module of each public name. Type checkers use the imports above instead."""


def __getattr__(name: str) -> Any:
    """Import a public name or a module of the package on first access."""
    if name in MODULES:
        value = getattr(importlib.import_module(f".{MODULES[name]}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return all names of the package, whether imported yet or not."""
    return sorted({*globals(), *MODULES})


register_with_transformers()

__all__ = [
    "Answer",
    "ImageTagger",
    "ImageTaggingPipeline",
    "Lion",
    "LionAggregatorConfig",
    "LionConfig",
    "LionEncoderOutput",
    "LionForConditionalGeneration",
    "LionImageFeatures",
    "LionImageProcessor",
    "LionImageToTextPipeline",
    "LionModel",
    "LionModelOutput",
    "LionPreTrainedModel",
    "LionProcessor",
    "LionQFormerConfig",
    "LionSeq2SeqLMOutput",
    "LionT5Config",
    "LionT5ForConditionalGeneration",
    "LionT5Model",
    "LionVisionConfig",
    "RamConfig",
    "RamForImageTagging",
    "RamImageProcessor",
    "RamImageTaggingOutput",
    "Request",
    "TaggedImage",
    "draw_boxes",
    "example_checkpoint",
    "register",
    "to_rgb",
]
