"""The demo server: local by default, fetches nothing from the network, and serves only the page and uploaded files."""

import os
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inference import Lion
from .examples import Examples, from_folder, no_images, small_world
from .uploads import make_room

if TYPE_CHECKING:
    import gradio as gr

MAX_FILE_SIZE = "20mb"
MAX_FOLDER_SIZE = 1_000_000_000
"""Maximum size in bytes of all uploaded and displayed files; the oldest files are deleted to make room. It exceeds what
waiting users can have uploaded."""
SESSIONS = 200
"""Number of users whose images are kept; the oldest are dropped first."""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Ubuntu", "sans-serif"]
MONOSPACE = ["ui-monospace", "Consolas", "Liberation Mono", "monospace"]
EXAMPLE = "This is the package's small example model, which knows only colored shapes."
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the server and the page.

    Attributes:
        host: address to listen on; "0.0.0.0" for all interfaces.
        port: port to listen on; the first free port from 7860 by default.
        share: whether to also share the page at a public address, through Gradio's servers.
        name: a sentence about the model, shown on the page.
        examples: example images; those of the small world by default.
        max_file_size: maximum size of an uploaded image, such as "20mb", or in bytes.
        root_path: path of the page behind a proxy.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    name: str = ""
    examples: Examples | None = None
    max_file_size: str | int = MAX_FILE_SIZE
    root_path: str | None = None


def serve(lion: Lion, settings: ServerSettings | None = None) -> None:
    """Serve the page until Ctrl-C.

    Args:
        lion: the model.
        settings: settings of the server.

    Raises:
        OSError: if the port is in use.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder is deleted
    with tempfile.TemporaryDirectory(prefix="lion-demo-", ignore_cleanup_errors=True) as folder:
        page = start(lion, Path(folder), settings)
        print(f"LION is at {' and at '.join(filter(None, (page.local_url, page.share_url)))}", flush=True)
        page.block_thread()


def start(lion: Lion, folder: Path, settings: ServerSettings | None = None) -> "gr.Blocks":
    """Start the server in background threads.

    Args:
        lion: the model.
        folder: folder for uploads; users cannot access any other files.
        settings: settings of the server.

    Returns:
        The page; its `close()` stops the server.
    """
    settings = settings or ServerSettings()
    os.environ.update(OFFLINE)  # Gradio reads these when it is imported ...
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # ... and this when the page is made
    import gradio as gr
    from starlette.middleware import Middleware

    from .page import CSS, build_page

    refuse_downloads()
    page = build_page(lion, settings.examples or small_world(), settings.name)
    page.launch(
        server_name=settings.host,
        server_port=settings.port,
        share=settings.share,
        root_path=settings.root_path,
        max_file_size=settings.max_file_size,
        state_session_capacity=SESSIONS,
        theme=gr.themes.Default(primary_hue="amber", font=FONTS, font_mono=MONOSPACE),
        css=CSS,
        footer_links=[],
        prevent_thread_lock=True,
        quiet=True,
        app_kwargs={"middleware": [Middleware(UploadLimit, folder=folder, limit=MAX_FOLDER_SIZE)]},
        **CLOSED,
    )
    return page


class UploadLimit:
    """ASGI middleware that limits the total size of uploads, and deletes the oldest files to make room.

    Args:
        app: the wrapped ASGI application.
        folder: folder of the uploads.
        limit: maximum total size in bytes.
    """

    def __init__(self, app: Any, folder: Path, limit: int):
        self.app = app
        self.folder = folder
        self.limit = limit

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Forward a request, or reject it if it is too large."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload"):
            length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
            if not length.isdigit():
                return await refuse(send, HTTPStatus.LENGTH_REQUIRED)
            if not make_room(self.folder, int(length), self.limit):
                return await refuse(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return await self.app(scope, receive, send)


async def refuse(send: Any, status: HTTPStatus) -> None:
    """Reject a request with a status code."""
    await send({"type": "http.response.start", "status": status.value, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": status.phrase.encode()})


def refuse_downloads() -> None:
    """Prevent Gradio from downloading files: requests may have the URL of a file of any size instead."""
    from gradio import processing_utils

    async def refuse(url: str, *args: Any, **kwargs: Any) -> str:
        raise ValueError(f"Images must be uploaded; {url[:200]!r} is not downloaded.")

    processing_utils.async_ssrf_protected_download = refuse


CLOSED: dict[str, Any] = {
    "allowed_paths": [],
    "blocked_paths": [],
    "show_error": False,
    "enable_monitoring": False,
    "mcp_server": False,
    "pwa": False,
    "run_history": False,
    "ssr_mode": False,
    "strict_cors": True,
}
"""Disables all features of Gradio that would expose more than the page."""


def sentence_about(model: str | None) -> str:
    """Return the page's sentence about a model, without local paths.

    Args:
        model: folder or repository; `None` for the example checkpoint.
    """
    return EXAMPLE if model is None else f"The model is `{Path(model).name}`."


def examples_of(model: str | None, folder: Path | None) -> Examples:
    """Return the examples for a model.

    Args:
        model: folder or repository; `None` for the example checkpoint.
        folder: folder with example images, if any.
    """
    if folder is not None:
        return from_folder(folder)
    return small_world() if model is None else no_images()
