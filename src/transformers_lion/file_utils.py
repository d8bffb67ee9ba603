"""Writes files completely or not at all, names them in errors, and locks folders against a second run.

A full disk accepts the first part of what is written, and its error names no file.

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
except ImportError:  # Windows, where two runs at once are not noticed
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""What a lock file is called that lies in the folder it protects."""

HELD: set[IO[str]] = set()
"""The lock files that this process holds."""


# --- writing ----------------------------------------------------------------------------------------------------------


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


# --- locking ----------------------------------------------------------------------------------------------------------


class LockError(ValueError):
    """Another run has the lock; the message names what is locked and the other run's process."""


@contextlib.contextmanager
def locked(path: Path, target: Path) -> Iterator[None]:
    """Hold a lock while the block runs. A lock file that a killed run left behind is in nobody's way.

    Where several processes share one run, the first of them alone takes the lock.

    Args:
        path: of the lock file, in a folder that exists. It is removed at the end.
        target: what the lock protects; errors name it.

    Raises:
        LockError: if another run holds the lock.
        OSError: if the lock file cannot be written.
    """
    file = _acquire(path, target)
    HELD.add(file)
    try:
        yield
    finally:
        HELD.discard(file)
        path.unlink(missing_ok=True)  # first: whoever opened it meanwhile finds that it is gone, and opens a new one
        file.close()


def _acquire(path: Path, target: Path) -> IO[str]:
    """The open lock file, with the number of this process in it; see `locked`."""
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
        file.close()  # the other run ended, and removed it, between our opening and locking


def lock_file(file: IO[str], target: Path) -> None:
    """Lock an open file.

    Raises:
        LockError: if another run has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        process = file.read().strip()
        name = f" (process {process})" if process else ""
        raise LockError(f"{target}: another run is writing it{name}.") from error
    except OSError:  # a file system without locks
        pass


def _is_at(file: IO[str], path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _forget_locks() -> None:
    """Close the lock files in a fork, which would keep the lock if it outlived a run that was killed."""
    for file in HELD:
        file.close()
    HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


__all__ = ["LOCK", "LineFile", "LockError", "locked", "naming", "write_text"]
