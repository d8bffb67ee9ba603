"""Files hold whole lines when the disk is full or a run ends early, and a second run on a folder is refused."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transformers_lion import file_utils
from transformers_lion.file_utils import LOCK, LineFile, LockError, locked, naming, write_text

REAL_WRITE = os.write


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A disk with room for so many bytes, as long as the list has a number; it takes the part that fits."""
    room: list[int] = []

    def write(descriptor: int, content: bytes) -> int:
        if room and len(content) > room[0]:
            if room[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            content = content[: room[0]]
        if room:
            room[0] -= len(content)
        return REAL_WRITE(descriptor, content)

    monkeypatch.setattr(os, "write", write)
    return room


def test_lines_that_do_not_fit_are_left_out_as_a_whole(tmp_path: Path, full_disk: list[int]) -> None:
    file = LineFile(tmp_path / "a.jsonl")
    file.write("one\ntwo\n")
    full_disk.append(6)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.jsonl'"):
        file.write("three\nfour\n")
    assert (tmp_path / "a.jsonl").read_text() == "one\ntwo\n"
    full_disk.clear()
    file.write("three\n")
    file.close()
    assert (tmp_path / "a.jsonl").read_text() == "one\ntwo\nthree\n"


def test_a_file_that_nothing_could_be_written_to_is_not_left_behind(tmp_path: Path, full_disk: list[int]) -> None:
    file = LineFile(tmp_path / "a.jsonl", keep_empty=False)
    full_disk.append(2)
    with pytest.raises(OSError, match="No space left"):
        file.write("one\n")
    file.close()
    assert not list(tmp_path.iterdir())


def test_a_text_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.json", "old")

    def write(self: Path, text: str, **options: Any) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write_text(tmp_path / "a.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "old")]


def test_an_error_that_names_a_file_keeps_its_name() -> None:
    with pytest.raises(FileNotFoundError, match="'other'"), naming("file"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "other")


def test_a_second_run_is_refused_with_the_folder_and_the_process_of_the_first(tmp_path: Path) -> None:
    expected = f"{tmp_path}: another run is writing it .process {os.getpid()}."
    with locked(tmp_path / LOCK, tmp_path):
        for _ in range(2):  # a refusal leaves the lock as it is
            with pytest.raises(LockError, match=expected), locked(tmp_path / LOCK, tmp_path):
                pass
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / LOCK, tmp_path):
        pass


def test_a_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / LOCK, tmp_path):
        raise KeyError
    with locked(tmp_path / LOCK, tmp_path):
        pass


def test_a_lock_file_of_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("1\n")
    with locked(tmp_path / LOCK, tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_worker_that_outlives_its_killed_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    program = (
        "import os, sys, time, pathlib\nfrom transformers_lion.file_utils import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), pathlib.Path('x')):\n"
        "    if os.fork():\n        os.kill(os.getpid(), 9)\n"
        "    print('worker', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "worker\n"
        assert process.wait() == -9
        with locked(tmp_path / LOCK, tmp_path):  # its worker still reads stdin
            pass


def test_a_run_that_waits_behind_one_that_just_ended_gets_a_lock_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def remove_once(file: object, target: Path) -> None:
        seen.append(file)
        if len(seen) == 1:
            (tmp_path / LOCK).unlink()  # as the other run does when it ends

    monkeypatch.setattr(file_utils, "lock_file", remove_once)
    with locked(tmp_path / LOCK, tmp_path):
        assert (tmp_path / LOCK).exists()
    assert len(seen) == 2
