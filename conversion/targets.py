"""Write an output beside its target and replace the target at the end, so that there is never an incomplete output.

A killed run leaves hidden files beside the target. The next run removes them or restores the target.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers_lion.file_utils import LockError, locked

WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""System errors that do not name the file."""


SPARE_BYTES = 50_000_000
"""Reserve for small files such as tokenizers, and for other processes that write to the disk."""


class TargetError(ValueError):
    """A target that cannot be written. The message names it and says why."""


@contextlib.contextmanager
def replacing(target: Path, overwrite: bool = False, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a path beside `target` for the block to create. It replaces the target at the end.

    If the block fails, its output is removed and the target is left unchanged.

    Args:
        target: Output path. A link is followed.
        overwrite: Whether to replace a folder from an earlier run.
        sources: Paths that are read. The target must not be, contain, or be inside any of them.

    Raises:
        TargetError: If the target exists, cannot be written, is a source, or is being written by another run.
    """
    target = Path(os.path.realpath(target))
    _check_sources(target, sources)
    _check_replaceable(target, overwrite)
    unfinished, replaced = beside(target, "unfinished"), beside(target, "replaced")
    with parents(target), _reserved(target):
        try:
            recover(target)
            _check_replaceable(target, overwrite)
            remove(unfinished)
            yield unfinished
            _check_replaceable(target, overwrite)  # hours may have passed
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


def _check_sources(target: Path, sources: Iterable[Path]) -> None:
    """Raise `TargetError` if writing the target would change a source. Paths that do not exist are ignored."""
    for source in (Path(os.path.realpath(source)) for source in sources if source.exists()):
        if target == source or target in source.parents:
            raise TargetError(f"{target}: would replace {source}, which is an input.")
        if source in target.parents:
            raise TargetError(f"{target}: is inside {source}, which is an input and must not change.")


def _check_replaceable(target: Path, overwrite: bool) -> None:
    """Raise `TargetError` if the target exists and must not be replaced."""
    if target.is_symlink():
        raise TargetError(f"{target}: is a broken link.")
    if not target.exists():
        return
    if not target.is_dir():
        raise TargetError(f"{target}: is a file, but the output is a folder.")
    if not overwrite:
        raise TargetError(f"{target}: already exists; pass --overwrite to replace it.")
    if not os.access(target, os.W_OK | os.X_OK):
        raise TargetError(f"{target}: is read-only.")
    if any(target.iterdir()) and not (target / "config.json").is_file():
        raise TargetError(f"{target}: not a model folder (no config.json), so --overwrite does not replace it.")


def check_room(target: Path, num_bytes: int) -> None:
    """Raise `TargetError` if the disk has not enough free space. The parent folder must exist."""
    free, needed = shutil.disk_usage(Path(os.path.realpath(target)).parent).free, int(num_bytes * 1.01) + SPARE_BYTES
    if free < needed:
        raise TargetError(f"{target}: {needed:,} bytes are needed, but {free:,} are free on the disk.")


@contextlib.contextmanager
def parents(target: Path) -> Iterator[None]:
    """Create the parent folders of the target. Those that are still empty at the end are removed.

    Raises:
        TargetError: If they cannot be created.
    """
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            above = "a parent is a file" if isinstance(error, FileExistsError) else error.strerror
            raise TargetError(f"{target}: cannot be written ({above}).") from error
        yield
    finally:
        with contextlib.suppress(OSError):  # stops at the first that is not empty
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def _reserved(target: Path) -> Iterator[None]:
    """Lock the target against other runs.

    Raises:
        TargetError: If another run holds the lock, or it cannot be written.
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
    """Clean up after a killed run: restore the old folder, or remove it if the new one is complete."""
    replaced = beside(target, "replaced")
    if replaced.is_dir() and not target.exists():
        replaced.rename(target)
    remove(replaced)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists. Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def beside(target: Path, label: str) -> Path:
    """Return a hidden path beside `target`."""
    return target.with_name(f".{target.name}.{label}")
