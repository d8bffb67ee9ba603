"""No incomplete output: the state of a target before, during and after a run, even if the run fails."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from targets import TargetError, replacing

ROOT = Path(__file__).parents[2]


def write(target: Path, content: str = "new", overwrite: bool = False, during: Callable[[], Any] | None = None) -> None:
    """A run that writes a model's folder; `during` happens before it ends."""
    with replacing(target, overwrite) as folder:
        folder.mkdir()
        (folder / "config.json").write_text(content)
        if during:
            during()


def fail(error: type[BaseException]) -> None:
    raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    write(tmp_path / "out", "old")
    return tmp_path / "out"


def test_a_new_folder_replaces_the_old_one_when_it_is_complete(target: Path) -> None:
    seen = []
    write(target, overwrite=True, during=lambda: seen.append((target / "config.json").read_text()))
    assert seen == ["old"]
    assert (target / "config.json").read_text() == "new"
    assert names(target.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failure_leaves_only_the_old_folder(error: type[BaseException], target: Path) -> None:
    with pytest.raises(error):
        write(target, overwrite=True, during=lambda: fail(error))
    assert (target / "config.json").read_text() == "old"
    assert names(target.parent) == ["out"]


def test_a_failed_rename_restores_the_old_folder(target: Path) -> None:
    with pytest.raises(OSError, match="unfinished"), replacing(target, overwrite=True):
        pass  # nothing was written that could replace it
    assert (target / "config.json").read_text() == "old"
    assert names(target.parent) == ["out"]


def test_a_second_run_is_refused_and_does_not_disturb_the_first(target: Path) -> None:
    program = "import sys, pathlib, targets\nwith targets.replacing(pathlib.Path(sys.argv[1]), True): pass"
    command = [sys.executable, "-c", program, str(target)]
    seen = []

    def second() -> None:
        seen.append(subprocess.run(command, cwd=ROOT / "conversion", capture_output=True, text=True).stderr)

    write(target, overwrite=True, during=second)
    assert "another run is writing it" in seen[0]
    assert (target / "config.json").read_text() == "new"
    assert names(target.parent) == ["out"]


def test_a_target_that_appears_during_a_run_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(TargetError, match="already exists"):
        write(target, during=target.mkdir)
    assert names(target) == []


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished" / "half").touch()
    (tmp_path / ".out.lock").touch()
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json"]


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    write(tmp_path / "link")
    write(tmp_path / "link", "newer", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "out" / "config.json").read_text() == "newer"
    assert names(tmp_path / "disk") == ["out"]


def test_a_folder_without_a_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine").touch()
    with pytest.raises(TargetError, match=r"photos: not a model folder"):
        write(tmp_path / "photos", overwrite=True)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", overwrite=True)
    assert names(tmp_path / "photos") == ["mine"]


@pytest.mark.parametrize("kind", ["file", "pipe", "link"])
def test_only_folders_are_replaced(kind: str, tmp_path: Path) -> None:
    make = {"file": Path.touch, "pipe": os.mkfifo, "link": lambda path: path.symlink_to(path)}
    make[kind](tmp_path / "out")
    before = (tmp_path / "out").lstat()
    with pytest.raises(TargetError, match="out: is a"):
        write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").lstat() == before
    assert names(tmp_path) == ["out"]


def test_the_root_and_the_folder_that_one_is_in_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for output in ("/", ".", ""):
        with pytest.raises(TargetError, match="already exists"):
            write(Path(output))


def test_a_read_only_target_is_refused(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != target)  # root may write everywhere
    with pytest.raises(TargetError, match="read-only"):
        write(target, overwrite=True)
    assert names(target.parent) == ["out"]


def test_a_full_disk_is_reported_with_the_name_of_the_target(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"out: cannot be written \(No space left on device\)"):
        write(tmp_path / "deep" / "out", during=lambda: Path("/dev/full").write_text("x"))
    assert not names(tmp_path)
