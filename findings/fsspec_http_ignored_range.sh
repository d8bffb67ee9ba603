#!/bin/sh
# fsspec's `cat_file(url, start, end)` over HTTP returns the whole file if the server ignores ranges.
#
# Expectation: `cat_file` returns the bytes from `start` to `end`, as it does on every other file system, or raises an
# error if the server cannot send a part of a file. `open` on the same URL does raise an error.
#
# Behavior: A server may ignore the header `Range` and answer with status 200 and the whole file, as Python's own
# `http.server` does. `cat_file` then returns the whole file without a warning. A reader that takes the members of a
# tar file or the row groups of a Parquet file by their offsets gets other bytes, and downloads the whole shard for
# each of them.
#
# Observed on 2026-11-28 with Python 3.11 and fsspec 2026.9.0, aiohttp 3.14.5:
#   local file: b'23'
#   HTTP, server ignores ranges: b'0123456789'
#
# The exit code is 0 as long as this holds, and non-zero once the behavior changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile fsspec==2026.9.0 aiohttp==3.14.5
cd "$folder"
venv/bin/python -I - <<'PYTHON'
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import fsspec


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


with open("digits.bin", "wb") as file:
    file.write(b"0123456789")
server = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory="."))
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/digits.bin"

local = fsspec.filesystem("file").cat_file("digits.bin", start=2, end=4)  # a control
remote = fsspec.filesystem("http").cat_file(url, start=2, end=4)
print("local file:", local)
print("HTTP, server ignores ranges:", remote)
assert local == b"23"
assert remote == b"0123456789"
PYTHON
