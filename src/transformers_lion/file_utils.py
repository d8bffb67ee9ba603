"""Writes files completely or not at all, adds file names to errors, and locks folders against concurrent runs.

Without this, a full disk leaves partial files behind, and the error does not name the file.

    with locked(folder / LOCK, folder):
        ...
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # on Windows, concurrent runs are not detected
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the lock file inside the folder it protects."""

MAX_ID = 20
"""Maximum length of a process id."""

HELD: set[IO[str]] = set()
"""Lock files held by this process."""


# --- names ------------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Return `text` on one line, with non-printable characters escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text
    )


# --- writing ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Add a file name to system errors without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


class LineFile:
    """File to append lines to. Partial writes are removed.

    Args:
        path: Path of the file, which is created if it does not exist. Devices and pipes are supported.
        sync: Whether to flush each write to disk.
        keep_empty: Whether to keep an empty file on closing.

    Raises:
        OSError: If the file cannot be opened.
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
            OSError: If writing fails. The error names the file.
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
        """Close the file, and remove it if it is empty and `keep_empty` is not set."""
        is_empty = self.is_file and not os.fstat(self.descriptor).st_size
        if is_empty and not self.keep_empty:
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically. An existing file is only replaced once the new one is complete.

    Raises:
        OSError: If writing fails. The error names the file.
    """
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[Path]:
    """Yield the path of a new file, which replaces `path` at the end of the block, if the block succeeds.

    Args:
        path: Path of the file. It is replaced atomically.
        sync: Whether to flush the new file to disk first, so that it is complete even after a power failure.

    Raises:
        OSError: If writing fails. The error names the file.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with naming(path):
            yield new
            if sync:
                with new.open("rb") as file:
                    os.fsync(file.fileno())
            os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


# --- locking ----------------------------------------------------------------------------------------------------------


class LockError(ValueError):
    """Another run holds the lock. The message names the locked target and the process of the other run."""


@contextlib.contextmanager
def locked(path: Path, target: Path) -> Iterator[None]:
    """Hold a lock during a block. A lock file left behind by a killed run has no effect.

    If several processes belong to one run, only the first one should acquire the lock.

    Args:
        path: Path of the lock file in an existing folder. It is removed at the end.
        target: File or folder that the lock protects, for error messages.

    Raises:
        LockError: If another run holds the lock.
        OSError: If the lock file cannot be written.
    """
    file = _acquire(path, target)
    HELD.add(file)
    try:
        yield
    finally:
        HELD.discard(file)
        path.unlink(missing_ok=True)  # before closing, so that a waiting run notices and opens a new file
        file.close()


def _acquire(path: Path, target: Path) -> IO[str]:
    """Open and lock the lock file, and write the id of this process to it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            if fcntl is not None:
                lock_file(file, target)
            if _is_at(file, path):
                file.truncate(0)
                file.write(f"{os.getpid()}\n")
                file.flush()
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # the other run ended and removed the file before we locked it


def lock_file(file: IO[str], target: Path) -> None:
    """Lock an open file.

    Raises:
        LockError: If another run has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        process = file.readline(MAX_ID).strip()
        name = f" (process {process})" if process.isdecimal() else ""  # the file may also be the locked output itself
        raise LockError(f"{target}: another run is writing it{name}.") from error
    except OSError:  # the file system does not support locks
        pass


def _is_at(file: IO[str], path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _forget_locks() -> None:
    """Close the lock files in a forked process, which would otherwise keep the lock after its parent was killed."""
    for file in HELD:
        file.close()
    HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


__all__ = ["LOCK", "LineFile", "LockError", "locked", "naming", "printable", "replacing", "write_text"]
