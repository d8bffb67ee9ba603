"""Registers LION's pipelines under their task names in all supported versions of transformers.

Why an entry of transformers' registry is replaced: `pipeline("image-to-text", model=folder)` selects the class by the
task alone. A model can only provide its own class through code in its folder and `trust_remote_code`. Version 5.18 has
no task "image-to-text". Since 5.19, the name is rewritten to "image-text-to-text" before the lookup, so a class
registered under the old name is never found. Therefore both names are registered with `LionOrStockPipeline`, which
creates LION's pipeline for LION, and the pipeline that was registered before for any other model.
`ImageTextToTextPipeline`, its subclasses and `pipeline` itself are not changed.
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
    """Creates `LionImageToTextPipeline` for LION, and the previously registered pipeline for any other model."""

    stock: type[ImageTextToTextPipeline] = ImageTextToTextPipeline

    def __new__(cls, *args: Any, **kwargs: Any) -> ImageTextToTextPipeline:
        """Create an instance of another class, so that Python does not call `__init__` again."""
        model = kwargs["model"] if "model" in kwargs else args[0]
        if isinstance(model.config, LionConfig):
            return LionImageToTextPipeline(*args, **kwargs)
        if kwargs.get("task") == OLD_TASK:  # the error of versions that do not rewrite the name
            known = [task for task in PIPELINE_REGISTRY.get_supported_tasks() if task != OLD_TASK]
            raise KeyError(f"Unknown task {OLD_TASK}, available tasks are {known}")
        return cls.stock(*args, **kwargs)


class RewriteNotice(logging.Filter):
    """Fixes the log message about the rewritten name, for which logging would otherwise print a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop the argument for which the message has no placeholder."""
        if OLD_TASK in str(record.msg) and record.args and "%" not in str(record.msg):
            record.args = ()
        return True


def register_pipelines() -> None:
    """Register both task names of LION and the task of the tagger. Repeated calls have no effect."""
    tasks = PIPELINE_REGISTRY.supported_tasks
    registered = tasks[STOCK_TASK]["impl"]  # newer versions store the name of transformers' own class
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
