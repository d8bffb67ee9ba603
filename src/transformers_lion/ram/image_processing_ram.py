"""Images for RAM: 384x384 pixels, bilinear, ImageNet statistics; and from the model's outputs back to tags.

Source: the preprocessing of RAM's reference code. Images are opened, and resized by Pillow, as for LION.
"""

import os
from collections.abc import Iterable
from typing import Any

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from ..image_processing_lion import LionImageProcessor
from .configuration_ram import RamConfig
from .tags import select_tags

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class RamImageProcessor(LionImageProcessor):
    """Image processor of [`RamForImageTagging`]: LION's, with RAM's size, resampling and statistics.

    Attributes:
        ram_config: tag names and thresholds for `post_process_tagging`; `from_pretrained` takes them from the model's
            own `config.json`, so that they have one home.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 384, "width": 384}

    ram_config: RamConfig | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As of all image processors; the tags come from the `config.json` beside, if there is one."""
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        image_processor = loaded[0] if isinstance(loaded, tuple) else loaded
        image_processor.ram_config = _config_beside(pretrained_model_name_or_path, hub_arguments)
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """The attributes that are saved: all but the tags."""
        return {name: value for name, value in super().to_dict().items() if name != "ram_config"}

    def post_process_tagging(
        self,
        outputs: Any,
        threshold: float | None = None,
        top_k: int | None = None,
        sort_by_score: bool = False,
        allow: Iterable[str] | None = None,
        drop: Iterable[str] | None = None,
        config: RamConfig | None = None,
    ) -> list[list[dict[str, Any]]]:
        """For each image its tags, as `{"label", "score"}`.

        Args:
            outputs: of the model.
            threshold, top_k, sort_by_score, allow, drop: see `select_tags`.
            config: tag names and thresholds, such as `model.config`; by default those of the folder that the image
                processor was loaded from.

        Raises:
            ValueError: if there is no `config`, and as `select_tags` does.
        """
        config = config or self.ram_config
        if config is None:
            raise ValueError(
                "This image processor knows no tags: it was not loaded from a tagger's folder. Pass "
                "config=model.config, or call model.post_process_tagging."
            )
        return select_tags(outputs["logits"], config, threshold, top_k, sort_by_score, allow, drop)


def _config_beside(folder: str | os.PathLike, hub_arguments: dict[str, Any]) -> RamConfig | None:
    """The tagger's configuration from the folder or repository of its image processor, if it is there."""
    if os.path.isfile(folder):
        return None
    try:
        content, _ = RamConfig.get_config_dict(folder, **hub_arguments)
    except OSError:
        return None
    return RamConfig.from_dict(content) if content.get("model_type") == RamConfig.model_type else None


__all__ = ["RamImageProcessor"]
