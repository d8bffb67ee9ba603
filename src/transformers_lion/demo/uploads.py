"""Pictures that somebody sends: only formats that Pillow decodes by itself, and only so large."""

from contextlib import suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..images import open_file, to_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What is tried; Pillow's others are rare, and EPS would start another program."""
MAX_MEGAPIXELS = 50
"""A picture takes 4 to 8 bytes of memory a pixel while it is opened."""
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
        picture = open_file(str(file), formats=[name for name in FORMATS if name in Image.OPEN])
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
    """A picture of at most `SHOWN_SIDE` pixels a side; the same one, if it is no larger."""
    scale = SHOWN_SIDE / max(picture.size)
    if scale >= 1:
        return picture
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)  # as `thumbnail`, which changes the picture


def make_room(folder: Path, wanted: int, limit: int) -> bool:
    """Delete the oldest files of a folder until so many bytes more have room below a limit.

    Returns:
        Whether there is room.
    """
    files = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # another request may have deleted it
            status = path.stat()
            if path.is_file():
                files.append((status.st_mtime, status.st_size, path))
    used = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if used + wanted <= limit:
            break
        with suppress(OSError):
            path.unlink()
            used -= size
    return used + wanted <= limit
