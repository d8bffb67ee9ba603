"""RAM, the tagger: Recognize Anything (arXiv:2306.03514) in transformers form."""

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
