"""Makes transformers' Auto classes and pipelines know the models of this package."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
)

from .adapters import LionT5ForConditionalGeneration
from .configuration_lion import LionConfig, LionT5Config
from .image_processing_lion import LionImageProcessor
from .modeling_lion import LionForConditionalGeneration
from .pipeline_registration import register_pipelines
from .processing_lion import LionProcessor


def register() -> None:
    """Register everything. Calling it again changes nothing."""
    AutoConfig.register("lion", LionConfig, exist_ok=True)
    AutoConfig.register("lion_t5", LionT5Config, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForImageTextToText):
        auto_class.register(LionConfig, LionForConditionalGeneration, exist_ok=True)
    AutoModelForSeq2SeqLM.register(LionT5Config, LionT5ForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(LionConfig, LionProcessor, exist_ok=True)
    AutoImageProcessor.register(
        LionConfig,
        # Pillow's pixels are the exact ones, so the same class serves where torchvision is installed
        image_processor_classes={"pil": LionImageProcessor, "torchvision": LionImageProcessor},
        exist_ok=True,
    )
    register_pipelines()
