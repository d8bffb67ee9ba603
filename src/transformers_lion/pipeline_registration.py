"""The pipeline's names in every supported version of transformers. All version-dependent code of this kind is here.

Version 5.18 knows no task "image-to-text". From 5.19 on the name is rewritten to "image-text-to-text" before
the registry is asked, so that a class registered under it is never found. Both names therefore lead to
`LionOrStockPipeline`, which looks at the model: LION gets LION's pipeline, any other model exactly what it would have
got. Nothing of transformers is replaced but that one entry of its registry.
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
    """Makes `LionImageToTextPipeline` for LION, and transformers' own pipeline for any other model."""

    def __new__(cls, *args: Any, **kwargs: Any) -> ImageTextToTextPipeline:
        """An instance of one of the two, never of this class, so that Python calls no `__init__` a second time."""
        model = kwargs["model"] if "model" in kwargs else args[0]
        if isinstance(model.config, LionConfig):
            return LionImageToTextPipeline(*args, **kwargs)
        if kwargs.get("task") == OLD_TASK:  # as transformers answers where it does not rewrite the name
            known = [task for task in PIPELINE_REGISTRY.get_supported_tasks() if task != OLD_TASK]
            raise KeyError(f"Unknown task {OLD_TASK}, available tasks are {known}")
        return ImageTextToTextPipeline(*args, **kwargs)


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
