"""Recognize Anything (RAM, arXiv:2306.03514), the tagging model, for transformers."""

from .configuration_ram import RamConfig
from .image_processing_ram import RamImageProcessor
from .modeling_ram import RamForImageTagging, RamImageTaggingOutput
from .pipeline_ram import ImageTaggingPipeline
from .tagger import ImageTagger, TaggedImage

__all__ = [
    "ImageTagger",
    "ImageTaggingPipeline",
    "RamConfig",
    "RamForImageTagging",
    "RamImageProcessor",
    "RamImageTaggingOutput",
    "TaggedImage",
]
