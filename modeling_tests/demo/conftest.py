"""The example checkpoint for the page, and its server on a free port."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from transformers_lion import Lion
from transformers_lion.example import sketch


@pytest.fixture(scope="session")
def lion() -> Lion:
    return Lion.from_pretrained()


@pytest.fixture(scope="session")
def sketch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "sketch.png"
    sketch().save(path)
    return path


@pytest.fixture(scope="session")
def no_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("no image") / "photo.png"
    path.write_text("This is text.")
    return path


@pytest.fixture(scope="session")
def address(lion: Lion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running demo."""
    pytest.importorskip("gradio", reason="the extra [demo] is not installed")
    from transformers_lion.demo.server import ServerSettings, start

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = start(lion, tmp_path_factory.mktemp("sent"), ServerSettings(port=port, max_file_size=3_000_000))
    yield page.local_url
    page.close(verbose=False)
