"""Checks that images can be opened, and decodes each only once, even if many records use it.

Files are identified by path, size and modification time. If a cache `path` is given, files that opened are remembered
in later runs. URLs, embedded bytes and images that did not open are remembered only within the process.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .records import RecordError, is_remote, open_image

Outcome = tuple[str, str] | None
"""The kind and message of a `RecordError`; `None` for an image that opens."""


class CheckedImages:
    """Decodes images and remembers the outcome.

    Several processes may share the cache file.

    Args:
        path: a JSON Lines file that remembers the files that opened for later runs; none by default.
        timeout: timeout of a download, in seconds.
        remember: whether to remember outcomes; otherwise memory does not grow, and each image is opened each time.
    """

    def __init__(self, path: str | os.PathLike | None = None, timeout: float | None = None, *, remember: bool = True):
        self.path = None if path is None else Path(path)
        self.timeout = timeout
        self.remember = remember
        self._known: dict[tuple[Any, ...], Outcome] = {}
        if self.path is not None and self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    self._read(line)

    def check(self, image: Any) -> None:
        """Open an image, unless its outcome is known.

        Args:
            image: the image; see `Record`.

        Raises:
            RecordError: if the image cannot be opened, or could not be opened before and has not changed.
        """
        key = _key_of(image) if self.remember else None
        if key is None:
            open_image(image, self.timeout)
            return
        if key not in self._known:
            self._known[key] = self._open(image)
            self._write(key)
        outcome = self._known[key]
        if outcome is not None:
            kind, message = outcome
            raise RecordError(message, kind)  # type: ignore[arg-type]

    def _open(self, image: Any) -> Outcome:
        try:
            open_image(image, self.timeout)
        except RecordError as error:
            return error.kind, str(error)
        return None

    def _read(self, line: bytes) -> None:
        try:
            self._known[tuple(json.loads(line))] = None
        except (ValueError, TypeError):  # incomplete line of a killed run
            return

    def _write(self, key: tuple[Any, ...]) -> None:
        """Append a file that opened to the cache file."""
        if self.path is None or len(key) == 1 or self._known[key] is not None:
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, (json.dumps(key) + "\n").encode())  # one write, so that lines do not interleave
        finally:
            os.close(descriptor)


def _key_of(image: Any) -> tuple[Any, ...] | None:
    """Return the cache key of an image: (path, size, time), (URL,) or (digest,); `None` for anything else."""
    if isinstance(image, bytes):
        return (hashlib.blake2b(image, digest_size=16).hexdigest(),)
    if not isinstance(image, str):
        return None
    if is_remote(image):
        return (image,)
    try:
        status = os.stat(image)
    except (OSError, ValueError):  # base64 text, or a missing file
        return None
    return os.path.abspath(image), status.st_size, status.st_mtime_ns


__all__ = ["CheckedImages"]
