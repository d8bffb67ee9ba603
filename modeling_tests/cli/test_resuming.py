"""`--resume`: what an earlier run left is kept, and what it cut is done again, with the same settings only."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import lion, refusal
from jobs.source_files import image_file, serve, stored, write_images, write_parquet
from transformers_lion.cli import questions
from transformers_lion.cli.results import open_results

ASK = ("ask", "pics", "-q", "a", "-q", "b", "-o", "out.jsonl", "--resume")
SETTINGS = "out.jsonl.settings.json"


@pytest.fixture
def pictures(workplace: Path) -> Path:
    return write_images(workplace / "pics", *(f"{number}.png" for number in range(5)))


def read(file: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def cut(num_lines: int, rest: bytes = b"") -> None:
    """Keep the first lines of the output, and the beginning of the next."""
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join(lines[:num_lines]) + rest)


@pytest.mark.parametrize(
    ("num_lines", "rest", "num_done"),
    [(0, b'{"im', 0), (4, b"", 2), (4, b'{"image": "pics/2', 2), (5, b"", 2), (10, b"", 5)],
)
def test_a_killed_run_ends_with_the_same_lines(
    num_lines: int, rest: bytes, num_done: int, pictures: Path, quick: list[Any]
) -> None:
    assert lion(*ASK).code == 0
    whole = Path("out.jsonl").read_bytes()
    cut(num_lines, rest)
    quick.clear()
    ran = lion(*ASK)
    assert (ran.code, ran.lines) == (0, [])
    assert Path("out.jsonl").read_bytes() == whole
    assert sum(map(len, quick)) == 2 * (5 - num_done)
    note = f"note: out.jsonl has the results of {num_done} of 5 images, which are skipped."
    assert ran.errors == [note]


def test_new_images_are_added_and_an_image_that_is_named_twice_has_its_lines_twice(
    pictures: Path, quick: list[Any]
) -> None:
    arguments = ("caption", "pics/0.png", "pics/0.png", "-o", "out.jsonl", "--resume")
    lion(*arguments)
    cut(1)
    lion(*arguments, "pics/1.png")
    assert [record["image"] for record in read()] == ["pics/0.png", "pics/0.png", "pics/1.png"]


def test_nothing_is_loaded_if_everything_is_done(
    pictures: Path, quick: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lion(*ASK)
    monkeypatch.setattr(questions, "load_lion", lambda *arguments: pytest.fail("it was loaded"))
    assert lion(*ASK).code == 0


def test_an_image_that_could_not_be_read_is_tried_again(pictures: Path, quick: list[Any]) -> None:
    Path("pics/3.png").write_bytes(b"broken")
    assert lion(*ASK).code == 1
    Path("pics/3.png").write_bytes(image_file(13))
    assert lion(*ASK).code == 0
    assert [record["image"] for record in read()[::2]] == [f"pics/{number}.png" for number in (0, 1, 2, 4, 3)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-q", "c"], "out.jsonl was written with questions 'a', 'b', but now it is 'a', 'b', 'c'."),
        (["--num-beams", "2"], "out.jsonl was written with num_beams unset, but now it is 2."),
        (["--tags", "dog"], "out.jsonl was written with tags unset, but now it is dog."),
        (["--dtype", "bfloat16"], "out.jsonl was written with dtype unset, but now it is bfloat16."),
    ],
)
def test_other_settings_are_refused_and_both_named(
    options: list[str], words: str, pictures: Path, quick: list[Any]
) -> None:
    lion(*ASK)
    before = Path("out.jsonl").read_bytes()
    assert refusal(*ASK, *options) == f"{words} Use the old value or another file."
    assert Path("out.jsonl").read_bytes() == before


def test_another_model_is_refused(pictures: Path, quick: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    from transformers_lion.example import example_checkpoint

    lion(*ASK)
    copy = tmp_path_factory.mktemp("model") / "copy"
    shutil.copytree(example_checkpoint(), copy)
    (copy / "new.json").write_text("{}")
    assert f"but now it is {copy} (sha256 " in refusal(*ASK, "--model", copy)


def test_tags_are_resumed_with_their_own_settings(pictures: Path) -> None:
    arguments = ("tag", "pics", "-o", "out.jsonl", "--resume")
    lion(*arguments)
    whole = Path("out.jsonl").read_bytes()
    cut(2)
    assert lion(*arguments).code == 0
    assert Path("out.jsonl").read_bytes() == whole
    assert "threshold unset, but now it is 0.5" in refusal(*arguments, "--threshold", 0.5)


def test_what_cannot_be_continued_is_refused(pictures: Path, quick: list[Any]) -> None:
    assert lion("caption", "pics", "--resume").code == 2
    lion(*ASK)
    settings = Path(SETTINGS).read_text()
    Path(SETTINGS).unlink()
    assert "its settings are not known: out.jsonl.settings.json is missing" in refusal(*ASK)
    Path(SETTINGS).write_text("{")
    assert "out.jsonl.settings.json is damaged" in refusal(*ASK)
    Path(SETTINGS).write_text(settings)
    Path("out.jsonl").write_text('{"image": "pics/0.png"}\nno result\n')
    assert "out.jsonl, line 2 is not a result" in refusal(*ASK)
    Path("out.jsonl").write_text('{"image": "a"}\n{"image": "b"}\n{"image": "b"}\n')
    assert refusal(*ASK) == "out.jsonl has 1 lines about 'a', but 2 questions are asked."
    Path("link.jsonl").symlink_to("out.jsonl")
    assert refusal("caption", "pics", "-o", "link.jsonl", "--resume") == "link.jsonl: File exists."
    with open_results(Path("out.jsonl"), True, resume=True):
        assert refusal(*ASK) == "out.jsonl: another run is writing it."


def test_settings_stand_beside_results_and_go_with_them(
    pictures: Path, quick: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lion("caption", "pics", "-o", "out.jsonl")
    assert json.loads(Path(SETTINGS).read_text())["questions"] == ["caption"]
    Path("out.jsonl").unlink()
    monkeypatch.setattr(questions.Answering, "run", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    assert lion("caption", "pics", "-o", "out.jsonl").code == 130
    assert not Path(SETTINGS).exists()


def test_keys_of_tables_are_resumed_and_drawings_keep_their_names(pictures: Path, quick: list[Any]) -> None:
    write_parquet(Path("a.parquet"), {"image": stored(10, 11, 12)})
    arguments = ("caption", "a.parquet", "-o", "out.jsonl", "--resume", "--draw", "drawn")
    lion(*arguments)
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["a-0.png", "a-1.png", "a-2.png"]
    cut(1)
    shutil.rmtree("drawn")
    assert lion(*arguments).code == 0
    assert [record["image"] for record in read()] == ["a.parquet#0", "a.parquet#1", "a.parquet#2"]
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["a-1.png", "a-2.png"]


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_downloads(workplace: Path) -> None:
    with serve({"/a.png": image_file(10)}, delay=25) as server:
        command = [sys.executable, "-m", "transformers_lion.cli", "caption", *[f"{server.url}/a.png"] * 20]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=_heed_ctrl_c)
        assert process.stderr
        while not server.requested:
            time.sleep(0.05)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert time.monotonic() - start < 12  # downloads end after 25
        assert process.stderr.read() == b"error: interrupted.\n"


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
