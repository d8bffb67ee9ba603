"""Downloads: what a server says is looked at before anything is decoded, wherever an address is given."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transformers_lion import Lion, LionImageProcessor, to_rgb
from transformers_lion.cli.image_sources import name_file
from transformers_lion.images import downloads
from transformers_lion.images.downloads import MAX_REDIRECTS, download
from transformers_lion.jobs.row_images import RowImages
from transformers_lion.training import load_records

PIXELS = np.random.RandomState(0).randint(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


IMAGE = png(PIXELS)
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/image.png": (200, {"Content-Type": "image/png"}, IMAGE),
    "/deep.png": (200, {"Content-Type": "image/png"}, png(DEEP)),
    "/binary": (200, {"Content-Type": "application/octet-stream"}, IMAGE),
    "/untyped": (200, {}, IMAGE),
    "/missing.png": (404, {"Content-Type": "image/png"}, IMAGE),
    "/forbidden.png": (403, {"Content-Type": "text/html"}, b"<html>no</html>"),
    "/broken.png": (500, {}, b""),
    "/page.png": (200, {"Content-Type": "text/html; charset=utf-8"}, IMAGE),
    "/data.png": (200, {"Content-Type": "application/problem+json"}, b"{}"),
    "/announced.png": (200, {"Content-Type": "image/png", "Content-Length": "1000000000000"}, IMAGE),
    "/no-image.png": (200, {"Content-Type": "image/png"}, b"This is not an image."),
    "/moved.png": (302, {"Location": "/image.png"}, b""),
    "/moved-away.png": (302, {"Location": "/missing.png"}, b""),
    "/loop.png": (302, {"Location": "/loop.png"}, b""),
    "/elsewhere.png": (302, {"Location": "file:///etc/passwd"}, b""),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/endless.png":
            return self.drip(b"x" * 100_000, 0.0)
        if self.path == "/slow.png":
            return self.drip(b"x", 0.05)
        status, headers, content = ANSWERS[self.path]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        return None

    def drip(self, chunk: bytes, pause: float) -> None:
        """Send without end."""
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        try:
            for _ in range(100_000):
                self.wfile.write(chunk)
                time.sleep(pause)
        except OSError:  # the client has hung up
            pass

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("path", ["/image.png", "/binary", "/untyped", "/moved.png"])
def test_an_image_is_downloaded(path: str, server: str) -> None:
    assert np.array_equal(np.asarray(to_rgb(server + path)), PIXELS)


def test_a_downloaded_image_of_16_bits_keeps_its_tones(server: str) -> None:
    assert np.array_equal(np.asarray(to_rgb(f"{server}/deep.png"))[..., 0], DEEP >> 8)


REFUSED = {
    "/missing.png": r"HTTP status 404 \(Not Found\)",
    "/forbidden.png": r"HTTP status 403 \(Forbidden\)",
    "/broken.png": r"HTTP status 500 \(Internal Server Error\)",
    "/page.png": "sent text/html, which is not an image",
    "/data.png": r"sent application/problem\+json",
    "/announced.png": "1,000,000,000,000 bytes, but the limit is 100,000,000",
    "/no-image.png": "not an image in a known format",
    "/moved-away.png": r"404 \(Not Found\) \(after a redirect to http://127.0.0.1:\d+/missing.png\)",
    "/loop.png": f"redirects more than {MAX_REDIRECTS} times",
    "/elsewhere.png": "cannot be read",
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_a_server_refuses_is_named_with_its_address_and_the_reason(path: str, server: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[path]) as caught:
        to_rgb(server + path)
    assert f"Image '{server}{path}'" in str(caught.value)


def by_records(url: str) -> Any:
    return load_records([{"image": url, "question": "a", "answer": "b"}], check_images="decode")


ENTRANCES: dict[str, Callable[[str], Any]] = {
    "command": lambda url: RowImages().open(name_file(url)),
    "image processor": LionImageProcessor(),
    "records": by_records,
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_placeholder_that_comes_with_404_is_taken_by_no_entrance(entrance: str, server: str) -> None:
    ENTRANCES[entrance](f"{server}/image.png")
    with pytest.raises(ValueError, match=r"/missing.png.* 404 \(Not Found\)"):
        ENTRANCES[entrance](f"{server}/missing.png")


def test_a_file_that_does_not_end_is_cut_at_the_limit(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
        download(f"{server}/endless.png")


def test_a_download_that_drips_ends_at_the_time_out(server: str) -> None:
    with pytest.raises(ValueError, match=r"/slow.png.* longer than 0.3 seconds"):
        to_rgb(f"{server}/slow.png", timeout=0.3)


def test_passwords_in_addresses_are_in_no_message(server: str) -> None:
    with pytest.raises(ValueError, match="404") as caught:
        to_rgb(server.replace("http://", "http://somebody:secret@") + "/missing.png")
    assert "secret" not in str(caught.value)


def test_others_are_answered_where_one_download_fails(server: str, lion_model: Any, lion_processor: Any) -> None:
    lion = Lion(lion_model, lion_processor)
    names = [f"{server}/image.png", f"{server}/missing.png", "nowhere.png", f"{server}/page.png"]
    found = lion.caption(names, on_error="skip", max_new_tokens=4)
    assert found[0] == lion.caption(PIXELS, max_new_tokens=4)
    assert found[1:] == [None] * 3
