"""Open uploaded images, limited in size and to formats that Pillow decodes without other programs."""

from contextlib import suppress
from pathlib import Path

from PIL import Image

from ..images.untrusted import MAX_MEGAPIXELS, decode_untrusted, open_untrusted

SHOWN_SIDE = 1024
"""Longer side of the displayed image, in pixels. The model sees the image at its original size."""


def open_upload(file: str | Path) -> Image.Image:
    """Open any file as an upright RGB image.

    Args:
        file: File stored by the server.

    Raises:
        ValueError: If the file is not an image, too large, or damaged. The message is written for the user who sent it.
    """
    return decode_untrusted(open_untrusted(str(file)))


def for_page(image: Image.Image) -> Image.Image:
    """Downscale an image to at most `SHOWN_SIDE` pixels per side. Return smaller images unchanged."""
    scale = SHOWN_SIDE / max(image.size)
    if scale >= 1:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)  # like `thumbnail`, which works in place


def make_room(folder: Path, wanted: int, limit: int) -> bool:
    """Delete the oldest files in a folder until `wanted` more bytes fit below a limit.

    Returns:
        Whether there is enough space.
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


__all__ = ["MAX_MEGAPIXELS", "SHOWN_SIDE", "for_page", "make_room", "open_upload"]
