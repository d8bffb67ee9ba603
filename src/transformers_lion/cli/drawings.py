"""Images with answers drawn on them: their files and their text."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image, ImageDraw, ImageFont

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes that a drawn image may have."""


def plan_drawings(output: Path | None, names: Sequence[str], files: Sequence[str], is_many: bool) -> dict[str, Path]:
    """Return the file of each drawing: `output` for a single image, otherwise a file in the folder `output`.

    Args:
        output: the file or folder of the drawings, if any.
        names: names of the images.
        files: files of the images, which must not be overwritten.
        is_many: whether `output` is a folder.

    Raises:
        OSError: if a folder is missing, or cannot be written to.
        ValueError: if an input would be overwritten, or a file's suffix is not that of an image format.
    """
    if output is None or not names:
        return {}
    inputs = {(found.st_dev, found.st_ino) for name in files if (found := stat(name)) is not None}
    if is_many or output.is_dir():
        output.mkdir(parents=True, exist_ok=True)
        planned = name_drawings(output, names)
    else:
        if output.suffix.lower() not in SUFFIXES:
            raise ValueError(f"--draw {output}: the file name must end in {', '.join(SUFFIXES)}.")
        if not output.parent.is_dir():
            raise FileNotFoundError(2, os.strerror(2), str(output.parent))
        planned = {names[0]: output}
    for target in planned.values():
        found = stat(str(target))
        if found is not None and (found.st_dev, found.st_ino) in inputs:
            raise ValueError(f"--draw would overwrite the input image {target}.")
    if not os.access(next(iter(planned.values())).parent, os.W_OK):
        raise PermissionError(13, os.strerror(13), str(output))
    return planned


def stat(name: str) -> os.stat_result | None:
    """Return the status of a file, `None` if it does not exist."""
    try:
        return os.stat(name)
    except (OSError, ValueError):
        return None


def name_drawings(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return a file in a folder for each image, numbered if several images have the same name."""
    from ..images import is_url

    planned: dict[str, Path] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        base = Path(urlsplit(name).path if is_url(name) else name)
        suffix = base.suffix if base.suffix.lower() in SUFFIXES else ".png"
        stem, number = base.stem or "image", 1
        if "#" in base.suffix:  # a row of a table: file.parquet#17
            stem += f"-{base.suffix.rpartition('#')[2]}"
        candidate = f"{stem}{suffix}"
        while candidate.lower() in taken:  # file names are case-insensitive on some systems
            number += 1
            candidate = f"{stem}-{number}{suffix}"
        taken.add(candidate.lower())
        planned[name] = folder / candidate
    return planned


def write_below(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return a copy of an image with lines of text on a white bar below it."""
    size = max(9, round(min(image.size) / 25))
    font = ImageFont.load_default(size=size)
    columns = max(8, round(1.8 * image.width / size))
    text = "\n".join("\n".join(textwrap.wrap(line, columns)) for line in lines)
    *_, right, bottom = ImageDraw.Draw(image).multiline_textbbox((size // 2, size // 2), text, font=font)
    width, height = max(image.width, round(right + size / 2)), image.height + round(bottom + size / 2)
    drawn = Image.new("RGB", (width, height), "white")
    drawn.paste(image, (0, 0))
    ImageDraw.Draw(drawn).multiline_text((size // 2, image.height + size // 2), text, fill="black", font=font)
    return drawn
