"""The entry module of folders that carry LION's code: what `trust_remote_code=True` loads.

`remote_code.py` puts it beside a checkpoint and has it import the modules there in place of the package's. Like
importing the package, importing it registers LION with transformers. What is saved in such a process carries the code
as well.
"""

import os
import shutil
from functools import wraps
from pathlib import Path
from typing import Any

from transformers_lion.configuration_lion import LionConfig
from transformers_lion.image_processing_lion import LionImageProcessor
from transformers_lion.modeling_lion import LionForConditionalGeneration, LionModel
from transformers_lion.pipelines import LionImageToTextPipeline
from transformers_lion.processing_lion import LionProcessor
from transformers_lion.registration import register

ENTRY_MODULE = "lion_remote"
AUTO_MAPS: dict[str, dict[str, str]] = {
    "config.json": {
        "AutoConfig": f"{ENTRY_MODULE}.LionConfig",
        "AutoModel": f"{ENTRY_MODULE}.LionModel",
        "AutoModelForImageTextToText": f"{ENTRY_MODULE}.LionForConditionalGeneration",
    },
    "processor_config.json": {"AutoProcessor": f"{ENTRY_MODULE}.LionProcessor"},
    "preprocessor_config.json": {"AutoImageProcessor": f"{ENTRY_MODULE}.LionImageProcessor"},
}
"""What leads to the code from each file. The last exists only where an image processor is saved by itself."""


def save_code_with(cls: Any, auto_map: dict[str, str]) -> None:
    """Have instances of a class save an `auto_map`, and the code beside it."""
    to_dict, to_json_file = cls.to_dict, cls.to_json_file

    @wraps(to_dict)
    def to_dict_with_auto_map(self: Any) -> dict[str, Any]:
        return {**to_dict(self), "auto_map": dict(auto_map)}

    @wraps(to_json_file)
    def to_json_file_with_code(self: Any, json_file_path: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        for module in Path(__file__).parent.glob("*.py"):
            if module.name != "__init__.py":
                shutil.copyfile(module, Path(json_file_path).with_name(module.name))
        to_json_file(self, json_file_path, *args, **kwargs)

    def register_for_auto_class(cls: type, auto_class: str | None = None) -> None:
        """Nothing: with it, transformers would lead to the module of each class and leave this one out."""

    cls.to_dict, cls.to_json_file = to_dict_with_auto_map, to_json_file_with_code
    cls.register_for_auto_class = classmethod(register_for_auto_class)


if __package__:  # that of a checkpoint's folder
    for saved, auto_map in zip((LionConfig, LionProcessor, LionImageProcessor), AUTO_MAPS.values(), strict=True):
        save_code_with(saved, auto_map)
    register()

__all__ = [
    "LionConfig",
    "LionForConditionalGeneration",
    "LionImageProcessor",
    "LionImageToTextPipeline",
    "LionModel",
    "LionProcessor",
]
