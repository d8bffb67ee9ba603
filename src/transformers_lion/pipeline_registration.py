"""The pipeline's names in every supported version of transformers. All version-dependent code of this kind is here.

Why an entry of transformers' registry is exchanged: `pipeline("image-to-text", model=folder)` finds its class by the
task alone, and a model can bring its own only with code in its folder and `trust_remote_code`. Version 5.18 has no task
"image-to-text". From 5.19 on the name is rewritten to "image-text-to-text" before the registry is asked, so a class
registered under the old name is never found. Both names therefore lead to `LionOrStockPipeline`, which looks at the
model: LION gets LION's pipeline, and any other model gets an instance of the class that was registered before. Neither
`ImageTextToTextPipeline`, nor its subclasses, nor `pipeline` itself are changed.
"""

import logging
from typing import Any

from transformers import AutoModelForImageClassification, AutoModelForImageTextToText, ImageTextToTextPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_lion import LionConfig
from .pipelines import LionImageToTextPipeline
from .ram import ImageTaggingPipeline

STOCK_TASK = "image-text-to-text"
OLD_TASK = "image-to-text"
TAGGING_TASK = "image-tagging"


class LionOrStockPipeline(ImageTextToTextPipeline):
    """Makes `LionImageToTextPipeline` for LION, and for any other model the pipeline that was registered before."""

    stock: type[ImageTextToTextPipeline] = ImageTextToTextPipeline

    def __new__(cls, *args: Any, **kwargs: Any) -> ImageTextToTextPipeline:
        """An instance of one of the two, never of this class, so that Python calls no `__init__` a second time."""
        model = kwargs["model"] if "model" in kwargs else args[0]
        if isinstance(model.config, LionConfig):
            return LionImageToTextPipeline(*args, **kwargs)
        if kwargs.get("task") == OLD_TASK:  # as transformers answers where it does not rewrite the name
            known = [task for task in PIPELINE_REGISTRY.get_supported_tasks() if task != OLD_TASK]
            raise KeyError(f"Unknown task {OLD_TASK}, available tasks are {known}")
        return cls.stock(*args, **kwargs)


class RewriteNotice(logging.Filter):
    """Repairs the notice about the rewritten name: as transformers sends it, logging prints a traceback instead."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop the argument that the message has no place for."""
        if OLD_TASK in str(record.msg) and record.args and "%" not in str(record.msg):
            record.args = ()
        return True


def register_pipelines() -> None:
    """Let both task names find LION, and add the tagger's. Calling it again changes nothing."""
    tasks = PIPELINE_REGISTRY.supported_tasks
    registered = tasks[STOCK_TASK]["impl"]  # newer versions name transformers' own by a text
    if isinstance(registered, type) and registered is not LionOrStockPipeline:
        LionOrStockPipeline.stock = registered
    tasks[STOCK_TASK] = {**tasks[STOCK_TASK], "impl": LionOrStockPipeline}
    tasks.setdefault(
        OLD_TASK, {"impl": LionOrStockPipeline, "pt": (AutoModelForImageTextToText,), "type": "multimodal"}
    )
    tasks.setdefault(
        TAGGING_TASK, {"impl": ImageTaggingPipeline, "pt": (AutoModelForImageClassification,), "type": "image"}
    )
    notices = logging.getLogger("transformers.pipelines")
    if not any(isinstance(installed, RewriteNotice) for installed in notices.filters):
        notices.addFilter(RewriteNotice())
