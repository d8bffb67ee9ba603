"""Image files: which files of a folder are images, and opening one with an error that names it."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..file_utils import printable
from .loading import PLUG_IN_SUFFIXES, advise, register_plug_ins, to_rgb

SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga",
    ".tif", ".tiff", ".webp",
})  # fmt: skip
"""Suffixes of the files that are read from folders, besides those of installed plug-ins in `PLUG_IN_SUFFIXES`. Files
that are named themselves may have any suffix."""
KINDS_SHOWN = 5
"""Number of kinds of skipped files that are listed."""

Tree = Iterable[tuple[str, list[str], list[str]]]
"""A folder and its subfolders as `os.walk` yields them from the top: the folder, and the names in it."""

# --- folders ----------------------------------------------------------------------------------------------------------


def walk(folder: str, errors: list[Exception | str], passed_over: Counter[str]) -> Iterator[str]:
    """Yield the images in a folder and its subfolders, sorted; skip hidden files and count other files by suffix.

    Args:
        folder: local folder.
        errors: errors of unreadable subfolders are appended.
        passed_over: counts of skipped files by suffix, which are increased.
    """
    yield from find_files(os.walk(folder, onerror=errors.append), readable_suffixes(), passed_over)


def find_files(tree: Tree, suffixes: frozenset[str], passed_over: Counter[str]) -> Iterator[str]:
    """Yield the files of a tree that have one of the suffixes, sorted; skip hidden files and count the others."""
    for place, folders, files in tree:
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in suffixes:
                yield os.path.join(place, name)
            else:
                passed_over[suffix] += 1


def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that are read from folders, including those for installed plug-ins."""
    installed = register_plug_ins()
    return SUFFIXES | {suffix for suffix, package in PLUG_IN_SUFFIXES.items() if package in installed}


def describe_passed_over(counts: Counter[str]) -> str:
    """Describe the skipped files, and the plug-ins that would read them; empty if there are none."""
    if not counts:
        return ""
    kinds = [f"{count} {printable(suffix) or 'without a suffix'}" for suffix, count in counts.most_common(KINDS_SHOWN)]
    if len(counts) > KINDS_SHOWN:
        kinds.append(f"{len(counts) - KINDS_SHOWN} other kinds")
    reason = f"{counts.total()} files were skipped because their suffixes are not those of images"
    if counts.total() == 1:
        reason = "1 file was skipped because its suffix is not that of an image"
    packages = sorted({PLUG_IN_SUFFIXES[suffix] for suffix in counts if suffix in PLUG_IN_SUFFIXES})
    advice = f" To read {_suffixes_of(packages, counts)}: pip install {' '.join(packages)}." if packages else ""
    return f"{reason}: {', '.join(kinds)}.{advice}"


def _suffixes_of(packages: Sequence[str], counts: Counter[str]) -> str:
    """List the suffixes that the plug-ins read."""
    return ", ".join(sorted(suffix for suffix in counts if PLUG_IN_SUFFIXES.get(suffix) in packages))


# --- one file ---------------------------------------------------------------------------------------------------------


def open_image_file(path: str, name: str | None = None) -> Image.Image:
    """Open an image file as an upright RGB image.

    Args:
        path: local path.
        name: name of the image in errors; the path by default.

    Raises:
        OSError, ValueError: if it cannot be read; the message names it.
    """
    file, shown = Path(path), printable(path if name is None else name)
    try:
        if not file.is_file():
            file.stat()  # raises for a broken link or a lack of permission
            raise ValueError(f"{shown} is not a file.")
        with file.open("rb") as stream:  # raises the system's own error if the file is unreadable
            is_empty = not stream.read(1)
    except OSError as error:
        error.filename = path if name is None else name
        raise
    if is_empty:
        raise ValueError(f"{shown} is empty.")
    try:
        return to_rgb(file)
    except ValueError as error:
        raise ValueError(explain_unreadable(shown, error, path)) from error


def open_image_bytes(content: bytes, name: str) -> Image.Image:
    """Open the content of an image file as an upright RGB image.

    Args:
        content: content of the file.
        name: name of the image in errors.

    Raises:
        ValueError: if it cannot be read; the message names it.
    """
    shown = printable(name)
    if not content:
        raise ValueError(f"{shown} is empty.")
    try:
        return to_rgb(content)
    except ValueError as error:
        raise ValueError(explain_unreadable(shown, error, name)) from error


def explain_unreadable(name: str, error: ValueError, path: str) -> str:
    """Write an error of `to_rgb` with the name of the image; `path` tells which plug-in would read it."""
    cause = error.__cause__
    reason = f"{cause or error}"
    if isinstance(cause, UnidentifiedImageError):
        reason = f"it is not an image in a known format.{advise(path)}"
    return f"{name} cannot be read: {reason.rstrip('.')}."


__all__ = ["describe_passed_over", "find_files", "open_image_bytes", "open_image_file", "readable_suffixes", "walk"]
