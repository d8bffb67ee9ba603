"""The server: local unless asked, nothing from the network, and no files but those of the page and its users."""

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
"""Bytes on the disk of all that was sent and is shown; the oldest files make room for new ones. It is more than those
who wait can have sent."""
SESSIONS = 200
"""Users whose images are kept at a time; those of others are forgotten, the oldest first."""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Ubuntu", "sans-serif"]
MONOSPACE = ["ui-monospace", "Consolas", "Liberation Mono", "monospace"]
EXAMPLE = "The model here is the package's small example, which knows coloured shapes and nothing else."
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class ServerSettings:
    """Where the page is shown, and what stands on it.

    Attributes:
        host: address to listen on; "0.0.0.0" for all of this machine.
        port: by default the first that is free from 7860 on.
        share: also at a public address, through Gradio's servers.
        name: a sentence about the model, for the page.
        examples: by default those of the small world.
        max_file_size: of an image that is sent, "20mb" or bytes.
        root_path: of the page, where a proxy puts it below one.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    name: str = ""
    examples: Examples | None = None
    max_file_size: str | int = MAX_FILE_SIZE
    root_path: str | None = None


def serve(lion: Lion, settings: ServerSettings | None = None) -> None:
    """Show the page until Ctrl-C.

    Args:
        lion: the model.
        settings: of the server; see `ServerSettings`.

    Raises:
        OSError: if the port is taken.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder is deleted
    with tempfile.TemporaryDirectory(prefix="lion-demo-", ignore_cleanup_errors=True) as folder:
        page = start(lion, Path(folder), settings)
        print(f"LION is at {' and at '.join(filter(None, (page.local_url, page.share_url)))}", flush=True)
        page.block_thread()


def start(lion: Lion, folder: Path, settings: ServerSettings | None = None) -> "gr.Blocks":
    """Start the server in threads of its own.

    Args:
        lion: the model.
        folder: for what users send; nothing else of the disk is shown to them.
        settings: of the server.

    Returns:
        The page; `close()` ends the server.
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
    """Lets a file be sent only if the folder has room for it; the oldest files there are deleted for that.

    Args:
        app: the server behind it, in ASGI's form.
        folder: where it puts what is sent.
        limit: bytes that may lie there.
    """

    def __init__(self, app: Any, folder: Path, limit: int):
        self.app = app
        self.folder = folder
        self.limit = limit

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass a request on, or answer that it is too large."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload"):
            length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
            if not length.isdigit():
                return await refuse(send, HTTPStatus.LENGTH_REQUIRED)
            if not make_room(self.folder, int(length), self.limit):
                return await refuse(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return await self.app(scope, receive, send)


async def refuse(send: Any, status: HTTPStatus) -> None:
    """Answer a request with a status alone."""
    await send({"type": "http.response.start", "status": status.value, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": status.phrase.encode()})


def refuse_downloads() -> None:
    """Have Gradio fetch nothing for users: a request may name an address in the place of an upload, of any size."""
    from gradio import processing_utils

    async def refuse(url: str, *args: Any, **kwargs: Any) -> str:
        raise ValueError(f"Images have to be sent; {url[:200]!r} is not fetched.")

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
"""What Gradio could open beyond the page: nothing of it."""


def sentence_about(model: str | None) -> str:
    """What the page says of a model; no path of this machine.

    Args:
        model: folder or repository; `None` for the example checkpoint.
    """
    return EXAMPLE if model is None else f"The model here is `{Path(model).name}`."


def examples_of(model: str | None, folder: Path | None) -> Examples:
    """The examples that fit a model.

    Args:
        model: folder or repository; `None` for the example checkpoint.
        folder: with images, if there is one.
    """
    if folder is not None:
        return from_folder(folder)
    return small_world() if model is None else no_images()
