"""Pictures that somebody sends: only formats that Pillow decodes by itself, and only so large."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..image_loading import to_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What is tried; Pillow's others are rare, and EPS would start another program."""
MAX_MEGAPIXELS = 50
"""A picture takes 3 to 8 bytes of memory a pixel while it is opened."""
SHOWN_SIDE = 1024
"""The longest side of a picture on the page, in pixels. The model sees the picture as it was sent."""


def open_upload(file: str | Path) -> Image.Image:
    """An upright RGB picture from a file that may be anything.

    Args:
        file: that the server stored.

    Raises:
        ValueError: if it is no picture, too large, or damaged; in words for the one who sent it.
    """
    Image.init()
    try:
        picture = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:  # Pillow's own limit, above ours
        raise ValueError(f"This picture has more than {MAX_MEGAPIXELS} megapixels. Make it smaller first.") from error
    except UnidentifiedImageError as error:
        known = ", ".join(name for name in FORMATS if name in Image.OPEN)
        raise ValueError(f"This is not a picture in a known format ({known}).") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError("This picture cannot be read: the file is damaged.") from error
    with picture:
        if picture.width * picture.height > MAX_MEGAPIXELS * 1_000_000:
            raise ValueError(
                f"This picture has {picture.width} x {picture.height} pixels, more than {MAX_MEGAPIXELS} megapixels. "
                "Make it smaller first."
            )
        try:
            return to_rgb(picture)
        except ValueError as error:
            raise ValueError("This picture cannot be read: the file is cut off or damaged.") from error


def for_page(picture: Image.Image) -> Image.Image:
    """A picture of at most `SHOWN_SIDE` pixels a side."""
    shown = picture.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return shown
