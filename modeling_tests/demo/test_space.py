"""The folder of the Space starts the demo with the versions that the tests use."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from transformers_lion import demo

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "demo" / "space"


def test_the_space_shows_the_example_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    served: dict[str, Any] = {}
    monkeypatch.delenv("LION_MODEL", raising=False)
    monkeypatch.setattr(demo, "serve", lambda lion, settings: served.update(vars(settings), lion=lion))
    runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
    assert (served["host"], served["port"]) == ("0.0.0.0", 7860)
    assert served["lion"].tagger is not None
    assert served["examples"].images


def test_the_space_runs_on_the_gradio_that_is_tested() -> None:
    front = (SPACE / "README.md").read_text().split("---")[1]
    version = re.search(r"^sdk_version: (\S+)$", front, re.MULTILINE)
    assert version is not None
    assert f"gradio=={version[1]}\n" in (ROOT / ".ci" / "constraints-demo.txt").read_text()
    assert (SPACE / re.search(r"^app_file: (\S+)$", front, re.MULTILINE)[1]).is_file()  # type: ignore[index]
