"""Image processor of LION: resize to a square with bicubic interpolation and normalize with CLIP's statistics.

Source: the reference code's image processor. Pixels are identical to the reference's because Pillow does the resizing.
There is no path for tensors, which would give different pixels.
"""

from collections.abc import Callable
from typing import Any

from PIL import Image
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from .images import TIMEOUT, flatten, to_rgb


class LionImageProcessor(BlipImageProcessorPil):
    """BLIP's image processor with 224 x 224 pixels, for any image that `images` can open."""

    size = {"height": 224, "width": 224}

    def preprocess(self, images: Any, *args: Any, timeout: float | None = TIMEOUT, **kwargs: Any) -> BatchFeature:
        """Preprocess images like `BlipImageProcessorPil.preprocess`, and also accept paths, URLs, images of any mode,
        arrays and tensors.

        Args:
            images: One image or a (nested) list of images; see `images.ImageSource`. Images are opened one after
                the other, so that only one of them is in memory at full size.
            timeout: Timeout of each download in seconds, or `None`.

        Returns:
            `pixel_values` of shape (B, 3, H, W).

        Raises:
            ValueError: If there are no images, or one of them cannot be read. The message names it.
        """
        if kwargs.get("do_rescale", self.do_rescale) and kwargs.get("input_data_format") is None:
            shrink = self._shrinker(kwargs)
            images = [shrink(to_rgb(image, timeout)) for image in flatten(images)]
            if not images:
                raise ValueError("There are no images: the batch is empty.")
        return super().preprocess(images, *args, **kwargs)

    def shrink(self, image: Image.Image) -> Image.Image:
        """Resize an image as `preprocess` does, so that it takes less memory until then.

        Args:
            image: An upright RGB image.

        Returns:
            The resized image. `preprocess` returns the same pixels for it as for `image`.
        """
        return self._shrinker({})(image)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes to save, without `auto_map`, because the code it refers to is not saved."""
        return {name: value for name, value in super().to_dict().items() if name != "auto_map"}

    def _shrinker(self, options: dict[str, Any]) -> Callable[[Image.Image], Image.Image]:
        """Return the resizing step, applied on loading so that transformers does not copy images at full size."""
        size, resample = options.get("size", self.size), options.get("resample", self.resample)
        if size is None or not options.get("do_resize", self.do_resize) or not isinstance(resample, int):
            return _unchanged
        sides = dict(get_size_dict(size, default_to_square=self.default_to_square))
        height, width = sides.get("height"), sides.get("width")
        if not (height and width):
            return _unchanged
        return lambda image: image.resize((width, height), Image.Resampling(resample))


def _unchanged(image: Image.Image) -> Image.Image:
    return image


__all__ = ["LionImageProcessor"]
