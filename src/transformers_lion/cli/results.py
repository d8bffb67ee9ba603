"""Writes results as lines of text or JSON, to stdout or a file, after each batch."""

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .. import file_utils
from ..file_utils import LineFile, naming
from .common import drop_stdout, printable, raise_termination

STDOUT = "stdout"
"""The name of stdout in errors."""


class Results:
    """Writes results to a stream.

    Args:
        stream: the stream.
        as_json: whether to write one JSON object per line, instead of tab-separated columns.
        name: name of the stream, for errors that name no file.
    """

    def __init__(self, stream: "TextIO | Output", as_json: bool, name: str = ""):
        self.stream = stream
        self.name = name
        self.as_json = as_json
        self.is_utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"

    def write(self, columns: Sequence[str], record: Mapping[str, Any]) -> None:
        """Write a result.

        Args:
            columns: text columns, written unless `as_json` is set.
            record: JSON record, written if `as_json` is set.
        """
        if self.as_json:
            line = json.dumps(record, ensure_ascii=not self.is_utf8)
            if not line.isascii() and any("\ud800" <= char <= "\udfff" for char in line):  # file name is not UTF-8
                line = json.dumps(record)
        else:
            line = "\t".join(printable(column) for column in columns)
        with naming(self.name):
            print(line, file=self.stream)

    def flush(self) -> None:
        """Flush the stream."""
        with naming(self.name):
            self.stream.flush()


class Output:
    """A text stream that buffers lines and writes them to a file when flushed."""

    encoding = "utf-8"

    def __init__(self, file: LineFile):
        self.file = file
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        """Buffer text."""
        self.lines.append(text)

    def flush(self) -> None:
        """Write the complete lines in the buffer."""
        text = "".join(self.lines)
        self.lines.clear()
        self.file.write(text[: text.rfind("\n") + 1])


@contextmanager
def open_results(output: Path | None, as_json: bool, resume: bool = False) -> Iterator[Results]:
    """Open results on stdout, or as JSON Lines in a new file; an empty file is deleted at the end.

    The file contains only complete lines, even after a full disk or SIGTERM.

    Args:
        output: the file; stdout by default.
        as_json: whether to print JSON to stdout.
        resume: whether the file may have content, to which results are appended.

    Raises:
        OSError: if the file exists already or cannot be written.
        ValueError: if another run is writing to it.
        Terminated: if SIGTERM or SIGHUP arrives.
    """
    with raise_termination():
        if output is None:
            yield from write_to_stdout(as_json)
        elif is_stream(output):
            yield from write_to_file(output)
        else:
            with claim(output, resume):
                yield from write_to_file(output)


def is_stream(output: Path) -> bool:
    """Whether a file is a device or a pipe."""
    return output.exists() and not output.is_file() and not output.is_dir()


def write_to_stdout(as_json: bool) -> Iterator[Results]:
    """Yield results on stdout, and flush it at the end."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    results = Results(sys.stdout, as_json, STDOUT)
    try:
        yield results
        results.flush()
    except OSError as error:
        if error.filename == STDOUT:
            drop_stdout()
        raise


def write_to_file(path: Path) -> Iterator[Results]:
    """Yield results in a file, and flush them even if a batch fails."""
    file = LineFile(path, keep_empty=False)
    try:
        results = Results(Output(file), as_json=True)
        try:
            yield results
        finally:
            results.flush()  # writes nothing if it was writing that failed
    finally:
        file.close()


@contextmanager
def claim(path: Path, resume: bool = False) -> Iterator[None]:
    """Lock an output file that is new, that a killed run left behind empty, or that is continued.

    Raises:
        OSError: if the file has content, is a link, or cannot be written.
        ValueError: if another run is writing to it.
    """
    has_content = path.exists() and path.stat().st_size > 0
    if path.is_dir() or path.is_symlink() or (has_content and not resume):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with path.open("a+", encoding="utf-8") as file:
        if file_utils.fcntl is not None:
            file_utils.lock_file(file, path)
        yield
