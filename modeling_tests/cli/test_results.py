"""What is left of results when the disk is full or a signal ends the command."""

import errno
import io
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transformers_lion.cli.common import Terminated
from transformers_lion.cli.results import open_results

from .command_line import lion

SIGNALS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_whole_lines(tmp_path: Path, number: int, request: pytest.FixtureRequest) -> None:
    before = signal.SIG_DFL  # under nohup, SIGHUP is ignored, and the command leaves it so
    request.addfinalizer(partial(signal.signal, number, signal.signal(number, before)))
    path = tmp_path / "out.jsonl"

    def write() -> None:
        with open_results(path, as_json=True) as results:
            results.write(["a"], {"image": "a"})
            results.flush()
            results.write(["b"], {"image": "b"})
            results.stream.write('{"image": "c')
            os.kill(os.getpid(), number)

    with pytest.raises(Terminated):
        write()
    assert path.read_text() == '{"image": "a"}\n{"image": "b"}\n'
    assert signal.getsignal(number) == before


def test_a_command_that_is_terminated_before_its_first_result_leaves_no_file(
    workplace: Path, quick: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_lion.cli import questions

    def load(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(questions, "load_lion", load)
    ran = lion("caption", "scene.png", "--output", "out.jsonl")
    assert (ran.code, ran.errors) == (128 + signal.SIGTERM, ["error: terminated."])
    assert not Path("out.jsonl").exists()


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with open_results(tmp_path / "out.jsonl", as_json=True):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error_that_names_the_file(workplace: Path, quick: list[Any]) -> None:
    ran = lion("caption", "scene.png", "sketch.jpg", "--output", "/dev/full")
    assert (ran.code, ran.errors) == (1, ["error: /dev/full: No space left on device."])


def test_a_full_disk_behind_stdout_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("transformers_lion.cli.results.drop_stdout", lambda: None)
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space left on device: 'stdout'"), open_results(None, True):
        pass


def test_a_drawing_that_cannot_be_written_is_named(
    workplace: Path, quick: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", fail)
    ran = lion("caption", "scene.png", "--draw", "drawn.png", "--output", "out.jsonl")
    assert (ran.code, ran.errors) == (1, ["error: drawn.png: No space left on device."])
    assert Path("out.jsonl").read_text().count("\n") == 1  # the answer itself is kept


def test_a_place_where_nothing_can_be_written_is_known_before_the_model_is_loaded(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_lion.cli import questions

    monkeypatch.setattr(questions, "load_lion", None)
    for output, reason in (("lost/out.jsonl", "No such file or directory"), (".", "File exists")):
        assert lion("caption", "scene.png", "--output", output).errors == [f"error: {output}: {reason}."]


def test_a_file_that_a_killed_run_left_empty_is_taken_and_one_in_use_is_not(workplace: Path, quick: list[Any]) -> None:
    Path("out.jsonl").touch()
    with open_results(Path("out.jsonl"), as_json=True):
        ran = lion("caption", "scene.png", "--output", "out.jsonl")
        assert (ran.code, ran.errors) == (1, ["error: out.jsonl: another run is writing it."])
    Path("out.jsonl").touch()
    assert lion("caption", "scene.png", "--output", "out.jsonl").code == 0
    assert Path("out.jsonl").read_text().count("\n") == 1


def test_a_link_to_an_empty_file_is_neither_written_nor_removed(workplace: Path, quick: list[Any]) -> None:
    Path("empty.jsonl").touch()
    Path("link.jsonl").symlink_to("empty.jsonl")
    assert lion("caption", "scene.png", "--output", "link.jsonl").errors == ["error: link.jsonl: File exists."]
    assert (Path("link.jsonl").is_symlink(), Path("empty.jsonl").read_text()) == (True, "")
