"""One image or many, in any form a user has them -> upright RGB images."""

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
"""One image: a path, a URL, a data URI, base64 text, the bytes of an image file, `{"bytes", "path"}` as `datasets`
stores images, an image, or an array (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4."""

Taken = TypeVar("Taken")

PLUG_INS = {
    "pillow-heif": ("pillow_heif", "register_heif_opener"),
    "pillow-jxl-plugin": ("pillow_jxl", None),
    "pillow-avif-plugin": ("pillow_avif", None),
}
"""Packages that teach Pillow further formats: the module of each, and its function, where importing is not enough."""
PLUG_IN_SUFFIXES = {**dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif"), ".jxl": "pillow-jxl-plugin"}
"""The package that reads files of each ending that Pillow does not."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}[\r\n]*")

# --- many images ------------------------------------------------------------------------------------------------------


def load_rgb_images(images: Any, timeout: float | None = TIMEOUT) -> list[Image.Image]:
    """All images of a nested list, a batched array or a single image, as upright RGB images.

    Args:
        images: an `ImageSource`, a (nested) list of them, a one-dimensional array of them, or an array of pixels with a
            batch dimension.
        timeout: of each download, in seconds; `None` for none.

    Raises:
        ValueError: if there is not an image, or one cannot be read; the message names it.
    """
    pictures = [to_rgb(image, timeout) for image in flatten(images)]
    if not pictures:
        raise ValueError("There are no images: an empty batch was given.")
    return pictures


def is_batch(images: Any) -> bool:
    """Whether `images` is a list, a column or an array of several images, rather than one image."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images.ndim == 4 or _is_list_array(images)
    if isinstance(images, str | bytes | bytearray | memoryview | Image.Image):
        return False
    return isinstance(images, Sequence | Iterator) or getattr(images, "ndim", None) == 1  # the last: a table's column


def _is_list_array(images: np.ndarray | torch.Tensor) -> bool:
    """Whether an array holds paths, images or other objects instead of pixels."""
    return isinstance(images, np.ndarray) and images.dtype.kind in "OUS" and images.ndim > 0


def flatten(images: Any) -> Iterator[ImageSource]:
    """The single images of any nesting."""
    if isinstance(images, np.ndarray) and _is_list_array(images) and images.ndim > 1:
        images = images.tolist() if images.dtype.kind == "U" else _from_objects(images)
    if is_batch(images):
        for part in images:
            yield from flatten(part)
    else:
        yield images


def _from_objects(array: np.ndarray) -> Any:
    """What an array of objects holds: pixels, as NumPy stores images of one size in it, or else a list."""
    first = array.flat[0] if array.size else None
    return np.array(array.tolist()) if isinstance(first, int | float | np.number) else list(array)


def image_key(image: Any) -> Hashable:
    """What tells one image from another: its path or URL, its bytes, or else which object it is."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return image if isinstance(image, bytes) else id(image)


def warn_of_grey_batch(images: Any, count: int) -> None:
    """Warn where one array is read as one image for several texts, though it may be as many grey images.

    Args:
        images: that come with the texts.
        count: of the texts.
    """
    shape = tuple(images.shape) if isinstance(images, np.ndarray | torch.Tensor) else ()
    if len(shape) == 3 and count > 1 and shape[0] == count and count in CHANNELS:
        logger.warning(
            f"The array of shape {shape} is read as one image of {count} channels, which serves all {count} texts. "
            f"{count} grey images have the shape ({count}, 1, {shape[1]}, {shape[2]}), or are a list."
        )


# --- one image --------------------------------------------------------------------------------------------------------


def to_rgb(image: ImageSource, timeout: float | None = TIMEOUT) -> Image.Image:
    """One image as an upright RGB image of 8 bits a channel.

    Images are turned as their EXIF data say; those of 16 bits and of floats keep their tones; transparency is dropped
    and colour profiles are ignored, as in the reference code. A damaged EXIF block is ignored.

    Args:
        image: in any form.
        timeout: of a download, in seconds; `None` for none.

    Returns:
        The image; `image` itself, if it is one already.

    Raises:
        ValueError: if it cannot be read.
    """
    return read(image, timeout, upright_rgb)


def upright_size(image: ImageSource, timeout: float | None = TIMEOUT) -> tuple[int, int]:
    """The (width, height) of an image as `to_rgb` gives it, if possible without decoding it.

    Args:
        image: in any form.
        timeout: of a download, in seconds; `None` for none.

    Raises:
        ValueError: if it cannot be read.
    """
    return read(image, timeout, measure)


def find_size(image_size: Any) -> tuple[int, int] | None:
    """The (width, height) that an argument gives, as such or as an image; `None` where there is none.

    Raises:
        ValueError: if it is an image that cannot be read.
    """
    if image_size is None:
        return None
    is_array = isinstance(image_size, np.ndarray | torch.Tensor)
    if isinstance(image_size, tuple | list) or (is_array and image_size.shape == (2,)):
        width, height = image_size
        return width, height
    return upright_size(image_size)


def read(image: ImageSource, timeout: float | None, take: Callable[[Image.Image], Taken]) -> Taken:
    """What `take` makes of an image's image; errors name the image."""
    try:
        picture = open_image(image, timeout)
        if picture is image:
            return take(picture)
        with picture:  # closes the file, and leaves the pixels
            return take(picture)
    except UnidentifiedImageError as error:
        raise ValueError(f"Image {_name_image(image)} is not an image in a known format.{advise(image)}") from error
    except Exception as error:  # decoders and downloads raise many kinds
        raise ValueError(f"Image {_name_image(image)} cannot be read: {error}") from error


def open_image(image: ImageSource, timeout: float | None) -> Image.Image:
    """Open one image without converting it."""
    if isinstance(image, Mapping):
        image = _stored_image(image)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray | torch.Tensor):
        return array_to_image(as_array(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return open_file(io.BytesIO(image))
    if not isinstance(image, str | os.PathLike):
        raise ValueError("expected a path, a URL, base64 text, the bytes of a file, an image or an array.")
    source = os.fspath(image)
    if os.path.isfile(source):
        return open_file(source)
    if not isinstance(source, str):  # a path of bytes
        raise ValueError("there is no such file.")
    if is_url(source):
        return open_file(io.BytesIO(download(source, timeout)))
    if is_data_uri(source):
        return open_file(io.BytesIO(_decode_text(source)))
    if is_base64(source):
        return _open_base64(source)
    if os.path.isdir(source):
        raise ValueError("it is a folder, not a file.")
    raise ValueError("there is no such file, and it is neither a URL nor base64 text.")


def _stored_image(image: Mapping[str, Any]) -> Any:
    """The image in a mapping with `bytes`, `path` or both, as `datasets` and tables store it; the bytes come first.

    Raises:
        ValueError: if there is neither.
    """
    found = next((image[key] for key in ("bytes", "path") if image.get(key) is not None), None)
    if found is None:
        keys = ", ".join(map(repr, image)) or "nothing"
        raise ValueError(f'expected a path or an image, or a mapping with "bytes" or "path", but this one has {keys}.')
    return found


def is_stored_image(value: Any) -> bool:
    """Whether a value is a mapping that holds one image, as `_stored_image` reads it."""
    return isinstance(value, Mapping) and not value.keys() - {"bytes", "path"} and len(value) > 0


def open_file(file: str | io.BytesIO, formats: list[str] | None = None) -> Image.Image:
    """Open an image file; without a PNG file's damaged EXIF block, and with installed plug-ins where Pillow needs them.

    Args:
        file: a path, or a file in memory.
        formats: names of the only formats that are tried, without plug-ins; all that there are by default.

    Raises:
        UnidentifiedImageError: if it is not an image.
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
    """A PNG file without EXIF blocks whose checksum is wrong, for which Pillow refuses it; `None` if it has none."""
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
    """Have Pillow use the installed plug-ins for HEIC, JPEG XL and AVIF; the names of their packages."""
    installed = []
    for package, (module, function) in PLUG_INS.items():
        if find_spec(module) is None:
            continue
        try:
            loaded = import_module(module)
            if function is not None:
                getattr(loaded, function)()
            installed.append(package)
        except Exception as error:  # such as a library of the system that is missing
            logger.warning(f"{package} is installed, but cannot be used: {error}")
    return tuple(installed)


def is_data_uri(text: str) -> bool:
    """Whether a text holds a file as a data URI."""
    return text[:5].lower() == "data:" and "," in text


def is_base64(text: str) -> bool:
    """Whether `text` is long enough, and made of the right characters, to be an image in base64."""
    return len(text) > 64 and BASE64.fullmatch(text) is not None


def _open_base64(text: str) -> Image.Image:
    """Open base64 text, which may as well be the path of a file that is missing."""
    try:
        return open_file(io.BytesIO(_decode_text(text)))
    except (UnidentifiedImageError, ValueError) as error:
        raise ValueError("there is no such file, and as base64 text it is not an image.") from error


def _decode_text(text: str) -> bytes:
    """The bytes of a data URI or of base64 text, in the usual alphabet or in the one for URLs.

    Raises:
        ValueError: if it is not base64.
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
    """What an image is called in a message."""
    if isinstance(image, Mapping) and isinstance(image.get("path"), str | os.PathLike):
        image = image["path"]
    if not isinstance(image, str | os.PathLike):
        return type(image).__name__
    text = os.fsdecode(os.fspath(image))
    return repr(public_url(text)[:200] if is_url(text) else text[: 60 if is_data_uri(text) else 120])


def advise(image: Any) -> str:
    """What to install to read an image whose name says that its format needs a plug-in."""
    name = os.fsdecode(os.fspath(image)) if isinstance(image, str | os.PathLike) else ""
    package = PLUG_IN_SUFFIXES.get(os.path.splitext(name)[1].lower())
    return f" To read it: pip install {package}." if package and package not in register_plug_ins() else ""


__all__ = ["ImageSource", "load_rgb_images", "to_rgb", "upright_size"]
