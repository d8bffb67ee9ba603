"""Where `trust_remote_code=True` enters a folder that carries this code (see `remote_code.py`).

Like importing the package, importing this makes transformers know LION; nothing else happens.
"""

from .configuration_lion import LionConfig
from .image_processing_lion import LionImageProcessor
from .modeling_lion import LionForConditionalGeneration, LionModel
from .pipelines import LionImageToTextPipeline
from .processing_lion import LionProcessor
from .registration import register

register()

__all__ = [
    "LionConfig",
    "LionForConditionalGeneration",
    "LionImageProcessor",
    "LionImageToTextPipeline",
    "LionModel",
    "LionProcessor",
]
