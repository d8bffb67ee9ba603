"""Pixels of any image or array -> upright, RGB, 8 bits a channel; and the size that this has.

Added to Pillow is what its own conversions lose: tones of 16 bits and of floats, whose range they clip.
"""

import numpy as np
import torch
from PIL import Image

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each value of EXIF's orientation wants done."""
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that swap width and height."""

DEEP_FORMATS = ("PNG", "PPM", "JPEG2000")
"""Formats whose grey images of more than 8 bits are of 16, also where Pillow holds them in integers of 32."""

CHANNELS = (1, 3, 4)
ROUNDING = 1e-3
"""By so much floats from 0 to 1 may be beyond them."""


def upright_rgb(picture: Image.Image) -> Image.Image:
    """An image turned, of 8 bits a channel and RGB, without a copy where it is so already."""
    picture.load()
    turn = TURNS.get(_read_orientation(picture))
    rgb = _to_eight_bits(picture)
    if rgb.mode in ("RGBa", "La"):
        rgb = rgb.convert(rgb.mode.upper())
    if rgb.mode != "RGB":
        rgb = rgb.convert("RGB")
    if turn is not None:
        rgb = rgb.transpose(turn)
    if rgb is picture and "transparency" in rgb.info:
        rgb = rgb.copy()
    if rgb is not picture:  # nothing may turn it again, or blend its transparent color over white
        rgb.info = {key: value for key, value in rgb.info.items() if key == "icc_profile"}
    return rgb


def measure(picture: Image.Image) -> tuple[int, int]:
    """The (width, height) of an image when it is turned."""
    if picture.format == "TIFF":  # which Pillow turns by itself when it decodes
        picture.load()
    width, height = picture.size
    return (height, width) if _read_orientation(picture) in SIDEWAYS else (width, height)


def _read_orientation(picture: Image.Image) -> int:
    """The orientation of an image's EXIF or XMP data; 1, upright, if there are none or they are damaged."""
    try:
        found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds for blocks that are none
        return 1
    return found if isinstance(found, int) else 1


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Bring an image of 16 or 32 bits a channel to 8; Pillow's own conversion would clip it to white."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    array = np.asarray(picture)
    if picture.mode == "I" and picture.format in DEEP_FORMATS and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)
    return array_to_image(array)


def as_array(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """A tensor of any device and dtype as an array."""
    if isinstance(image, np.ndarray):
        return image
    image = image.detach().cpu()
    return image.float().numpy() if image.dtype == torch.bfloat16 else image.numpy()


def array_to_image(array: np.ndarray) -> Image.Image:
    """(H, W), (H, W, C) or (C, H, W), C of 1, 3 or 4, as an image of 8 bits a channel.

    Unsigned integers of 16 bits, in either byte order, are tones from 0 to 65535, whatever the largest one is.

    Raises:
        ValueError: if the shape is not an image's, or values are neither 0..255, nor 0..65535 integers, nor 0..1 floats.
    """
    array = _channels_last(array)
    is_float = array.dtype.kind == "f"
    low, high = float(array.min()), float(array.max())
    if is_float and low >= -ROUNDING and high <= 1 + ROUNDING:
        array, low, high = array.clip(0, 1), max(low, 0.0), min(high, 1.0)
    largest = 65535 if (array.dtype.kind == "u" and array.dtype.itemsize == 2) or high > 255 else 255
    if array.dtype == bool or (is_float and high <= 1):
        largest = 1
    if not (low >= 0 and high <= largest) or (is_float and largest > 255):
        raise ValueError(f"its values go from {low:g} to {high:g}, outside of 0 to 255 (or 0 to 1 for floats).")
    if largest == 65535:
        array = array >> 8
    elif largest == 1:
        array = array * 255.0
    return Image.fromarray(np.rint(array).astype(np.uint8) if array.dtype != np.uint8 else array)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """An array of pixels as (H, W) or (H, W, C). Where both ends may be the channels, the first is.

    Raises:
        ValueError: if it is not an image.
    """
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "buif":
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype} is not an image.")
    if array.ndim == 3:
        if array.shape[0] in CHANNELS:
            array = np.moveaxis(array, 0, -1)
        elif array.shape[-1] not in CHANNELS:
            raise ValueError(
                f"an array of shape {array.shape} is not an image of 1, 3 or 4 channels. Several grey images have the "
                "shape (N, 1, H, W), or are a list."
            )
        if array.shape[-1] == 1:
            array = array[..., 0]
    return array


__all__ = ["array_to_image", "as_array", "measure", "upright_rgb"]
