"""Pictures -> `pixel_values` as the reference makes them: squashed to a square, bicubic, CLIP's statistics.

Source: the reference code's image processor. The pixels are exact because Pillow does the resizing; a tensor path does
not give the same ones, so there is none.
"""

from collections.abc import Callable
from typing import Any

from PIL import Image
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from .images import TIMEOUT, flatten, to_rgb


class LionImageProcessor(BlipImageProcessorPil):
    """BLIP's image processor at 224 x 224, for any image that `images` can open."""

    size = {"height": 224, "width": 224}

    def preprocess(self, images: Any, *args: Any, timeout: float | None = TIMEOUT, **kwargs: Any) -> BatchFeature:
        """As `BlipImageProcessorPil.preprocess`, for paths, URLs, pictures of any mode, arrays and tensors.

        Args:
            images: one image or a (nested) list; see `images.ImageSource`. They are opened one after the other,
                so that never more than one of them is in memory at its full size.
            timeout: of each download, in seconds; `None` for none.

        Returns:
            `pixel_values`, (B, 3, H, W).

        Raises:
            ValueError: if there is no image, or one cannot be read; the message names it.
        """
        if kwargs.get("do_rescale", self.do_rescale) and kwargs.get("input_data_format") is None:
            shrink = self._shrinker(kwargs)
            images = [shrink(to_rgb(image, timeout)) for image in flatten(images)]
            if not images:
                raise ValueError("There are no images: an empty batch was given.")
        return super().preprocess(images, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, without `auto_map`: what is saved has none of the code that it would lead to."""
        return {name: value for name, value in super().to_dict().items() if name != "auto_map"}

    def _shrinker(self, options: dict[str, Any]) -> Callable[[Image.Image], Image.Image]:
        """The first step of a call, by which transformers' own, on several copies of the picture, has nothing to do."""
        size, resample = options.get("size", self.size), options.get("resample", self.resample)
        if size is None or not options.get("do_resize", self.do_resize) or not isinstance(resample, int):
            return unchanged
        sides = dict(get_size_dict(size, default_to_square=self.default_to_square))
        height, width = sides.get("height"), sides.get("width")
        if not (height and width):
            return unchanged
        return lambda picture: picture.resize((width, height), Image.Resampling(resample))


def unchanged(picture: Image.Image) -> Image.Image:
    """The picture itself."""
    return picture


__all__ = ["LionImageProcessor"]
