"""Finds and opens the images that a command line names: files, folders, globs, URLs, and lists on stdin."""

import errno
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..images import PLUG_IN_SUFFIXES, advise, is_url, register_plug_ins, to_rgb
from ..prefetching import prefetch
from .common import printable

SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga",
    ".tif", ".tiff", ".webp",
})  # fmt: skip
"""Suffixes of the files that are read from folders, besides those of installed plug-ins in `PLUG_IN_SUFFIXES`. Files
named on the command line may have any suffix."""
STDIN = "-"
KINDS_SHOWN = 5
"""Number of kinds of skipped files that are listed."""


@dataclass
class Named:
    """The images that the arguments name.

    Attributes:
        names: paths and URLs, in order.
        errors: errors for arguments that name no image.
        is_many: whether there may be several images, so that results must include their names.
        passed_over: the number of skipped files in folders, by suffix.
    """

    names: list[str] = field(default_factory=list)
    errors: list[Exception | str] = field(default_factory=list)
    is_many: bool = False
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def note(self) -> str:
        """A note about skipped files; empty if there are none."""
        return describe_passed_over(self.passed_over)


def find_images(arguments: Sequence[str]) -> Named:
    """Find all images that the arguments name."""
    found = Named(is_many=len(arguments) > 1)
    for argument in arguments:
        if argument == STDIN:
            found.is_many = True
            names = read_list()
            if not names:
                found.errors.append("stdin names no images.")
            for name in names:
                add(found, name)
        else:
            add(found, argument)
    return found


def add(found: Named, name: str) -> None:
    """Add the images that one argument, or one line of a list, names."""
    if is_url(name):
        found.names.append(name)
    elif os.path.isdir(name):
        found.is_many = True
        inside = list(walk(name, found.errors, found.passed_over))
        if not inside:
            found.errors.append(f"{name}: there are no images in this folder.")
        found.names += inside
    elif os.path.lexists(name):
        found.names.append(name)
    elif glob.has_magic(name) and (matches := sorted(glob.glob(name, recursive=True))):
        found.is_many = True
        for match in matches:
            add(found, match)
    else:
        found.errors.append(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name))


def walk(folder: str, errors: list[Exception | str], passed_over: Counter[str]) -> Iterator[str]:
    """Yield the images in a folder and its subfolders, sorted; skip hidden files and count other files by suffix."""
    read = readable_suffixes()
    for place, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in read:
                yield os.path.join(place, name)
            else:
                passed_over[suffix] += 1


def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that are read from folders, including those for installed plug-ins."""
    installed = register_plug_ins()
    return SUFFIXES | {suffix for suffix, package in PLUG_IN_SUFFIXES.items() if package in installed}


def describe_passed_over(counts: Counter[str]) -> str:
    """Describe the skipped files, and the plug-ins that would read them."""
    if not counts:
        return ""
    kinds = [f"{count} {printable(suffix) or 'without a suffix'}" for suffix, count in counts.most_common(KINDS_SHOWN)]
    if len(counts) > KINDS_SHOWN:
        kinds.append(f"{len(counts) - KINDS_SHOWN} other kinds")
    reason = f"{counts.total()} files were skipped because their suffixes are not those of images"
    if counts.total() == 1:
        reason = "1 file was skipped because its suffix is not that of an image"
    packages = sorted({PLUG_IN_SUFFIXES[suffix] for suffix in counts if suffix in PLUG_IN_SUFFIXES})
    advice = f" To read {suffixes_of(packages, counts)}: pip install {' '.join(packages)}." if packages else ""
    return f"{reason}: {', '.join(kinds)}.{advice}"


def suffixes_of(packages: Sequence[str], counts: Counter[str]) -> str:
    """List the suffixes that the plug-ins read."""
    return ", ".join(sorted(suffix for suffix in counts if PLUG_IN_SUFFIXES.get(suffix) in packages))


def read_list() -> list[str]:
    """Read names from stdin, one per line or separated by null bytes, as `find -print0` prints them."""
    content = sys.stdin.buffer.read()
    parts = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(part) for part in parts if part.strip()]


def open_images(
    names: Sequence[str], count: int, on_error: Callable[[Exception], None]
) -> Iterator[list[tuple[str, Image.Image]]]:
    """Yield batches of images with their names, leaving out images that cannot be read.

    Threads decode the files of the next chunk meanwhile. URLs are downloaded when it is their turn, so that Ctrl-C need
    not wait for them.

    Args:
        names: names of images; duplicates are kept.
        count: number of distinct images per batch.
        on_error: called with the error if an image cannot be read.
    """
    chunk: list[tuple[str, Image.Image]] = []
    opened: dict[str, Image.Image] = {}
    with closing(prefetch(_try_file, names, ahead=count)) as files:
        for name, found in zip(names, files, strict=True):
            if name not in opened:
                if len(opened) == count:
                    yield chunk
                    chunk, opened = [], {}
                picture = _try_to_open(name) if found is None else found
                if isinstance(picture, Exception):
                    on_error(picture)
                    continue
                opened[name] = picture
            chunk.append((name, opened[name]))
    if chunk:
        yield chunk


def _try_file(name: str) -> Image.Image | Exception | None:
    """The image in a file, or why it cannot be read; `None` for a URL."""
    return None if is_url(name) else _try_to_open(name)


def _try_to_open(name: str) -> Image.Image | Exception:
    try:
        return open_image(name)
    except (ValueError, OSError) as error:
        return error


def open_image(name: str) -> Image.Image:
    """Open an image.

    Raises:
        OSError, ValueError: if it cannot be read; the message names it.
    """
    if is_url(name):
        return to_rgb(name)
    path = Path(name)
    if not path.is_file():
        path.stat()  # raises for a broken link or a lack of permission
        raise ValueError(f"{printable(name)} is not a file.")
    with path.open("rb") as file:  # raises the system's own error if the file is unreadable
        is_empty = not file.read(1)
    if is_empty:
        raise ValueError(f"{printable(name)} is empty.")
    try:
        return to_rgb(path)
    except ValueError as error:
        cause = error.__cause__
        reason = f"{cause or error}"
        if isinstance(cause, UnidentifiedImageError):
            reason = f"it is not an image in a known format.{advise(path)}"
        raise ValueError(f"{printable(name)} cannot be read: {reason.rstrip('.')}.") from error
