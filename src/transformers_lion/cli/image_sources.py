"""Finds and opens the images that a command line names: files, folders, globs, URLs, and lists on stdin."""

import errno
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from PIL import Image

from ..images import describe_passed_over, is_url, open_image_file, to_rgb, walk
from ..prefetching import prefetch

STDIN = "-"


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
    return to_rgb(name) if is_url(name) else open_image_file(name)
