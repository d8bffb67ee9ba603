"""Registers the models of this package with transformers' Auto classes and pipelines."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
)

from .configuration_lion import LionConfig, LionT5Config
from .image_processing_lion import LionImageProcessor
from .modeling_lion import LionForConditionalGeneration, LionModel
from .modeling_lion_t5 import LionT5ForConditionalGeneration, LionT5Model
from .pipeline_registration import register_pipelines
from .processing_lion import LionProcessor
from .ram import RamConfig, RamForImageTagging, RamImageProcessor


def register() -> None:
    """Register all models, processors and pipelines. Repeated calls have no effect."""
    for config_class in (LionConfig, LionT5Config, RamConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(LionConfig, LionModel, exist_ok=True)
    AutoModelForImageTextToText.register(LionConfig, LionForConditionalGeneration, exist_ok=True)
    AutoModel.register(LionT5Config, LionT5Model, exist_ok=True)
    AutoModelForSeq2SeqLM.register(LionT5Config, LionT5ForConditionalGeneration, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForImageClassification):
        auto_class.register(RamConfig, RamForImageTagging, exist_ok=True)
    AutoProcessor.register(LionConfig, LionProcessor, exist_ok=True)
    for config_class, image_processor in ((LionConfig, LionImageProcessor), (RamConfig, RamImageProcessor)):
        # only Pillow gives exact pixels, so the same class is used if torchvision is installed
        classes = {"pil": image_processor, "torchvision": image_processor}
        AutoImageProcessor.register(config_class, image_processor_classes=classes, exist_ok=True)
    register_pipelines()
