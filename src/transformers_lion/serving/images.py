"""Reads the images of requests: data URIs, and URLs of allowed hosts, within limits and with bounded memory.

Files are fetched and decoded in threads, before the queue, so that the model does not wait and a bad image affects no
other request.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import urlsplit

from PIL import Image

from ..images import TIMEOUT, is_data_uri, is_url
from ..images.downloads import download, public_url
from ..images.loading import decode_text
from ..images.untrusted import decode_untrusted, open_untrusted
from .errors import ServiceError, invalid, too_large
from .settings import MEGAPIXEL, Limits

Value = TypeVar("Value")

NUM_DECODERS = 4
NUM_DOWNLOADS = 16
"""Threads for downloads, apart from those that decode, so that a slow host does not delay other requests."""
PORTS = {"http": 80, "https": 443}


class PixelBudget:
    """Bounds the memory of all decoded images.

    Args:
        limit: Maximum number of pixels in memory. A larger image waits until it is alone.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self.used = 0
        self.changed = asyncio.Condition()

    @asynccontextmanager
    async def reserve(self, pixels: int) -> AsyncIterator[None]:
        """Wait until there is room for an image, and keep the room during the block."""
        async with self.changed:
            await self.changed.wait_for(lambda: not self.used or self.used + pixels <= self.limit)
            self.used += pixels
        try:
            yield
        finally:
            self.used -= pixels
            async with self.changed:
                self.changed.notify_all()


class ImageReader:
    """Reads the images of requests.

    Args:
        limits: The limits of the service.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.budget = PixelBudget(limits.max_decoded_megapixels * MEGAPIXEL)
        self.decoders = ThreadPoolExecutor(NUM_DECODERS, thread_name_prefix="lion-images")
        self.downloads = ThreadPoolExecutor(NUM_DOWNLOADS, thread_name_prefix="lion-downloads")

    @asynccontextmanager
    async def read(self, source: str, param: str) -> AsyncIterator[Image.Image]:
        """Yield an image as an upright RGB image. Its memory is accounted for until the block ends.

        Args:
            source: A data URI or a URL.
            param: Name of the parameter, for errors.

        Raises:
            ServiceError: If the image is not allowed, cannot be read, or is too large.
        """
        content = await self.fetch(source, param)
        opened = await self.run(self.open, content, param)
        async with self.budget.reserve(opened.width * opened.height):
            yield await self.run(self.decode, opened, param)

    async def run(self, function: Callable[..., Value], *arguments: object) -> Value:
        """Run a function in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, function, *arguments)

    async def fetch(self, source: str, param: str) -> bytes:
        """Return the bytes of an image file."""
        if is_data_uri(source):
            return await self.run(self.read_data_uri, source, param)
        if is_url(source):
            return await asyncio.get_running_loop().run_in_executor(self.downloads, self.download, source, param)
        raise invalid(
            f"{param} starts with {source[:20]!r}, but must be a data URI such as 'data:image/jpeg;base64,...' or a "
            "URL of an allowed host.",
            param,
            "invalid_image",
        )

    def read_data_uri(self, source: str, param: str) -> bytes:
        """Decode a data URI."""
        try:
            content = decode_text(source)
        except ValueError as error:
            raise invalid(
                f"{param} is a data URI, but its data is not valid base64.", param, "invalid_image"
            ) from error
        if len(content) > self.limits.max_image_bytes:
            raise too_large(
                f"{param} has {len(content):,} bytes, but the limit is {self.limits.max_image_bytes:,}.", param
            )
        return content

    def download(self, url: str, param: str) -> bytes:
        """Download a file from an allowed host."""

        def check_url(address: str) -> None:
            if not is_allowed(address, self.limits.allowed_hosts):
                raise invalid(
                    f"{param}: images of {host_of(address) or 'this URL'} may not be downloaded. Send the image as a "
                    "data URI such as 'data:image/jpeg;base64,...'.",
                    param,
                    "host_not_allowed",
                )

        check_url(url)
        try:
            return download(url, min(TIMEOUT, self.limits.timeout), self.limits.max_image_bytes, check_url)
        except ServiceError:
            raise
        except Exception as error:  # connections raise many types of errors
            name = public_url(url)[:200]
            raise invalid(f"{param}: {name} cannot be downloaded: {error}.", param, "invalid_image") from error

    def open(self, content: bytes, param: str) -> Image.Image:
        """Check the header of an image file."""
        try:
            return open_untrusted(io.BytesIO(content), self.limits.max_megapixels)
        except ValueError as error:
            raise invalid(f"{param}: {error}", param, "invalid_image") from error

    def decode(self, image: Image.Image, param: str) -> Image.Image:
        """Decode an image."""
        try:
            return decode_untrusted(image)
        except ValueError as error:
            raise invalid(f"{param}: {error}", param, "invalid_image") from error

    def close(self) -> None:
        """Stop the threads."""
        for threads in (self.decoders, self.downloads):
            threads.shutdown(wait=False, cancel_futures=True)


def host_of(url: str) -> str | None:
    """Return the host of a URL, with its port unless it is the default port, or `None` for an invalid URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if host is None or port is None or port == PORTS.get(parts.scheme.lower()):
        return host
    return f"{host}:{port}"


def is_allowed(url: str, hosts: tuple[str, ...]) -> bool:
    """Whether the host of a URL is one of `hosts`."""
    return is_url(url) and host_of(url) in {host.lower() for host in hosts}


__all__ = ["ImageReader", "PixelBudget"]
