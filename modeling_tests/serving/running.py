"""A server in a thread, and the requests that tests send to it."""

import asyncio
import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from openai import OpenAI
from PIL import Image

from transformers_lion import Lion
from transformers_lion.serving.local import DrainingServer
from transformers_lion.serving.service import Service
from transformers_lion.serving.settings import EXAMPLE_NAME, Limits


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until a condition holds; that it does not is a failure."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.005)


def data_uri(image: Image.Image) -> str:
    """An image as a request has it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def messages(image: str, text: str) -> list[dict[str, Any]]:
    """The messages of a chat completion about an image."""
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


@dataclass
class Response:
    """What a server answers."""

    status: int
    headers: Any
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        """The error, whose form is always the same."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].endswith(".")
        return error


@dataclass
class Client:
    """Sends requests to a server."""

    url: str

    def send(self, path: str, body: Any = None, timeout: float = 30, **headers: str) -> Response:
        """Send JSON, or bytes as they are; a GET without a body."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        request = urllib.request.Request(f"{self.url}{path}", data, sent)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return Response(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            return Response(error.code, error.headers, error.read())

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", **options)

    def chat(self, image: str, text: str, **fields: Any) -> Response:
        """Ask for a chat completion."""
        return self.send("/v1/chat/completions", {"model": EXAMPLE_NAME, "messages": messages(image, text), **fields})


@dataclass
class Running(Client):
    """A server in this process."""

    service: Service
    server: DrainingServer

    def batch_sizes(self) -> float:
        """Number of forward passes so far."""
        return self.service.metrics.registry.get_sample_value("lion_batch_size_count", {"replica": ""}) or 0.0


@contextmanager
def running(load: Callable[[], Lion], limits: Limits | None = None, wait: bool = True) -> Iterator[Running]:
    """Run a server in a thread, and drain it at the end.

    Args:
        load: loads the model.
        limits: the limits.
        wait: for the model.
    """
    service = Service(load, EXAMPLE_NAME, limits or Limits())
    server = DrainingServer(service, "127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(server.run_service(lambda text: None)), daemon=True)
    thread.start()
    wait_until(lambda: server.started and (service.is_ready or not wait))
    try:
        yield Running(f"http://127.0.0.1:{server.port}", service, server)
    finally:
        assert server.loop is not None
        if thread.is_alive():
            server.loop.call_soon_threadsafe(server.begin_draining)
        thread.join(30)
        assert not thread.is_alive()
