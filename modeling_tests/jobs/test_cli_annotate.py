"""`lion annotate`: its options become a task and settings, and its errors are one line."""

from pathlib import Path
from typing import Any

import pytest

from cli.command_line import lion, refusal
from transformers_lion.example import example_image
from transformers_lion.jobs import AnnotationTask, JobSettings, job
from transformers_lion.jobs.output import Done


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[JobSettings]:
    """The settings of the jobs that the command has started; nothing runs."""
    found: list[JobSettings] = []

    def annotate(settings: JobSettings, **options: Any) -> Done:
        found.append(settings)
        return Done(0, 0, [], "parquet")

    monkeypatch.setattr(job, "annotate", annotate)
    return found


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    example_image().save("pictures/scene.png")
    return tmp_path / "pictures"


def test_options_make_a_task(pictures: Path, started: list[JobSettings]) -> None:
    options = ["--caption", "--tags", "--ask", "Is it {color}?", "--ask", "Why?", "--locate", "a cup", "--scores"]
    ran = lion("annotate", pictures, "--output", "out", *options, "--num-beams", 2, "--tag-source", "tagger")
    assert ran.code == 0
    (settings,) = started
    assert settings.task == AnnotationTask(
        caption=True, tags=True, ask=["Is it {color}?", "Why?"], locate=["a cup"], scores=True, tag_source="tagger",
        generation={"num_beams": 2},
    )  # fmt: skip
    assert settings.source == [str(pictures)]


def test_options_replace_fields_of_a_file(pictures: Path, started: list[JobSettings]) -> None:
    Path("task.yaml").write_text("caption: true\nask: ['Is it red?']\ngeneration: {num_beams: 5, top_k: 3}\n")
    lion("annotate", pictures, "-o", "out", "--task", "task.yaml", "--ask", "Is it blue?", "--num-beams", 1)
    assert started[0].task == AnnotationTask(caption=True, ask=["Is it blue?"], generation={"num_beams": 1, "top_k": 3})


def test_other_options_are_settings_of_the_same_name(pictures: Path, started: list[JobSettings]) -> None:
    options = ["--num-actors", 3, "--batch-size", 4, "--num-gpus-per-actor", 0.5, "--address", "auto", "--limit", 7]
    lion("annotate", pictures, "-o", "out", "--caption", *options, "--format", "jsonl", "--dtype", "bfloat16")
    (settings,) = started
    assert (settings.num_actors, settings.batch_size, settings.num_gpus_per_actor) == (3, 4, 0.5)
    assert (settings.address, settings.limit, settings.format, settings.dtype) == ("auto", 7, "jsonl", "bfloat16")


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "options: The task asks for nothing."),
    (["--ask", "Is it {1}?"], "options: 'Is it {1}?': a template holds only names of columns"),
    (["--task", "none.yaml"], "none.yaml: No such file or directory."),
    (["--caption", "--model", "pictures"], "pictures: this folder has no config.json"),
])  # fmt: skip
def test_an_error_is_one_line(pictures: Path, arguments: list[str], message: str) -> None:
    assert message in refusal("annotate", pictures, "--output", "out", *arguments)


def test_a_source_that_is_not_there_is_named(pictures: Path) -> None:
    ran = lion("annotate", "nowhere", "--output", "out", "--caption")
    assert ran.code == 1
    assert ran.errors[-1] == "error: nowhere: No such file or directory."


def test_what_is_finished_is_kept_after_an_error_of_the_model(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: JobSettings, **options: Any) -> Done:
        raise RuntimeError("The model failed.")

    monkeypatch.setattr(job, "annotate", fail)
    ran = lion("annotate", pictures, "--output", "out", "--caption")
    assert ran.code == 1
    assert ran.errors == [
        "error: The model failed.",
        "error: what is finished is kept in out; run the command again to continue.",
    ]
