"""Small sources of images for the tests of jobs, and a server for them."""

import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def image_file(width: int, suffix: str = "PNG") -> bytes:
    """An image file; the width tells images apart."""
    file = io.BytesIO()
    Image.new("RGB", (width, 3), (width % 256, 7, 200)).save(file, suffix)
    return file.getvalue()


def write_images(folder: Path, *names: str) -> Path:
    """Write an image 10, 11, 12... pixels wide for each name."""
    for width, name in enumerate(names, 10):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_file(width))
    return folder


def write_parquet(path: Path, columns: Mapping[str, Any], rows_per_group: int = 1000) -> Path:
    """Write a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def stored(*widths: int | None) -> pa.Array:
    """A column as `datasets` writes it; `None` has a path only."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": width and image_file(width), "path": f"{width}.png"} for width in widths], type=kind)


def shard_bytes(members: Mapping[str, bytes]) -> bytes:
    """A tar file with these members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def write_lines(path: Path, *records: Any) -> Path:
    """Write a JSON Lines file; texts are written as they are."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


PATIENCE = 20.0
"""Seconds to wait for other requests."""


class FileServer:
    """A server on this machine.

    Args:
        files: content by path, such as "/a.png".
        has_ranges: whether it sends parts of files.
        delay: seconds before each answer.
        together: number of requests that are answered at the same time only; fewer fail.
    """

    def __init__(self, files: dict[str, bytes], has_ranges: bool, delay: float, together: int):
        self.files = files
        self.has_ranges = has_ranges
        self.delay = threading.Event(), delay
        self.barrier = threading.Barrier(together)
        self.requested: list[str] = []
        self.url = ""


@contextmanager
def serve(
    files: dict[str, bytes], has_ranges: bool = True, delay: float = 0, together: int = 1
) -> Iterator[FileServer]:
    """Serve files over HTTP while the block runs."""
    state = FileServer(files, has_ranges, delay, together)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_content=False)

        def do_GET(self) -> None:
            state.requested.append(self.path)
            self.answer(with_content=True)

        def answer(self, with_content: bool) -> None:
            stop, seconds = state.delay
            stop.wait(seconds)
            state.barrier.wait(PATIENCE)
            content = state.files.get(self.path)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            status = 404 if content is None else 200
            content = content or b""
            part = content
            if wanted and state.has_ranges and status == 200:
                status = 206
                part = content[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(content)}")  # type: ignore[index]
            if state.has_ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if with_content:
                with suppress(OSError):  # the client may be gone
                    self.wfile.write(part)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        state.delay[0].set()
        server.shutdown()
        server.server_close()
