"""Loads one or more images in any form as upright RGB images."""

import base64
import binascii
import io
import os
import re
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from transformers.utils import logging

from .downloads import TIMEOUT, download, is_url, public_url
from .pixels import CHANNELS, array_to_image, as_array, measure, upright_rgb

logger = logging.get_logger(__name__)

ImageSource = str | os.PathLike | bytes | bytearray | memoryview | Mapping | Image.Image | np.ndarray | torch.Tensor
"""One image: a path, a URL, a data URI, a base64 string, the bytes of an image file, a `{"bytes", "path"}` dictionary
as in `datasets`, a PIL image, or an array of shape (H, W), (H, W, C) or (C, H, W) where C is 1, 3 or 4."""

Taken = TypeVar("Taken")

PLUG_INS = {
    "pillow-heif": ("pillow_heif", "register_heif_opener"),
    "pillow-jxl-plugin": ("pillow_jxl", None),
    "pillow-avif-plugin": ("pillow_avif", None),
}
"""Packages that add formats to Pillow, with their module and the function to call if importing it is not enough."""
PLUG_IN_SUFFIXES = {**dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif"), ".jxl": "pillow-jxl-plugin"}
"""Package that reads the files with each suffix that Pillow cannot read."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}[\r\n]*")

# --- many images ------------------------------------------------------------------------------------------------------


def load_rgb_images(images: Any, timeout: float | None = TIMEOUT) -> list[Image.Image]:
    """Load one or more images as upright RGB images.

    Args:
        images: An `ImageSource`, a (nested) list or one-dimensional array of them, or an array of pixels with a batch
            dimension.
        timeout: Timeout of each download in seconds, or `None`.

    Raises:
        ValueError: If there are no images, or an image cannot be read. The message names the image.
    """
    loaded = [to_rgb(image, timeout) for image in flatten(images)]
    if not loaded:
        raise ValueError("There are no images: the batch is empty.")
    return loaded


def is_batch(images: Any) -> bool:
    """Whether `images` is a list, table column or array of images instead of a single image."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images.ndim == 4 or _is_list_array(images)
    if isinstance(images, str | bytes | bytearray | memoryview | Image.Image):
        return False
    return isinstance(images, Sequence | Iterator) or getattr(images, "ndim", None) == 1  # ndim 1: a table column


def _is_list_array(images: np.ndarray | torch.Tensor) -> bool:
    """Whether an array contains paths, images or other objects instead of pixels."""
    return isinstance(images, np.ndarray) and images.dtype.kind in "OUS" and images.ndim > 0


def flatten(images: Any) -> Iterator[ImageSource]:
    """Yield the images in a nested list or batch."""
    if isinstance(images, np.ndarray) and _is_list_array(images) and images.ndim > 1:
        images = images.tolist() if images.dtype.kind == "U" else _from_objects(images)
    if is_batch(images):
        for part in images:
            yield from flatten(part)
    else:
        yield images


def _from_objects(array: np.ndarray) -> Any:
    """Convert an array of objects to a list of images, or to an array of pixels if NumPy has merged the images."""
    first = array.flat[0] if array.size else None
    return np.array(array.tolist()) if isinstance(first, int | float | np.number) else list(array)


def image_key(image: Any) -> Hashable:
    """Return a key that identifies an image: its path, URL or bytes, or otherwise the identity of the object."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return image if isinstance(image, bytes) else id(image)


def warn_about_gray_batch(images: Any, count: int) -> None:
    """Log a warning if an array is read as one image for several texts, but might be a batch of gray images.

    Args:
        images: Images that are passed with the texts.
        count: Number of texts.
    """
    shape = tuple(images.shape) if isinstance(images, np.ndarray | torch.Tensor) else ()
    if len(shape) == 3 and count > 1 and shape[0] == count and count in CHANNELS:
        logger.warning(
            f"The array of shape {shape} is read as one image with {count} channels, used for all {count} texts. To "
            f"pass {count} gray images, use the shape ({count}, 1, {shape[1]}, {shape[2]}) or a list."
        )


# --- one image --------------------------------------------------------------------------------------------------------


def to_rgb(image: ImageSource, timeout: float | None = TIMEOUT) -> Image.Image:
    """Load an image as an upright RGB image with 8 bits per channel.

    Images are rotated according to their EXIF orientation. The full tonal range of 16-bit and float images is kept.
    As in the reference code, transparency is dropped and color profiles are ignored. Damaged EXIF data is ignored.

    Args:
        image: Image in any form; see `ImageSource`.
        timeout: Timeout of a download in seconds, or `None`.

    Returns:
        The converted image, or `image` itself if it is already in this format.

    Raises:
        ValueError: If the image cannot be read.
    """
    return read(image, timeout, upright_rgb)


def upright_size(image: ImageSource, timeout: float | None = TIMEOUT) -> tuple[int, int]:
    """Return the (width, height) that `to_rgb` would return, without decoding the image if possible.

    Args:
        image: Image in any form; see `ImageSource`.
        timeout: Timeout of a download in seconds, or `None`.

    Raises:
        ValueError: If the image cannot be read.
    """
    return read(image, timeout, measure)


def find_size(image_size: Any) -> tuple[int, int] | None:
    """Return (width, height) for an argument that is a size, an image or `None`.

    Raises:
        ValueError: If an image cannot be read.
    """
    if image_size is None:
        return None
    is_array = isinstance(image_size, np.ndarray | torch.Tensor)
    if isinstance(image_size, tuple | list) or (is_array and image_size.shape == (2,)):
        width, height = image_size
        return width, height
    return upright_size(image_size)


def read(image: ImageSource, timeout: float | None, take: Callable[[Image.Image], Taken]) -> Taken:
    """Open an image and apply `take`. Errors name the image."""
    try:
        opened = open_image(image, timeout)
        if opened is image:
            return take(opened)
        with opened:  # closes the file, but keeps the pixels
            return take(opened)
    except UnidentifiedImageError as error:
        raise ValueError(f"Image {_name_image(image)} is not an image in a known format.{advise(image)}") from error
    except Exception as error:  # decoders and downloads raise many types of errors
        raise ValueError(f"Image {_name_image(image)} cannot be read: {error}") from error


def open_image(image: ImageSource, timeout: float | None) -> Image.Image:
    """Open an image without converting it."""
    if isinstance(image, Mapping):
        image = _stored_image(image)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray | torch.Tensor):
        return array_to_image(as_array(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return open_file(io.BytesIO(image))
    if not isinstance(image, str | os.PathLike):
        raise ValueError("expected a path, a URL, a base64 string, the bytes of a file, an image or an array.")
    source = os.fspath(image)
    if os.path.isfile(source):
        return open_file(source)
    if not isinstance(source, str):  # a path of bytes
        raise ValueError("there is no such file.")
    if is_url(source):
        return open_file(io.BytesIO(download(source, timeout)))
    if is_data_uri(source):
        return open_file(io.BytesIO(decode_text(source)))
    if is_base64(source):
        return _open_base64(source)
    if os.path.isdir(source):
        raise ValueError("it is a folder, not a file.")
    raise ValueError("there is no such file, and it is neither a URL nor a base64 string.")


def _stored_image(image: Mapping[str, Any]) -> Any:
    """Return the image in a mapping with `bytes`, `path` or both, as in `datasets`. `bytes` takes precedence.

    Raises:
        ValueError: If the mapping has neither.
    """
    found = next((image[key] for key in ("bytes", "path") if image.get(key) is not None), None)
    if found is None:
        keys = ", ".join(map(repr, image)) or "no keys"
        raise ValueError(f'expected a mapping with "bytes" or "path", but this one has {keys}.')
    return found


def is_stored_image(value: Any) -> bool:
    """Whether a value is a mapping that contains an image as `bytes` or `path`."""
    return isinstance(value, Mapping) and not value.keys() - {"bytes", "path"} and len(value) > 0


def open_file(file: str | io.BytesIO, formats: list[str] | None = None) -> Image.Image:
    """Open an image file, ignoring damaged EXIF data in PNG files and using installed Pillow plug-ins if necessary.

    Args:
        file: Path, or file in memory.
        formats: Names of the formats to try, without plug-ins. Defaults to all formats.

    Raises:
        UnidentifiedImageError: If the file is not an image.
    """
    try:
        return Image.open(file) if formats is None else Image.open(file, formats=formats)
    except UnidentifiedImageError:
        repaired = _without_damaged_exif(file)
        if repaired is not None:
            return Image.open(repaired, formats=formats)
        if formats is not None or not register_plug_ins():
            raise
        return Image.open(file)


def _without_damaged_exif(file: str | io.BytesIO) -> io.BytesIO | None:
    """Remove EXIF chunks with a wrong checksum, which Pillow rejects, from a PNG file. `None` if there are none."""
    with io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else Path(file).open("rb") as stream:
        if stream.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
            return None
        content = PNG_SIGNATURE + stream.read()
    parts, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position < len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        chunk = content[position:end]  # length, name, data, checksum
        if chunk[4:8] != b"eXIf" or zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big"):
            parts.append(chunk)
        position = end
    repaired = b"".join(parts)
    return io.BytesIO(repaired) if len(repaired) < len(content) else None


@cache
def register_plug_ins() -> tuple[str, ...]:
    """Register the installed Pillow plug-ins for HEIC, JPEG XL and AVIF, and return the names of their packages."""
    installed = []
    for package, (module, function) in PLUG_INS.items():
        if find_spec(module) is None:
            continue
        try:
            loaded = import_module(module)
            if function is not None:
                getattr(loaded, function)()
            installed.append(package)
        except Exception as error:  # for example a missing system library
            logger.warning(f"{package} is installed, but cannot be used: {error}")
    return tuple(installed)


def is_data_uri(text: str) -> bool:
    """Whether a string is a data URI."""
    return text[:5].lower() == "data:" and "," in text


def is_base64(text: str) -> bool:
    """Whether a string has the length and the characters of a base64-encoded image."""
    return len(text) > 64 and BASE64.fullmatch(text) is not None


def _open_base64(text: str) -> Image.Image:
    """Open a base64-encoded image. The string might also be the path of a missing file, as the error says."""
    try:
        return open_file(io.BytesIO(decode_text(text)))
    except (UnidentifiedImageError, ValueError) as error:
        raise ValueError("there is no such file, and it is not a base64-encoded image either.") from error


def decode_text(text: str) -> bytes:
    """Decode a data URI or a base64 string in the standard or the URL-safe alphabet.

    Raises:
        ValueError: If the string is not valid base64.
    """
    header, comma, content = text.partition(",") if is_data_uri(text) else ("", "", text)
    if comma and not header.lower().endswith(";base64"):
        return unquote_to_bytes(content)
    letters = "".join((unquote_to_bytes(content).decode("latin-1") if "%" in content else content).split())
    letters = letters.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("it is not valid base64.") from error


def _name_image(image: Any) -> str:
    """Return the name of an image for messages."""
    if isinstance(image, Mapping) and isinstance(image.get("path"), str | os.PathLike):
        image = image["path"]
    if not isinstance(image, str | os.PathLike):
        return type(image).__name__
    text = os.fsdecode(os.fspath(image))
    return repr(public_url(text)[:200] if is_url(text) else text[: 60 if is_data_uri(text) else 120])


def advise(image: Any) -> str:
    """Return a hint on which plug-in to install, if the suffix of the image's name indicates one."""
    name = os.fsdecode(os.fspath(image)) if isinstance(image, str | os.PathLike) else ""
    package = PLUG_IN_SUFFIXES.get(os.path.splitext(name)[1].lower())
    return f" To read it: pip install {package}." if package and package not in register_plug_ins() else ""


__all__ = ["ImageSource", "load_rgb_images", "to_rgb", "upright_size"]
