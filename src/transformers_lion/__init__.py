"""LION, a multimodal language model with dual-level visual knowledge, for Hugging Face transformers.

Importing the package makes transformers' Auto classes and pipelines know LION; nothing else happens.
"""

from .configuration_lion import LionAggregatorConfig, LionConfig, LionQFormerConfig, LionT5Config, LionVisionConfig
from .example import example_checkpoint
from .grounding import draw_boxes
from .image_loading import to_rgb
from .image_processing_lion import LionImageProcessor
from .inference import Answer, Lion, Request
from .modeling_lion import LionForConditionalGeneration, LionImageFeatures, LionPreTrainedModel, LionSeq2SeqLMOutput
from .modeling_lion_t5 import LionT5ForConditionalGeneration
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

register()

__all__ = [
    "Answer",
    "ImageTagger",
    "ImageTaggingPipeline",
    "Lion",
    "LionAggregatorConfig",
    "LionConfig",
    "LionForConditionalGeneration",
    "LionImageFeatures",
    "LionImageProcessor",
    "LionImageToTextPipeline",
    "LionPreTrainedModel",
    "LionProcessor",
    "LionQFormerConfig",
    "LionSeq2SeqLMOutput",
    "LionT5Config",
    "LionT5ForConditionalGeneration",
    "LionVisionConfig",
    "RamConfig",
    "RamForImageTagging",
    "RamImageProcessor",
    "RamImageTaggingOutput",
    "Request",
    "TaggedImage",
    "draw_boxes",
    "example_checkpoint",
    "to_rgb",
]
