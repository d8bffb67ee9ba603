"""Finds and opens the images that a command line names: files, folders, globs, URLs, lists on stdin, and manifests,
Parquet files and other sources of `jobs.sources`."""

import errno
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from ..images import describe_passed_over, is_url, walk
from ..jobs.row_images import RowImages
from ..jobs.source_row import SourceRow
from ..jobs.sources import CONTAINERS, list_rows
from ..jobs.storage import absolute, expand_braces, is_remote, suffix_of
from ..prefetching import prefetch
from .options import Columns

STDIN = "-"

READ_AHEAD = 32
"""Number of image files to download, or to read from shards and tables, ahead."""
NUM_READERS = 16
"""Number of threads that do so."""

NO_COLUMNS = Columns()

Opened = list[tuple[str, Image.Image]]
"""Names and images."""


@dataclass
class Named:
    """The images that the arguments name.

    Attributes:
        rows: the images, in order.
        errors: errors for arguments that name no image.
        is_many: whether there may be several images, so that results must include their names.
        passed_over: the number of skipped files in folders, by suffix.
    """

    rows: list[SourceRow] = field(default_factory=list)
    errors: list[Exception | str] = field(default_factory=list)
    is_many: bool = False
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def names(self) -> list[str]:
        """The names of the images: paths, URLs, and the keys of rows in manifests, tables and shards."""
        return [row.key for row in self.rows]

    @property
    def note(self) -> str:
        """A note about skipped files; empty if there are none."""
        return describe_passed_over(self.passed_over)


def find_images(arguments: Sequence[str], columns: Columns = NO_COLUMNS) -> Named:
    """Find all images that the arguments name.

    Args:
        arguments: the arguments.
        columns: how to read manifests and tables.
    """
    found = Named(is_many=len(arguments) > 1)
    for argument in arguments:
        if argument == STDIN:
            found.is_many = True
            names = read_list()
            if not names:
                found.errors.append("stdin names no images.")
            for name in names:
                add(found, name, columns)
        else:
            add(found, argument, columns)
    return found


def add(found: Named, name: str, columns: Columns) -> None:
    """Add the images that one argument, or one line of a list, names."""
    if os.path.isdir(name):
        add_folder(found, name, columns)
    elif is_listed(name):
        add_listed(found, name, columns)
    elif is_url(name) or os.path.lexists(name):
        found.rows.append(name_file(name))
    elif glob.has_magic(name) and (matches := sorted(glob.glob(name, recursive=True))):
        found.is_many = True
        for match in matches:
            add(found, match, columns)
    else:
        found.errors.append(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name))


def is_listed(name: str) -> bool:
    """Whether a name, which is no local folder, stands for a list of images: a manifest, a table, shards, or a URL that
    fsspec opens."""
    if os.path.lexists(name):
        return suffix_of(name) in CONTAINERS
    if is_url(name):
        return suffix_of(name) in CONTAINERS
    return is_remote(name) or expand_braces(name) != [name]


def name_file(name: str) -> SourceRow:
    """Return the row of a file or a URL; unlike in `list_rows`, its name may be invalid Unicode."""
    return SourceRow(name, absolute(name), "file")


def add_folder(found: Named, folder: str, columns: Columns) -> None:
    """Add the images in a folder, or the rows of the tables or shards in it."""
    found.is_many = True
    passed_over = Counter[str]()
    inside = list(walk(folder, found.errors, passed_over))
    if not inside and add_listed(found, folder, columns):
        return
    found.passed_over += passed_over
    found.rows += map(name_file, inside)


def add_listed(found: Named, name: str, columns: Columns) -> bool:
    """Add the rows of a source of `list_rows`; return whether it is one."""
    found.is_many = True
    skipped = Counter[str]()
    try:
        listed = list_rows(
            name,
            image_column=columns.image_column,
            key_column=columns.key_column,
            image_root=columns.image_root,
            skipped=skipped,
        )
        rows = list(listed)
    except (ValueError, OSError) as error:
        found.errors.append(error)
        return False
    found.rows += rows
    found.passed_over += skipped
    return True


def read_list() -> list[str]:
    """Read names from stdin, one per line or separated by null bytes, as `find -print0` prints them."""
    content = sys.stdin.buffer.read()
    parts = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(part) for part in parts if part.strip()]


def open_images(rows: Sequence[SourceRow], count: int, on_error: Callable[[Exception], None]) -> Iterator[Opened]:
    """Yield batches of images with their names, leaving out images that cannot be read.

    Threads download URLs, and others decode the files of the next batch, in the meantime. Ctrl-C does not wait for
    downloads.

    Args:
        rows: the images; duplicates are kept.
        count: number of distinct images per batch.
        on_error: called with the error if an image cannot be read.
    """
    batch: Opened = []
    opened: dict[str, Image.Image] = {}
    following = [*(row.key for row in rows[1:]), None]
    with RowImages() as images, closing(prefetch_images(images, rows, count)) as pictures:
        for row, picture, after in zip(rows, pictures, following, strict=True):
            if isinstance(picture, Exception) and row.key not in opened:
                on_error(picture)
            else:
                batch.append((row.key, opened.setdefault(row.key, picture)))  # type: ignore[arg-type]
            if len(opened) == count and after not in opened:
                yield batch
                batch, opened = [], {}
    if batch:
        yield batch


def prefetch_images(
    images: RowImages, rows: Sequence[SourceRow], ahead: int
) -> Generator[Image.Image | Exception, None, None]:
    """Yield the image of each row, or why it cannot be read."""
    read = prefetch(partial(try_to_read, images), rows, READ_AHEAD, NUM_READERS, is_daemon=True)
    with closing(read):
        pairs = zip(rows, read, strict=True)
        with closing(prefetch(partial(try_to_decode, images), pairs, ahead)) as pictures:
            yield from pictures


def try_to_read(images: RowImages, row: SourceRow) -> bytes | Exception | None:
    """Read the file of an image; see `RowImages.read`."""
    try:
        return images.read(row)
    except (ValueError, OSError) as error:
        return error


def try_to_decode(images: RowImages, read: tuple[SourceRow, bytes | Exception | None]) -> Image.Image | Exception:
    """Decode what was read, or return why it cannot be read or decoded."""
    row, content = read
    if isinstance(content, Exception):
        return content
    try:
        return images.decode(row, content)
    except (ValueError, OSError) as error:
        return error
