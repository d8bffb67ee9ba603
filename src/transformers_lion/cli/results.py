"""Where results go: lines of text or of JSON, on stdout or in a file, each batch at once."""

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
"""As errors name it."""


class Results:
    """Writes results.

    Args:
        stream: to write to.
        as_json: an object a line, instead of columns with tabs between them.
        name: of the stream, for errors that name no file.
    """

    def __init__(self, stream: "TextIO | Output", as_json: bool, name: str = ""):
        self.stream = stream
        self.name = name
        self.as_json = as_json
        self.is_utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"

    def write(self, columns: Sequence[str], record: Mapping[str, Any]) -> None:
        """Write a result.

        Args:
            columns: for people.
            record: for programs.
        """
        if self.as_json:
            line = json.dumps(record, ensure_ascii=not self.is_utf8)
            if not line.isascii() and any("\ud800" <= char <= "\udfff" for char in line):  # of names that are no UTF-8
                line = json.dumps(record)
        else:
            line = "\t".join(printable(column) for column in columns)
        with naming(self.name):
            print(line, file=self.stream)

    def flush(self) -> None:
        """Have everything that was written reach its place."""
        with naming(self.name):
            self.stream.flush()


class Output:
    """A stream of lines that go into a file, as many at a time as are flushed.

    Args:
        file: the file.
    """

    encoding = "utf-8"

    def __init__(self, file: LineFile):
        self.file = file
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        """Keep a part of a line, or its end, until it is flushed."""
        self.lines.append(text)

    def flush(self) -> None:
        """Write the whole lines that were kept."""
        text = "".join(self.lines)
        self.lines.clear()
        self.file.write(text[: text.rfind("\n") + 1])


@contextmanager
def open_results(output: Path | None, as_json: bool) -> Iterator[Results]:
    """Results on stdout, or as JSON Lines in a new file, which is not left behind empty.

    Whatever ends the block, a full disk and SIGTERM included, the file holds whole lines.

    Raises:
        OSError: if the file exists already or cannot be written.
        ValueError: if another run is writing it.
        Terminated: if SIGTERM or SIGHUP arrives.
    """
    with raise_termination():
        if output is None:
            yield from write_to_stdout(as_json)
        elif output.exists() and not output.is_file() and not output.is_dir():
            yield from write_to_file(output)  # a device or a pipe
        else:
            with claim(output):
                yield from write_to_file(output)


def write_to_stdout(as_json: bool) -> Iterator[Results]:
    """Results on stdout, flushed at the end."""
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
    """Results in a file; of a batch that broke off, those that were there."""
    file = LineFile(path, keep_empty=False)
    try:
        results = Results(Output(file), as_json=True)
        try:
            yield results
        finally:
            results.flush()  # writes nothing where writing is what failed
    finally:
        file.close()


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Keep other runs from a file that is new, or that a killed run left behind empty.

    Raises:
        OSError: if it holds something, is a link, or cannot be written.
        ValueError: if another run is writing it.
    """
    if path.is_dir() or path.is_symlink() or (path.exists() and path.stat().st_size):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    with path.open("a+", encoding="utf-8") as file:
        if file_utils.fcntl is not None:
            file_utils.lock_file(file, path)
        yield
