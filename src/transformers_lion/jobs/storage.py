"""Opens, reads and lists files by path, or by URL through fsspec.

The schemes are those of fsspec and its plug-ins: `s3://` needs s3fs, `gs://` gcsfs, `http://` aiohttp. Credentials and
options are taken from where these packages look for them.
"""

import glob
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..images.downloads import MAX_BYTES, TIMEOUT, is_url, open_client, public_url
from ..images.files import Tree

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")


def is_remote(name: str) -> bool:
    """Whether a name is a URL, of any scheme except `file`."""
    return SCHEME.match(name) is not None and not name.lower().startswith("file://")


def local_path(name: str) -> str:
    """Return the path in a `file://` URL; other names are returned unchanged."""
    return url2pathname(urlsplit(name).path) if name.lower().startswith("file://") else name


def absolute(name: str) -> str:
    """Return the absolute path of a local file; URLs are returned unchanged."""
    return name if is_remote(name) else os.path.abspath(local_path(name))


def join(root: str, name: str) -> str:
    """Resolve a name against a folder or a URL of one; absolute paths and URLs are returned unchanged."""
    if is_remote(name):
        return name
    name = local_path(name)
    if not is_remote(root):
        return os.path.abspath(os.path.join(root, name))
    if os.path.isabs(name):
        return name
    scheme, _, place = root.rstrip("/").partition("://")
    joined = f"{place}/{name}"
    return f"{scheme}://{posixpath.normpath(joined) if '.' in name.split('/') or '..' in name.split('/') else joined}"


def folder_of(name: str) -> str:
    """Return the folder of a file."""
    if is_remote(name):
        return (name.partition("?")[0] if is_url(name) else name).rpartition("/")[0]
    return os.path.dirname(absolute(name))


def suffix_of(name: str) -> str:
    """Return the suffix of a file in lowercase, without the query of a URL."""
    return os.path.splitext(urlsplit(name).path if is_url(name) else name)[1].lower()


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn the many errors of file systems into a `ValueError` that names the file."""
    try:
        yield
    except (ValueError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{public_url(name)} cannot be read: {reason.rstrip('.')}.") from error


def file_system(url: str) -> "tuple[AbstractFileSystem, str]":
    """Return the file system of a URL, and the path in it.

    Raises:
        ValueError: if the scheme is unknown, or its package is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{public_url(url)} cannot be opened: {str(error).rstrip('.')}.") from error


# --- files ------------------------------------------------------------------------------------------------------------


def open_binary(path: str) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        OSError, ValueError: if it cannot be opened.
    """
    if not is_remote(path):
        return open(path, "rb")
    system, place = file_system(path)
    with explained(path):
        return system.open(place, "rb")


def read_file(path: str) -> bytes:
    """Read a remote file that is an image.

    Raises:
        OSError, ValueError: if it cannot be read, or is larger than a download may be.
    """
    with open_binary(path) as file, explained(path):
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"the file has more than {MAX_BYTES:,} bytes, which is the limit.")
    return content


def read_range(path: str, start: int, size: int) -> bytes:
    """Read a part of a file.

    Raises:
        OSError, ValueError: if it cannot be read, or the file is shorter.
    """
    if is_remote(path):
        check_ranges(path)
        system, place = file_system(path)
        with explained(path):
            content = system.cat_file(place, start=start, end=start + size)
    else:
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read(size)
    if len(content) < size:
        raise ValueError(f"{public_url(path)} ends {size - len(content)} bytes before the end of the image.")
    return content


@lru_cache(maxsize=1024)
def check_ranges(path: str) -> None:
    """Check that parts of a file can be read. fsspec takes the whole file from an HTTP server that ignores ranges.

    Raises:
        ValueError: if the server ignores ranges.
    """
    if not is_url(path):
        return
    headers = {"Range": "bytes=0-0"}
    with (
        explained(path),
        open_client(TIMEOUT) as client,
        client.stream("GET", path, headers=headers) as response,
    ):
        is_whole = response.status_code == HTTPStatus.OK
    if is_whole:
        raise ValueError(
            f"{public_url(path)} cannot be read in parts, because its server ignores ranges. Copy it to a local disk."
        )


# --- folders ----------------------------------------------------------------------------------------------------------


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder. HTTP has none."""
    if is_url(name):
        return False
    if not is_remote(name):
        return os.path.isdir(local_path(name))
    system, place = file_system(name)
    with explained(name):
        return bool(system.isdir(place))


def exists(name: str) -> bool:
    """Whether there is a file or a folder. An HTTP URL counts as one; opening it tells."""
    if is_url(name):
        return True
    if not is_remote(name):
        return os.path.lexists(local_path(name))
    system, place = file_system(name)
    with explained(name):
        return bool(system.exists(place))


def expand_glob(pattern: str) -> list[str]:
    """Return the files and folders that match a pattern, sorted."""
    if not glob.has_magic(pattern) or is_url(pattern):
        return []
    if not is_remote(pattern):
        return sorted(glob.glob(local_path(pattern), recursive=True))
    system, place = file_system(pattern)
    with explained(pattern):
        found = [name for name in system.glob(place) if not _is_hidden(name, place)]
    return sorted(map(system.unstrip_protocol, found))


def _is_hidden(name: str, pattern: str) -> bool:
    """Whether a match of a pattern is hidden; unlike Python's `glob`, fsspec matches names that start with a dot."""
    start = len(re.split(r"[*?[]", pattern)[0].rpartition("/")[0])
    return "/." in name[start:] and "/." not in pattern[start:]


def tree_of(folder: str, errors: list[Exception | str]) -> Tree:
    """Yield a folder and its subfolders as `os.walk` does.

    Args:
        folder: path or URL.
        errors: errors of unreadable subfolders are appended.
    """
    if not is_remote(folder):
        yield from os.walk(local_path(folder), onerror=errors.append)
        return
    system, place = file_system(folder)
    with explained(folder):
        steps: Any = system.walk(place, on_error=errors.append)
        for step, folders, files in steps:
            system.invalidate_cache()  # or it would keep all listings
            yield system.unstrip_protocol(step), folders, files


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..099}` and `{train,val}`, as shells do and WebDataset names its shards."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    first, last, words = found.groups()
    if words is None:
        step = 1 if int(first) <= int(last) else -1
        numbers = range(int(first), int(last) + step, step)
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        options = [f"{number:0{width}d}" for number in numbers]
    else:
        options = words.split(",")
    ends = expand_braces(pattern[found.end() :])
    return [f"{pattern[: found.start()]}{option}{end}" for option in options for end in ends]


__all__ = [
    "absolute",
    "check_ranges",
    "exists",
    "expand_braces",
    "expand_glob",
    "folder_of",
    "is_folder",
    "is_remote",
    "join",
    "open_binary",
    "read_file",
    "read_range",
    "suffix_of",
    "tree_of",
]
