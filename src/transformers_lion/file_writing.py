"""Files that hold whole lines or whole contents, whatever ends the run; errors name the file.

A full disk takes the first part of what is written, and its error names no file.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Put a file's name into system errors of the block that have none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


class LineFile:
    """A file to which lines are appended. What cannot be written as a whole is not left there in part.

    Args:
        path: of the file, which is made if there is none. A device or a pipe is written to as it is.
        sync: have each write reach the disk.
        keep_empty: whether the file stays at the end if nothing is in it.

    Raises:
        OSError: if it cannot be opened.
    """

    def __init__(self, path: Path, sync: bool = False, keep_empty: bool = True):
        self.path = path
        self.sync = sync
        self.keep_empty = keep_empty
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.is_file = stat.S_ISREG(os.fstat(self.descriptor).st_mode)

    def write(self, lines: str) -> None:
        """Append lines.

        Raises:
            OSError: if that cannot be done; it names the file.
        """
        content, size = lines.encode(), os.fstat(self.descriptor).st_size
        try:
            with naming(self.path):
                while content:
                    content = content[os.write(self.descriptor, content) :]
                if self.sync and self.is_file:
                    os.fsync(self.descriptor)
        except BaseException:
            if self.is_file:
                os.ftruncate(self.descriptor, size)
            raise

    def close(self) -> None:
        """Close the file."""
        is_empty = self.is_file and not os.fstat(self.descriptor).st_size
        if is_empty and not self.keep_empty:
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all; one that was there before stays until then.

    Raises:
        OSError: if that cannot be done; it names the file.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with naming(path):
            new.write_text(text, encoding="utf-8")
            os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


__all__ = ["LineFile", "naming", "write_text"]
