"""Images of requests: what is read, what is refused, and how much of it is in memory."""

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from serving.running import data_uri
from transformers_lion.serving.errors import ServiceError
from transformers_lion.serving.images import ImageReader, PixelBudget, host_of
from transformers_lion.serving.settings import Limits

PICTURE = Image.new("RGB", (30, 20), (255, 0, 0))


def read(source: str, limits: Limits | None = None) -> Image.Image:
    async def body() -> Image.Image:
        reader = ImageReader(limits or Limits())
        async with reader.read(source, "image") as image:
            return image

    return asyncio.run(body())


def refusal(source: str, limits: Limits | None = None) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        read(source, limits)
    assert caught.value.param == "image"
    return caught.value


class Handler(BaseHTTPRequestHandler):
    requested: list[str] = []

    def do_GET(self) -> None:
        self.requested.append(self.path)
        file = io.BytesIO()
        PICTURE.save(file, "PNG")
        target = self.path.partition("to=")[2]
        self.send_response(302 if target else 200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(file.getvalue())))
        if target:
            self.send_header("Location", target)
        self.end_headers()
        self.wfile.write(file.getvalue())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_data_uri_is_read_as_an_upright_rgb_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PICTURE.convert("RGBA").save(file, "PNG", exif=exif)
    image = read(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
    assert (image.mode, image.size) == ("RGB", (20, 30))


def test_an_image_of_an_allowed_host_is_downloaded(host: str) -> None:
    assert read(f"http://{host}/a.png", Limits(allowed_hosts=("example.org", host))).size == (30, 20)


def test_other_hosts_are_refused_without_a_connection(host: str) -> None:
    Handler.requested.clear()
    error = refusal(f"http://{host}/a.png", Limits(allowed_hosts=("127.0.0.1", "example.org")))
    assert (error.status_code, error.code) == (400, "host_not_allowed")
    assert host in error.detail
    assert Handler.requested == []


def test_a_redirect_to_another_host_is_refused(host: str) -> None:
    Handler.requested.clear()
    other = host.replace("127.0.0.1", "localhost")
    error = refusal(f"http://{host}/?to=http://{other}/secret.png", Limits(allowed_hosts=(host,)))
    assert error.code == "host_not_allowed"
    assert not any("secret" in path and "to=" not in path for path in Handler.requested)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://Example.org/a.png", "example.org"),
        ("https://example.org:443/a.png", "example.org"),
        ("http://example.org:443/a.png", "example.org:443"),
        ("http://good.org@example.org/a.png", "example.org"),
        ("http://example.org:x/a.png", None),
    ],
)
def test_the_host_of_a_url_has_a_port_unless_it_is_the_default(url: str, host: str | None) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize("source", ["/etc/hostname", "file:///etc/hostname", "photo.png", "QUJD" * 40])
def test_files_of_the_server_and_plain_text_are_refused(source: str, tmp_path: Path) -> None:
    assert "data URI" in refusal(source).detail


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("data:image/png;base64,???", "not valid base64"),
        ("data:image/png;base64,QUJD", "not an image"),
        (data_uri(PICTURE)[:-60], "damaged"),
    ],
)
def test_an_image_that_cannot_be_read_is_refused_in_a_sentence(source: str, said: str) -> None:
    error = refusal(source)
    assert (error.status_code, error.code) == (400, "invalid_image")
    assert said in error.detail


def test_large_files_and_large_images_are_refused_with_both_numbers() -> None:
    many_bytes = refusal(data_uri(PICTURE), Limits(max_image_bytes=20))
    assert many_bytes.status_code == 413
    assert "limit is 20" in many_bytes.detail
    many_pixels = refusal(data_uri(PICTURE), Limits(max_megapixels=0.0005))
    assert many_pixels.status_code == 400
    assert "30 x 20 pixels, more than 0.0005 megapixels" in many_pixels.detail


def test_decoded_images_wait_until_there_is_room() -> None:
    async def body() -> None:
        budget = PixelBudget(100)
        async with budget.reserve(60), budget.reserve(40):
            waiting = asyncio.ensure_future(hold(budget, 1))
            await asyncio.sleep(0.01)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 1)
        await asyncio.wait_for(hold(budget, 1000), 1)  # a larger one waits only until it is alone
        assert budget.used == 0

    async def hold(budget: PixelBudget, pixels: int) -> None:
        async with budget.reserve(pixels):
            pass

    asyncio.run(body())


def test_an_image_keeps_its_room_until_it_is_no_longer_used() -> None:
    async def body() -> None:
        reader = ImageReader(Limits())
        async with reader.read(data_uri(PICTURE), "image"):
            assert reader.budget.used == 600
        with pytest.raises(ServiceError):
            async with reader.read(data_uri(PICTURE)[:-60], "image"):
                pass
        assert reader.budget.used == 0

    asyncio.run(body())
