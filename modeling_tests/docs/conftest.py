"""A folder as the pages describe it."""

from pathlib import Path

import pytest

from docs.pages import make_workplace


@pytest.fixture
def workplace(tmp_path: Path, lion_folder: Path, lion_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; see `make_workplace`."""
    monkeypatch.chdir(tmp_path)
    return make_workplace(tmp_path, lion_folder, lion_files)
