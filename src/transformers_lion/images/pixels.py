"""Converts images and arrays to upright RGB images with 8 bits per channel, and returns their size.

Unlike Pillow's own conversions, which clip them, this keeps the tonal range of 16-bit and float images.
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
"""Transformation for each value of the EXIF orientation."""
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that swap width and height."""

DEEP_FORMATS = ("PNG", "PPM", "JPEG2000")
"""Formats whose deep gray images have 16 bits, even if Pillow stores them as 32-bit integers."""

CHANNELS = (1, 3, 4)
ROUNDING = 1e-3
"""Tolerance for float values outside of 0 to 1."""


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to upright RGB with 8 bits per channel. No copy is made if it already has this format."""
    image.load()
    turn = TURNS.get(_read_orientation(image))
    rgb = _to_eight_bits(image)
    if rgb.mode in ("RGBa", "La"):
        rgb = rgb.convert(rgb.mode.upper())
    if rgb.mode != "RGB":
        rgb = rgb.convert("RGB")
    if turn is not None:
        rgb = rgb.transpose(turn)
    if rgb is image and "transparency" in rgb.info:
        rgb = rgb.copy()
    if rgb is not image:  # keep no orientation or transparency, which later code would apply again
        rgb.info = {key: value for key, value in rgb.info.items() if key == "icc_profile"}
    return rgb


def measure(image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) of the upright image."""
    if image.format == "TIFF":  # Pillow rotates TIFF images when decoding
        image.load()
    width, height = image.size
    return (height, width) if _read_orientation(image) in SIDEWAYS else (width, height)


def _read_orientation(image: Image.Image) -> int:
    """Return the orientation from EXIF or XMP data, or 1 (upright) if it is missing or damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises many types of errors for damaged data
        return 1
    return found if isinstance(found, int) else 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale an image with 16 or 32 bits per channel to 8 bits. Pillow's own conversion would clip it to white."""
    if not image.mode.startswith(("I", "F")):
        return image
    array = np.asarray(image)
    if image.mode == "I" and image.format in DEEP_FORMATS and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)
    return array_to_image(array)


def as_array(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """Convert a tensor on any device and of any dtype to an array."""
    if isinstance(image, np.ndarray):
        return image
    image = image.detach().cpu()
    return image.float().numpy() if image.dtype == torch.bfloat16 else image.numpy()


def array_to_image(array: np.ndarray) -> Image.Image:
    """Convert an array of shape (H, W), (H, W, C) or (C, H, W), where C is 1, 3 or 4, to an image.

    The values of unsigned 16-bit integers, in either byte order, always range from 0 to 65535.

    Raises:
        ValueError: If the array does not have the shape of an image, or its values are outside of 0 to 255 (0 to 65535
            for integers, 0 to 1 for floats).
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
        raise ValueError(f"its values range from {low:g} to {high:g}, but must be from 0 to 255 (0 to 1 for floats).")
    if largest == 65535:
        array = array >> 8
    elif largest == 1:
        array = array * 255.0
    return Image.fromarray(np.rint(array).astype(np.uint8) if array.dtype != np.uint8 else array)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """Return an array of pixels as (H, W) or (H, W, C). If both are possible, the first axis holds the channels.

    Raises:
        ValueError: If the array is not an image.
    """
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "buif":
        raise ValueError(f"an array of shape {array.shape} and dtype {array.dtype} is not an image.")
    if array.ndim == 3:
        if array.shape[0] in CHANNELS:
            array = np.moveaxis(array, 0, -1)
        elif array.shape[-1] not in CHANNELS:
            raise ValueError(
                f"an array of shape {array.shape} is not an image with 1, 3 or 4 channels. For several gray images, "
                "use the shape (N, 1, H, W) or a list."
            )
        if array.shape[-1] == 1:
            array = array[..., 0]
    return array


__all__ = ["array_to_image", "as_array", "measure", "upright_rgb"]
