"""Which pictures a command line names: files, folders, globs, URLs, and lists on stdin."""

import errno
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..image_loading import to_rgb
from .common import printable

SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga",
    ".tif", ".tiff", ".webp",
})  # fmt: skip
"""What files in folders have to end with; a file that is named is tried whatever it is called."""
STDIN = "-"
TIMEOUT = 30.0
"""Seconds for a download."""


@dataclass
class Named:
    """What the arguments name.

    Attributes:
        names: paths and URLs, in order.
        errors: of arguments that name nothing.
        is_many: whether there may be several, so that results have to say which they are of.
    """

    names: list[str] = field(default_factory=list)
    errors: list[Exception | str] = field(default_factory=list)
    is_many: bool = False


def find_pictures(arguments: Sequence[str]) -> Named:
    """All pictures that arguments name."""
    found = Named(is_many=len(arguments) > 1)
    for argument in arguments:
        if argument == STDIN:
            found.is_many = True
            names = read_list()
            if not names:
                found.errors.append("stdin names no pictures.")
            for name in names:
                add(found, name)
        else:
            add(found, argument)
    return found


def add(found: Named, name: str) -> None:
    """Add what one argument, or one line of a list, names."""
    if is_url(name):
        found.names.append(name)
    elif os.path.isdir(name):
        found.is_many = True
        inside = list(walk(name, found.errors))
        if not inside:
            found.errors.append(f"{name}: there is no picture in this folder.")
        found.names += inside
    elif os.path.lexists(name):
        found.names.append(name)
    elif glob.has_magic(name) and (matches := sorted(glob.glob(name, recursive=True))):
        found.is_many = True
        for match in matches:
            add(found, match)
    else:
        found.errors.append(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name))


def is_url(name: str) -> bool:
    """Whether a name is an address on the web."""
    return name.startswith(("http://", "https://"))


def walk(folder: str, errors: list[Exception | str]) -> Iterator[str]:
    """Pictures in a folder and those below it, sorted, without hidden ones."""
    for place, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.join(place, name)


def read_list() -> list[str]:
    """The names on stdin, one a line, or with a zero byte behind each as of `find -print0`."""
    content = sys.stdin.buffer.read()
    parts = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(part) for part in parts if part.strip()]


def open_pictures(
    names: Sequence[str], count: int, on_error: Callable[[Exception], None]
) -> Iterator[list[tuple[str, Image.Image]]]:
    """Pictures with their names, so many at a time, without those that cannot be read.

    Args:
        names: a name that stands there twice gives its picture twice.
        count: of different pictures.
        on_error: is told why one cannot be read.
    """
    chunk: list[tuple[str, Image.Image]] = []
    opened: dict[str, Image.Image] = {}
    for name in names:
        if name not in opened:
            if len(opened) == count:
                yield chunk
                chunk, opened = [], {}
            try:
                opened[name] = open_picture(name)
            except (ValueError, OSError) as error:
                on_error(error)
                continue
        chunk.append((name, opened[name]))
    if chunk:
        yield chunk


def open_picture(name: str) -> Image.Image:
    """One picture.

    Raises:
        OSError, ValueError: with its name, if it cannot be read.
    """
    if is_url(name):
        return to_rgb(name, timeout=TIMEOUT)
    path = Path(name)
    if not path.is_file():
        path.stat()  # a link that leads nowhere, or no permission
        raise ValueError(f"{printable(name)}: this is no file.")
    with path.open("rb") as file:  # as the system's own error, if it cannot be read
        is_empty = not file.read(1)
    if is_empty:
        raise ValueError(f"{printable(name)}: the file is empty.")
    try:
        return to_rgb(path)
    except ValueError as error:
        cause = error.__cause__
        reason = "it is not a picture in a known format" if "not a picture" in str(error) else f"{cause or error}"
        raise ValueError(f"{printable(name)}: this cannot be read: {reason.rstrip('.')}.") from error
