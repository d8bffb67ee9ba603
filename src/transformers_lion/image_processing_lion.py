"""Pictures -> `pixel_values` as the reference makes them: squashed to a square, bicubic, CLIP's statistics.

Source: the reference code's image processor. The pixels are exact because Pillow does the resizing; a tensor path does
not give the same ones, so there is none.
"""

from typing import Any

from transformers.image_processing_utils import BatchFeature
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from .image_loading import load_rgb_images
from .remote_code import carries_its_code


@carries_its_code
class LionImageProcessor(BlipImageProcessorPil):
    """BLIP's image processor at 224 x 224, for any image that `image_loading` can open."""

    size = {"height": 224, "width": 224}

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """As `BlipImageProcessorPil.preprocess`, for paths, URLs, pictures of any mode, arrays and tensors.

        Args:
            images: one image or a (nested) list; see `image_loading.ImageSource`.

        Returns:
            `pixel_values`, (B, 3, H, W).

        Raises:
            ValueError: if there is no image, or one cannot be read; the message names it.
        """
        do_rescale = kwargs.get("do_rescale", self.do_rescale)
        if do_rescale and kwargs.get("input_data_format") is None:
            images = load_rgb_images(images)
        return super().preprocess(images, *args, **kwargs)


__all__ = ["LionImageProcessor"]
