"""Opens images from untrusted users: limited in size, and to formats that Pillow decodes without other programs.

The messages are written for the user who sent the image.
"""

import io

from PIL import Image, UnidentifiedImageError

from .loading import open_file, to_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Accepted formats. Pillow's other formats are rare, and EPS would start another program."""
MAX_MEGAPIXELS = 50
"""Default size limit: opening an image takes 4 to 8 bytes of memory per pixel."""


def open_untrusted(file: str | io.BytesIO, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """Open an image without decoding it, and check its size.

    Args:
        file: Path, or file in memory.
        max_megapixels: Maximum size.

    Raises:
        ValueError: If the file is not an image in an accepted format, or the image is too large.
    """
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        image = open_file(file, formats=known)
    except Image.DecompressionBombError as error:  # Pillow's limit, which is higher than ours
        raise ValueError(f"This image has more than {max_megapixels:g} megapixels. Please resize it first.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"This file is not an image in a supported format ({', '.join(known)}).") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError("This image cannot be read because the file is damaged.") from error
    if image.width * image.height > max_megapixels * 1_000_000:
        image.close()
        raise ValueError(
            f"This image has {image.width} x {image.height} pixels, more than {max_megapixels:g} megapixels. "
            "Please resize it first."
        )
    return image


def decode_untrusted(image: Image.Image) -> Image.Image:
    """Decode an opened image as an upright RGB image, and close its file.

    Raises:
        ValueError: If the file is damaged.
    """
    with image:
        try:
            return to_rgb(image)
        except ValueError as error:
            raise ValueError("This image cannot be read because the file is truncated or damaged.") from error


__all__ = ["FORMATS", "MAX_MEGAPIXELS", "decode_untrusted", "open_untrusted"]
