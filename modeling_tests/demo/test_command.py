"""The command: its message without Gradio, and the options that it passes on."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import lion, refusal
from transformers_lion.cli import checkpoints
from transformers_lion.demo import server


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments for starting the server, with a fake Gradio."""
    calls: list[dict[str, Any]] = []
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "gradio" else find(name))
    monkeypatch.setattr(server, "serve", lambda lion, settings: calls.append({"lion": lion, **vars(settings)}))
    return calls


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    ran = lion("demo")
    assert ran.code == 2
    assert ran.errors == [
        "error: lion demo needs gradio, which the extra 'demo' installs: pip install \"transformers-lion[demo]\"."
    ]


def test_by_default_the_page_is_local_and_uses_the_example(served: list[dict[str, Any]]) -> None:
    assert lion("demo").code == 0
    (options,) = served
    assert (options["host"], options["port"], options["share"]) == ("127.0.0.1", None, False)
    assert options["lion"].tagger is not None
    assert len(options["examples"].images) == 4


def test_options_reach_the_server(served: list[dict[str, Any]], lion_folder: Path, image: Path) -> None:
    ran = lion("demo", "--model", lion_folder, "--host", "0.0.0.0", "--port", 81, "--share", "--examples", image.parent)
    assert ran.code == 0
    assert "no tagger" in ran.errors[0]
    (options,) = served
    assert (options["host"], options["port"], options["share"]) == ("0.0.0.0", 81, True)
    assert [name for _, name in options["examples"].images] == ["photo"]
    assert str(lion_folder.parent) not in options["name"]


def test_a_folder_without_images_is_refused(served: list[dict[str, Any]], tmp_path: Path) -> None:
    assert refusal("demo", "--examples", tmp_path).startswith(f"{tmp_path}: no images (")


def test_an_invalid_model_is_refused(served: list[dict[str, Any]], tmp_path: Path) -> None:
    assert str(tmp_path) in refusal("demo", "--model", tmp_path)
    assert checkpoints.load_lion  # the command uses the same loader as the others
