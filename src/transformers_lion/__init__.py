"""LION, a multimodal language model with dual-level visual knowledge, for Hugging Face transformers.

Importing the package makes transformers' Auto classes and pipelines know LION; nothing else happens.
"""

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

register()

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
    "to_rgb",
]
