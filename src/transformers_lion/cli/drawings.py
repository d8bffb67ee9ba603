"""Images with answers on them: where they go, and what is drawn."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image, ImageDraw, ImageFont

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""What a drawn image may be called."""


def plan_drawings(output: Path | None, names: Sequence[str], is_many: bool) -> dict[str, Path]:
    """The file of each drawing: `output` itself for one image, else a file in the folder `output`, which is made.

    Raises:
        OSError: if a folder is missing, or cannot be written to.
        ValueError: if an input would be overwritten, or a file's name says nothing of its format.
    """
    if output is None or not names:
        return {}
    inputs = {(found.st_dev, found.st_ino) for name in names if (found := stat(name)) is not None}
    if is_many or output.is_dir():
        output.mkdir(parents=True, exist_ok=True)
        planned = name_drawings(output, names)
    else:
        if output.suffix.lower() not in SUFFIXES:
            raise ValueError(f"--draw {output}: the name of an image ends in {', '.join(SUFFIXES)}.")
        if not output.parent.is_dir():
            raise FileNotFoundError(2, os.strerror(2), str(output.parent))
        planned = {names[0]: output}
    for target in planned.values():
        found = stat(str(target))
        if found is not None and (found.st_dev, found.st_ino) in inputs:
            raise ValueError(f"--draw would overwrite {target}, which is one of the images that are read.")
    if not os.access(next(iter(planned.values())).parent, os.W_OK):
        raise PermissionError(13, os.strerror(13), str(output))
    return planned


def stat(name: str) -> os.stat_result | None:
    """What the system knows of a file, `None` if there is none."""
    try:
        return os.stat(name)
    except (OSError, ValueError):
        return None


def name_drawings(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """A file in a folder for each image, with its name, and a number where several have the same."""
    from ..images import is_url

    planned: dict[str, Path] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        base = Path(urlsplit(name).path if is_url(name) else name)
        suffix = base.suffix if base.suffix.lower() in SUFFIXES else ".png"
        stem, number = base.stem or "picture", 1
        candidate = f"{stem}{suffix}"
        while candidate.lower() in taken:  # some systems' file names know no case
            number += 1
            candidate = f"{stem}-{number}{suffix}"
        taken.add(candidate.lower())
        planned[name] = folder / candidate
    return planned


def write_below(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """A copy of an image with lines of text on a white bar below it."""
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
