"""Any image a user has -> an upright RGB picture, or an error that names it.

transformers' loaders do the opening; added is what they lose: 16-bit pictures keep their tones, float pictures in
[0, 1] are scaled, and a file that is no picture is named.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format, load_image

ImageSource = str | Path | Image.Image | np.ndarray | torch.Tensor
"""One image: a path, a URL, base64 text, a picture, or an array (H, W), (H, W, C) or (C, H, W)."""


def load_rgb_images(images: Any) -> list[Image.Image]:
    """All images of a nested list, a batched array or a single image, as upright RGB pictures.

    Args:
        images: an `ImageSource`, a (nested) list of them, or an array with a batch dimension.

    Raises:
        ValueError: if there is no image, or one cannot be read; the message names it.
    """
    pictures = [to_rgb(image) for image in flatten(images)]
    if not pictures:
        raise ValueError("There are no images: an empty batch was given.")
    return pictures


def is_batch(images: Any) -> bool:
    """Whether `images` is a list or an array with a batch dimension, rather than one image."""
    return isinstance(images, list | tuple) or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4)


def flatten(images: Any) -> Iterator[ImageSource]:
    """The single images of any nesting."""
    if is_batch(images):
        for part in images:
            yield from flatten(part)
    else:
        yield images


def to_rgb(image: ImageSource, timeout: float | None = None) -> Image.Image:
    """One image as an upright RGB picture.

    Args:
        image: in any form.
        timeout: of a download, in seconds.

    Raises:
        ValueError: if it cannot be read.
    """
    name = repr(str(image)[:120]) if isinstance(image, str | Path) else type(image).__name__
    try:
        picture = open_picture(image, timeout)
        picture.load()
        rgb = to_eight_bits(ImageOps.exif_transpose(picture)).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"Image {name} is not a picture in a known format.") from error
    except Exception as error:  # decoders and downloads raise many kinds
        raise ValueError(f"Image {name} cannot be read: {error}") from error
    rgb.info.pop("transparency", None)  # the reference drops it; later steps would blend it over white
    return rgb


def open_picture(image: ImageSource, timeout: float | None = None) -> Image.Image:
    """Open one image without converting it."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray | torch.Tensor):
        return array_to_picture(as_array(image))
    if not isinstance(image, str | Path):
        raise ValueError("expected a path, a URL, base64 text, a picture or an array.")
    source = os.fspath(image)
    if os.path.isfile(source):
        return Image.open(source)
    if isinstance(image, str) and (source.startswith(("http://", "https://", "data:image/")) or is_base64(source)):
        return load_image(source, timeout=timeout)
    raise ValueError("there is no such file, and it is neither a URL nor base64 text.")


def as_array(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """A tensor of any device and dtype as an array."""
    if isinstance(image, np.ndarray):
        return image
    image = image.detach().cpu()
    return image.float().numpy() if image.dtype == torch.bfloat16 else image.numpy()


def is_base64(text: str) -> bool:
    """Whether `text` is long enough, and made of the right characters, to be a picture in base64."""
    return len(text) > 64 and text.replace("\n", "").rstrip("=").replace("+", "A").replace("/", "A").isalnum()


def to_eight_bits(picture: Image.Image) -> Image.Image:
    """Bring a picture of 16 or 32 bits a channel to 8; Pillow's own conversion would clip it to white."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    return array_to_picture(np.asarray(picture))


def array_to_picture(array: np.ndarray) -> Image.Image:
    """(H, W), (H, W, C) or (C, H, W), C of 1, 3 or 4, as a picture of 8 bits a channel.

    Raises:
        ValueError: if the shape is no picture's, or values are neither 0..255, nor 0..65535 integers, nor 0..1 floats.
    """
    if array.ndim == 3 and infer_channel_dimension_format(array, num_channels=(1, 3, 4)) == ChannelDimension.FIRST:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"an array of shape {array.shape} is no picture.")
    low, high = float(array.min()), float(array.max())
    is_float = np.issubdtype(array.dtype, np.floating)
    largest = 65535 if array.dtype == np.uint16 or high > 255 else 255
    if array.dtype == bool or (is_float and high <= 1):
        largest = 1
    if not (low >= 0 and high <= largest) or (is_float and largest > 255):
        raise ValueError(f"its values go from {low:g} to {high:g}, outside of 0 to 255 (or 0 to 1 for floats).")
    if largest == 65535:
        array = array >> 8
    elif largest == 1:
        array = array * 255.0
    return Image.fromarray(np.rint(array).astype(np.uint8) if array.dtype != np.uint8 else array)
