"""Where a command writes: beside its target, which is replaced when all is done, so that there is never half a result.

What a killed run leaves behind are hidden neighbours of the target. The next run removes them, or puts the target back.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers_lion.file_utils import LockError, locked

WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""System errors that come without the name of the file that was written."""


SPARE_BYTES = 50_000_000
"""Room for tokenizers and what else is small, and for others who write to the disk."""


class TargetError(ValueError):
    """A target that cannot be written; the message names it and says why."""


@contextlib.contextmanager
def replacing(target: Path, overwrite: bool = False, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """A path beside `target`, where the block makes a file or folder that takes the target's place at the end.

    If the block fails, what it made goes away, and the target stays as it was.

    Args:
        target: if it is a link, what it leads to is written.
        overwrite: whether a folder that an earlier run wrote is replaced.
        sources: what is read, so that it cannot be the target, nor hold it, nor be in it.

    Raises:
        TargetError: if the target exists or cannot be written, is a source, or is being written by another run.
    """
    target = Path(os.path.realpath(target))
    check_sources(target, sources)
    check_replaceable(target, overwrite)
    unfinished, replaced = beside(target, "unfinished"), beside(target, "replaced")
    with parents(target), reserved(target):
        try:
            recover(target)
            check_replaceable(target, overwrite)
            remove(unfinished)
            yield unfinished
            check_replaceable(target, overwrite)  # hours may have passed
            if target.exists():
                target.rename(replaced)
            unfinished.rename(target)
        except OSError as error:
            if error.errno not in WRITE_ERRORS:
                raise
            raise TargetError(f"{target}: cannot be written ({error.strerror}).") from error
        finally:
            remove(unfinished)
            recover(target)


def check_sources(target: Path, sources: Iterable[Path]) -> None:
    """Raise `TargetError` if writing the target would touch a source; what does not exist is no source."""
    for source in (Path(os.path.realpath(source)) for source in sources if source.exists()):
        if target == source or target in source.parents:
            raise TargetError(f"{target}: is or holds {source}, which is read, and would be replaced.")
        if source in target.parents:
            raise TargetError(f"{target}: lies in {source}, which is read and stays as it is.")


def check_replaceable(target: Path, overwrite: bool) -> None:
    """Raise `TargetError` if something is at the target that is not to be replaced."""
    if target.is_symlink():
        raise TargetError(f"{target}: is a link that leads nowhere.")
    if not target.exists():
        return
    if not target.is_dir():
        raise TargetError(f"{target}: is a file, but the output is a folder.")
    if not overwrite:
        raise TargetError(f"{target}: exists already; --overwrite replaces it.")
    if not os.access(target, os.W_OK | os.X_OK):
        raise TargetError(f"{target}: is read-only.")
    if any(target.iterdir()) and not (target / "config.json").is_file():
        raise TargetError(f"{target}: holds no model (config.json), and --overwrite replaces nothing else.")


def check_room(target: Path, num_bytes: int) -> None:
    """Raise `TargetError` if the disk has no room for so many bytes and a little more; the folder above exists."""
    free, needed = shutil.disk_usage(Path(os.path.realpath(target)).parent).free, int(num_bytes * 1.01) + SPARE_BYTES
    if free < needed:
        raise TargetError(f"{target}: {needed:,} bytes are needed, but {free:,} are free on the disk.")


@contextlib.contextmanager
def parents(target: Path) -> Iterator[None]:
    """Make the folders above the target; those that are still empty at the end go away again.

    Raises:
        TargetError: if that cannot be done.
    """
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            above = "it lies below a file" if isinstance(error, FileExistsError) else error.strerror
            raise TargetError(f"{target}: cannot be written ({above}).") from error
        yield
    finally:
        with contextlib.suppress(OSError):  # the first that is not empty
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def reserved(target: Path) -> Iterator[None]:
    """Keep other runs from the target.

    Raises:
        TargetError: if another run has the target, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(beside(target, "lock"), target))
        except LockError as error:
            raise TargetError(str(error)) from error
        except OSError as error:
            raise TargetError(f"{target}: cannot be written ({error.strerror}).") from error
        yield


def recover(target: Path) -> None:
    """Finish what a killed run left half done: the old folder comes back, or goes away if a new one is there."""
    replaced = beside(target, "replaced")
    if replaced.is_dir() and not target.exists():
        replaced.rename(target)
    remove(replaced)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there; a link without what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def beside(target: Path, label: str) -> Path:
    """A hidden neighbour of `target`."""
    return target.with_name(f".{target.name}.{label}")
