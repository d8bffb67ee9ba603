"""Files that hold whole lines when the disk is full or the run ends in the middle."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from transformers_lion.file_writing import LineFile, naming, write_text

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
