"""`lion eval` on the example checkpoint and scenes, run by a user, interrupted, and with two processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from scene_files import SIZE, write_scenes
from typer.testing import CliRunner

from examples.small_world.scenes import TAGS
from transformers_lion import cli, example_checkpoint
from transformers_lion.cli.evaluate import TASK_NAMES
from transformers_lion.evaluation.tasks import TASKS

KEPT = ("setup.json", "model.json", "predictions.jsonl", "worst.html", "worst.png")
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "files"
    write_scenes(folder)
    return folder


@pytest.fixture
def place(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the scenes' files, in which the command is run."""
    shutil.copytree(scenes, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(task: str, data: str, *more: str, output: str = "out") -> list[str]:
    return [task, "--data", f"{data}.jsonl", "--images", "images", "--output", output, *more]


def lion(task: str, data: str, *more: str, output: str = "out", exit_code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, ["eval", *arguments(task, data, *more, output=output)])
    assert result.exit_code == exit_code, (result.stdout, result.stderr, result.exception)
    return result


def read(name: str, output: str = "out") -> Any:
    text = Path(output, name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


def refusal(task: str, data: str, *more: str, output: str = "out") -> str:
    result = lion(task, data, *more, output=output, exit_code=1)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def launched(launcher: list[str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "transformers_lion.cli", "eval", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def same_files(first: str, second: str) -> bool:
    return all(Path(first, name).read_bytes() == Path(second, name).read_bytes() for name in KEPT)


# --- tasks --------------------------------------------------------------------------------------------------------


def test_boxes_are_found_and_stand_beside_the_papers_figure(place: Path) -> None:
    result = lion("REC", "rec", "--tag-source", "none", "--num-beams", "1", "--dataset", "refcoco-testA")
    assert re.search(r"^rec +here +paper, LION-4B +paper, LION-12B$", result.stdout, re.MULTILINE)
    assert re.search(r"^accuracy +\d+\.\d\d +92\.29 +93\.02$", result.stdout, re.MULTILINE)
    found = read("result.json")
    assert found["metrics"]["accuracy"] >= 75
    assert found["metrics"]["mean_iou"] >= 60
    assert (found["model"]["generation"]["num_beams"], found["dataset"]) == (1, "RefCOCO testA")
    first = read("predictions.jsonl")[0]
    assert first["prompt"].startswith("How can I locate the ")
    assert first["tags"] is None
    assert {path.name for path in Path("out").iterdir()} == {*KEPT, "result.json"}


def test_boxes_in_another_form_are_told_so_on_the_line(place: Path) -> None:
    records = [json.loads(line) for line in Path("rec.jsonl").read_text().splitlines()][:3]
    for record in records:
        record["bbox"] = [value * 1000 / SIZE for value in record["bbox"]]
    Path("thousandths.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    options = ["--tag-source", "none", "--num-beams", "1"]
    lion("rec", "thousandths", *options, "--box-unit", "thousandths")
    lion("rec", "rec", *options, "--limit", "3", output="pixels")
    assert read("result.json")["metrics"] == pytest.approx(read("result.json", "pixels")["metrics"], abs=0.1)
    assert "extends beyond its image" in refusal("rec", "thousandths", *options, "--box-unit", "pixels", output="wrong")


def test_short_answers_are_scored(place: Path) -> None:
    lion("exact_match", "exact", "--tag-source", "none", "--num-beams", "1")
    assert read("result.json")["metrics"]["accuracy"] >= 70


def test_yes_and_no_are_scored(place: Path) -> None:
    lion("pope", "pope", "--tag-source", "none", "--num-beams", "1")
    assert read("result.json")["metrics"]["accuracy"] >= 85


def test_choices_are_ranked_and_their_prompts_have_the_datas_tags(place: Path) -> None:
    lion("Multiple-Choice", "choice", "--tag-source", "data", "--check-batching", "3")
    result, first = read("result.json"), read("predictions.jsonl")[0]
    assert len(first["scores"]) >= 3
    assert f"following tags: [{', '.join(first['tags'])}]. Question: What is the background like?" in first["prompt"]
    assert result["check"] == {"examples": 3, "differ": 0, "differences": []}


def test_tags_are_those_of_the_tagger_that_is_named(place: Path) -> None:
    lion("multiple-choice", "choice", "--tagger", f"{example_checkpoint()}/tagger", "--limit", "2")
    tags = read("predictions.jsonl")[0]["tags"]
    assert tags
    assert set(tags) <= set(TAGS)
    assert read("result.json")["model"]["tagger"] is True
    lion("pope", "pope", "--tagger", f"{example_checkpoint()}/tagger", "--limit", "2", output="pope")
    assert read("predictions.jsonl", "pope")[0]["tags"] == tags


def test_batched_answers_are_those_one_by_one(place: Path) -> None:
    result = lion("rec", "rec", "--tag-source", "none", "--check-batching", "5", "--limit", "5")
    assert "0 of 5 answers differ when computed in a batch (float32)." in result.stdout


def test_a_file_of_predictions_is_scored_without_a_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lion("rec", "rec", "--tag-source", "none", "--num-beams", "1")
    metrics = read("result.json")["metrics"]
    monkeypatch.setattr(sys.modules["transformers_lion.cli.evaluate"], "load_lion", None)
    lion("rec", "rec", "--predictions", "out/predictions.jsonl", output="again")
    assert read("result.json", "again")["metrics"] == metrics
    rows = read("predictions.jsonl")
    Path("perfect.jsonl").write_text("".join(json.dumps({**row, "answer": "no box"}) + "\n" for row in rows))
    lion("rec", "rec", "--predictions", "perfect.jsonl", output="none")
    assert read("result.json", "none")["metrics"]["without_box"] == 100
    assert read("result.json", "none")["model"] is None


# --- killed, damaged, shared out ----------------------------------------------------------------------------------


def test_a_killed_command_started_again_ends_as_any_other(place: Path) -> None:
    options = ["--tag-source", "none", "--num-beams", "1", "--batch-size", "1", "--model", example_checkpoint()]
    lion("pope", "pope", *options, output="whole")
    command = [sys.executable, "-m", "transformers_lion.cli", "eval", *arguments("pope", "pope", *options)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    file, deadline = Path("out/predictions.jsonl"), time.monotonic() + 120
    while not (file.exists() and file.stat().st_size):
        assert process.poll() is None, "the command ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not Path("out/result.json").exists()
    with file.open("ab") as stream:
        stream.write(b'{"id": "21", "answer": "y')
    lion("pope", "pope", *options)
    assert same_files("whole", "out")
    assert read("result.json")["metrics"] == read("result.json", "whole")["metrics"]


def test_a_damaged_image_is_reported_and_the_rest_is_done(place: Path) -> None:
    Path("images/scene1.png").write_bytes(b"no image")
    result = lion("pope", "pope", "--tag-source", "none", "--num-beams", "1", exit_code=1)
    assert "18 examples, of which 3 have no answer and count as wrong." in result.stdout
    assert result.stderr == ""
    assert [error["id"] for error in read("errors.jsonl")] == ["10", "11", "12"]
    assert "is not an image in a known format" in read("errors.jsonl")[0]["error"]
    assert read("result.json")["counts"]["missing"] == 3
    again = lion("pope", "pope", "--predictions", "out/predictions.jsonl", output="again", exit_code=1)
    assert "3 have no answer" in again.stdout


@pytest.mark.parametrize(
    "launcher",
    [pytest.param(TORCHRUN, id="torchrun"), pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.long)],
)
def test_two_processes_answer_as_one_and_go_on_where_one_was(launcher: list[str], place: Path) -> None:
    options = ["--tag-source", "none", "--num-beams", "1", "--batch-size", "3", "--device", "cpu"]
    lion("rec", "rec", *options, output="alone")
    if launcher is ACCELERATE:
        lion("rec", "rec", *options, "--limit", "4")
    process = launched(launcher, *arguments("rec", "rec", *options))
    assert process.returncode == 0, process.stderr[-3000:]
    assert same_files("alone", "out")
    assert {path.name for path in Path("out").iterdir()} == {*KEPT, "result.json"}
    assert process.stdout.count("accuracy") == 1
    done = read("result.json")["counts"]["answered_in_this_run"]
    assert done == (read("result.json")["counts"]["examples"] if launcher is TORCHRUN else done)


def test_an_error_on_two_processes_is_said_once(place: Path) -> None:
    process = launched(TORCHRUN, *arguments("rec", "lost"))
    assert process.returncode != 0
    assert process.stderr.count("error: lost.jsonl: No such file or directory.") == 1


# --- the command --------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[str], str]] = {
    "a task": (arguments("ride", "rec"), "There is no task 'ride'; the tasks are rec, captioning, vqa"),
    "data": (arguments("rec", "lost"), "lost.jsonl: No such file or directory"),
    "images": (arguments("rec", "rec", "--images", "lost"), "lost: No such file or directory"),
    "a data set": (arguments("rec", "rec", "--dataset", "x"), "The paper has no rec results for 'x', only for:"),
    "a model": (arguments("rec", "rec", "--model", "./lost"), "lost"),
    "a device": (arguments("rec", "rec", "--device", "gpu9"), "--device gpu9: "),
    "a tagger": (arguments("rec", "rec", "--tagger", "lost/it"), "lost/it is neither a folder nor a readable"),
    "a tagger for nothing": (
        arguments("rec", "rec", "--tag-source", "none", "--tagger", "x"),
        "tagger x would not be used",
    ),
    "both": (arguments("rec", "rec", "--predictions", "a", "--model", "b"), "without a model: omit --model"),
    "an option of another task": (
        arguments("pope", "pope", "--box-unit", "pixels"),
        "pope has no data option box_unit",
    ),
    "a form of boxes": (arguments("rec", "rec", "--box-format", "x"), "box_format"),
    "predictions": (arguments("rec", "rec", "--predictions", "lost"), "lost cannot be read"),
    "foreign predictions": (arguments("rec", "rec", "--predictions", "pope.jsonl"), "pope.jsonl, line 1: expected"),
    "another task's data": (arguments("pope", "rec"), "rec.jsonl, record 1: expected"),
}


@pytest.mark.parametrize(("command", "words"), BAD.values(), ids=BAD.keys())
def test_a_mistake_is_one_line_that_names_it(command: list[str], words: str, place: Path) -> None:
    result = CliRunner().invoke(cli.app, ["eval", *command])
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert words in line


def test_a_changed_setup_names_both(place: Path) -> None:
    lion("multiple-choice", "choice", "--tag-source", "none")
    words = (
        "The predictions in out were made with tag_source none, but now it is data. Use the old value or another output"
    )
    assert words in refusal("multiple-choice", "choice", "--tag-source", "data")


def test_help_has_all_tasks_and_an_example() -> None:
    assert set(TASK_NAMES) == set(TASKS)
    result = CliRunner().invoke(cli.app, ["eval", "--help"], env={"COLUMNS": "200"})
    assert all(name in result.stdout for name in TASKS)
    assert "Example: lion eval REC --model" in result.stdout
