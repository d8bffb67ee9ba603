"""Where results go: lines of text or of JSON, on stdout or in a file, each batch at once."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .common import printable


class Results:
    """Writes results.

    Args:
        stream: to write to.
        as_json: an object a line, instead of columns with tabs between them.
    """

    def __init__(self, stream: TextIO, as_json: bool):
        self.stream = stream
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
        print(line, file=self.stream)

    def flush(self) -> None:
        """Have everything that was written reach its place."""
        self.stream.flush()


@contextmanager
def open_results(output: Path | None, as_json: bool) -> Iterator[Results]:
    """Results on stdout, or as JSON Lines in a new file, which is not left behind empty.

    Raises:
        OSError: if the file exists already or cannot be written.
    """
    if output is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        yield Results(sys.stdout, as_json)
        sys.stdout.flush()
        return
    is_device = output.exists() and not output.is_file() and not output.is_dir()
    with output.open("w" if is_device else "x", encoding="utf-8") as file:
        try:
            yield Results(file, as_json=True)
        finally:
            file.flush()
            if not is_device and not output.stat().st_size:
                output.unlink()
