"""An image's address on the web -> the bytes of its file, or an error that says what the server answered.

What the server says is looked at before anything is decoded: its status, the type of what it sends, and the size.
"""

import time
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub.utils import httpx  # whichever of its two packages is installed

TIMEOUT = 30.0
"""Seconds for a download, wherever images are opened."""
MAX_BYTES = 100_000_000
"""Of a downloaded file. A JPEG file of 50 megapixels has some 20 million."""
MAX_REDIRECTS = 5

REFUSED_KINDS = ("audio", "font", "message", "model", "multipart", "text", "video")
REFUSED_TYPES = ("json", "xml", "html", "javascript", "pdf", "zip", "gzip")
"""Content types that are no image's. Servers send images as `image/...`, as `application/octet-stream`, without a
type, and under a few odd names, so that only what is surely something else is refused."""

AGENT = {"User-Agent": "transformers-lion", "Accept": "image/*,*/*;q=0.5"}


def is_url(text: str) -> bool:
    """Whether a text is an address on the web."""
    return text[:8].lower().startswith(("http://", "https://"))


def download(url: str, timeout: float | None = TIMEOUT) -> bytes:
    """The content of a file on the web.

    Args:
        url: beginning with http:// or https://.
        timeout: in seconds, for the connection, for each wait for data, and for the whole download; `None` for none.

    Raises:
        ValueError: if the server answers with another status than 2xx, sends something that is not an image or is larger
            than `MAX_BYTES`, takes too long, or redirects more than `MAX_REDIRECTS` times.
        httpx.HTTPError: if there is no connection.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        with (
            httpx.Client(follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=timeout, headers=AGENT) as client,
            client.stream("GET", url) as response,
        ):
            _check_answer(response, url)
            return _read_content(response, deadline)
    except httpx.TooManyRedirects as error:
        raise ValueError(f"the server redirects more than {MAX_REDIRECTS} times") from error
    except (httpx.TimeoutException, TimeoutError) as error:
        raise ValueError(f"the download took longer than {timeout:g} seconds") from error


def _check_answer(response: httpx.Response, url: str) -> None:
    """Raise `ValueError` if what a server begins to send cannot be an image, or is too large."""
    moved = "" if str(response.url) == url else f" (after a redirect to {public_url(str(response.url))})"
    if not response.is_success:
        raise ValueError(f"the server answered with HTTP status {_name_status(response.status_code)}{moved}")
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    kind, _, subtype = content_type.partition("/")
    if kind in REFUSED_KINDS or (kind == "application" and subtype.rpartition("+")[2] in REFUSED_TYPES):
        raise ValueError(f"the server sent {content_type}, which is not an image{moved}")
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_BYTES:
        raise ValueError(f"the file has {int(length):,} bytes; at most {MAX_BYTES:,} are downloaded{moved}")


def _read_content(response: httpx.Response, deadline: float | None) -> bytes:
    """The body of an answer.

    Raises:
        ValueError: if it has more than `MAX_BYTES`, whatever the server said before.
        TimeoutError: if it is not complete at the deadline.
    """
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_BYTES:
            raise ValueError(f"the file has more than {MAX_BYTES:,} bytes, which is the most that is downloaded")
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError
    return bytes(content)


def _name_status(code: int) -> str:
    try:
        return f"{code} ({HTTPStatus(code).phrase})"
    except ValueError:
        return str(code)


def public_url(url: str) -> str:
    """An address for messages, without the name and password that it may hold."""
    try:
        scheme, place, path, query, fragment = urlsplit(url)
        return urlunsplit((scheme, place.rpartition("@")[2], path, query, fragment))
    except ValueError:
        return url
