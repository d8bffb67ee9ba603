"""Two runs on one folder: the second is refused, a killed one is in nobody's way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transformers_lion import locking
from transformers_lion.locking import LOCK, LockError, locked


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
        "import os, sys, time, pathlib\nfrom transformers_lion.locking import locked\n"
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

    monkeypatch.setattr(locking, "lock_file", remove_once)
    with locked(tmp_path / LOCK, tmp_path):
        assert (tmp_path / LOCK).exists()
    assert len(seen) == 2
