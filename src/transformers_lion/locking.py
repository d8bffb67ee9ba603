"""One run at a time on a folder: a lock file that the operating system releases when a run ends, however it ends.

with locked(folder / LOCK, folder):
    ...
"""

import contextlib
import os
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
    file = acquire(path, target)
    HELD.add(file)
    try:
        yield
    finally:
        HELD.discard(file)
        path.unlink(missing_ok=True)  # first: whoever opened it meanwhile finds that it is gone, and opens a new one
        file.close()


def acquire(path: Path, target: Path) -> IO[str]:
    """The open lock file, with the number of this process in it; see `locked`."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            if fcntl is not None:
                lock_file(file, target)
            if is_at(file, path):
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


def is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that is at `path`."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def forget_locks() -> None:
    """Close the lock files in a fork, which would keep the lock if it outlived a run that was killed."""
    for file in HELD:
        file.close()
    HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_locks)


__all__ = ["LOCK", "LockError", "locked"]
