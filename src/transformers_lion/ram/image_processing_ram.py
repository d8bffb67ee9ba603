"""Image processor of RAM: 384x384 pixels, bilinear interpolation and ImageNet statistics, and conversion of outputs to
tags.

Source: the preprocessing of RAM's reference code. Images are opened and resized by Pillow, as for LION.
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
    """Image processor of [`RamForImageTagging`]: LION's, with the size, resampling and statistics of RAM.

    Attributes:
        ram_config: Tag names and thresholds for `post_process_tagging`. `from_pretrained` reads them from the
            `config.json` of the model, so that they are stored only once.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 384, "width": 384}

    ram_config: RamConfig | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load the image processor, and the tags from the `config.json` in the same folder if there is one."""
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        image_processor = loaded[0] if isinstance(loaded, tuple) else loaded
        image_processor.ram_config = _config_beside(pretrained_model_name_or_path, hub_arguments)
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes to save, which are all but the tags."""
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
        """Convert outputs to tags.

        Args:
            outputs: Outputs of the model.
            threshold, top_k, sort_by_score, allow, drop: See `select_tags`.
            config: Tag names and thresholds, for example `model.config`. Defaults to the config in the folder that the
                image processor was loaded from.

        Returns:
            A list of `{"label": name, "score": probability}` for each image.

        Raises:
            ValueError: If there is no `config`, or an argument is invalid; see `select_tags`.
        """
        config = config or self.ram_config
        if config is None:
            raise ValueError(
                "This image processor has no tags because it was not loaded from the folder of a tagger. Pass "
                "config=model.config, or call model.post_process_tagging."
            )
        return select_tags(outputs["logits"], config, threshold, top_k, sort_by_score, allow, drop)


def _config_beside(folder: str | os.PathLike, hub_arguments: dict[str, Any]) -> RamConfig | None:
    """Load the configuration of the tagger from the folder or repository of its image processor, if it exists."""
    if os.path.isfile(folder):
        return None
    try:
        content, _ = RamConfig.get_config_dict(folder, **hub_arguments)
    except OSError:
        return None
    return RamConfig.from_dict(content) if content.get("model_type") == RamConfig.model_type else None


__all__ = ["RamImageProcessor"]
