"""Downloads image files. The status, content type and size of a response are checked before it is decoded."""

import ssl
import time
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

from huggingface_hub.utils import httpx  # whichever of its two packages is installed

TIMEOUT = 30.0
"""Default timeout of a download in seconds."""
MAX_BYTES = 100_000_000
"""Maximum size of a download. A JPEG file with 50 megapixels has about 20 million bytes."""
MAX_REDIRECTS = 5

REFUSED_KINDS = ("audio", "font", "message", "model", "multipart", "text", "video")
REFUSED_TYPES = ("json", "xml", "html", "javascript", "pdf", "zip", "gzip")
"""Content types to refuse. Servers send images as `image/...`, as `application/octet-stream`, without a type and with
unusual types, so only those that are certainly not images are refused."""

AGENT = {"User-Agent": "transformers-lion", "Accept": "image/*,*/*;q=0.5"}


def is_url(text: str) -> bool:
    """Whether a string is an HTTP or HTTPS URL."""
    return text[:8].lower().startswith(("http://", "https://"))


def download(
    url: str,
    timeout: float | None = TIMEOUT,
    max_bytes: int | None = None,
    check_url: Callable[[str], None] | None = None,
) -> bytes:
    """Download a file.

    Args:
        url: URL that starts with http:// or https://.
        timeout: Timeout in seconds for connecting, for each read and for the whole download, or `None`.
        max_bytes: Maximum size of the file; `MAX_BYTES` by default.
        check_url: Called with each URL before it is requested, including those of redirects. Its errors end the
            download.

    Returns:
        The content of the file.

    Raises:
        ValueError: If the server does not respond with a 2xx status, sends something other than an image or a file
            larger than `max_bytes`, takes too long, or redirects more than `MAX_REDIRECTS` times.
        httpx.HTTPError: If there is no connection.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    limit = MAX_BYTES if max_bytes is None else max_bytes
    client = open_client(timeout)
    if check_url is not None:
        client.event_hooks = {"request": [lambda request: check_url(str(request.url))]}
    try:
        with client, client.stream("GET", url) as response:
            _check_answer(response, url, limit)
            return _read_content(response, deadline, limit)
    except httpx.TooManyRedirects as error:
        raise ValueError(f"the server redirects more than {MAX_REDIRECTS} times") from error
    except (httpx.TimeoutException, TimeoutError) as error:
        raise ValueError(f"the download took longer than {timeout:g} seconds") from error


def open_client(timeout: float | None) -> httpx.Client:
    """Return a new HTTP client, which keeps nothing from other downloads."""
    return httpx.Client(
        follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=timeout, headers=AGENT, verify=_load_certificates()
    )


@cache
def _load_certificates() -> ssl.SSLContext:
    """Load the certificates of authorities, which takes longer than a download from nearby."""
    return httpx.create_ssl_context()


def _check_answer(response: httpx.Response, url: str, max_bytes: int) -> None:
    """Raise `ValueError` if the headers show that the response is not an image or is too large."""
    moved = "" if str(response.url) == url else f" (after a redirect to {public_url(str(response.url))})"
    if not response.is_success:
        raise ValueError(f"the server answered with HTTP status {_name_status(response.status_code)}{moved}")
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    kind, _, subtype = content_type.partition("/")
    if kind in REFUSED_KINDS or (kind == "application" and subtype.rpartition("+")[2] in REFUSED_TYPES):
        raise ValueError(f"the server sent {content_type}, which is not an image{moved}")
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise ValueError(f"the file has {int(length):,} bytes, but the limit is {max_bytes:,}{moved}")


def _read_content(response: httpx.Response, deadline: float | None, max_bytes: int) -> bytes:
    """Read the body of a response.

    Raises:
        ValueError: If the body is larger than `max_bytes`, regardless of the headers.
        TimeoutError: If the body is not complete by the deadline.
    """
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > max_bytes:
            raise ValueError(f"the file has more than {max_bytes:,} bytes, which is the limit")
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError
    return bytes(content)


def _name_status(code: int) -> str:
    try:
        return f"{code} ({HTTPStatus(code).phrase})"
    except ValueError:
        return str(code)


def public_url(url: str) -> str:
    """Remove the user name and password from a URL, for messages."""
    try:
        scheme, place, path, query, fragment = urlsplit(url)
        return urlunsplit((scheme, place.rpartition("@")[2], path, query, fragment))
    except ValueError:
        return url
