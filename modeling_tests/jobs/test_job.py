"""A job ends with each row once, whatever happens to it on the way, and refuses what would mix results."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from jobs.workers import DyingAnnotator, FailingAnnotator, KeyAnnotator, write_rows
from transformers_lion import Lion
from transformers_lion.example import example_image, sketch
from transformers_lion.file_utils import LOCK, locked
from transformers_lion.jobs import RESULT_SCHEMA, AnnotationTask, JobSettings, LionAnnotator, annotate, read_results
from transformers_lion.jobs.job import begin, check_model, describe_job
from transformers_lion.jobs.output import KEYS, RUN, Output

pytestmark = pytest.mark.usefixtures("local_ray")

CAPTION = AnnotationTask(caption=True, generation={"max_new_tokens": 8})


@pytest.fixture
def settings(tmp_path: Path) -> JobSettings:
    """A job with 100 rows in four chunks."""
    source = write_rows(tmp_path / "rows.jsonl", 100, broken={3: True}, fails={70: True})
    return JobSettings(str(source), tmp_path / "out", CAPTION, key_column="image")


def quiet(settings: JobSettings, **options: Any) -> Any:
    return annotate(settings, say=lambda text: None, **options)


def begin_job(settings: JobSettings) -> None:
    """Write the settings of a job, as its first run does."""
    Path(settings.output).mkdir()
    begin(Output(Path(settings.output)), settings, check_model(settings), print)


def captions(output: Any) -> list[tuple[str, str | None]]:
    table = read_results(output).to_table()
    return list(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True))


def test_a_job_with_the_model_answers_as_lion_does(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    example_image().save(folder / "a.png")
    sketch().save(folder / "b.jpg")
    (folder / "c.jpg").write_bytes(b"no picture")
    task = AnnotationTask(caption=True, locate=["the red circle"], generation={"max_new_tokens": 20})
    done = quiet(JobSettings(str(folder), tmp_path / "out", task, num_actors=1))
    assert (done.rows, done.errors) == (3, 1)
    first, second, third = read_results(tmp_path / "out").to_table().to_pylist()
    lion = Lion.from_pretrained()
    for row in (first, second):
        assert row["caption"] == lion.caption(row["key"], max_new_tokens=20)
        boxes = lion.locate(row["key"], "the red circle", max_new_tokens=20).boxes
        assert [tuple(box) for box in row["located"][0]["boxes"]] == boxes
    assert "c.jpg" in third["error"]


def test_the_annotator_is_a_stage_of_a_pipeline_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    example_image().save(path)
    pq.write_table(pa.table({"picture": [str(path)] * 4, "id": range(4)}), tmp_path / "rows.parquet")
    stage = ray.data.read_parquet(str(tmp_path / "rows.parquet")).map_batches(
        LionAnnotator,
        fn_constructor_kwargs={
            "task": AnnotationTask(caption=True, tag_source="none", generation={"max_new_tokens": 8}),
            "image_column": "picture",
            "key_column": "id",
        },
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=1),
        batch_size=2,
        num_cpus=1,
    )
    found = stage.to_pandas()
    assert sorted(found["key"]) == ["0", "1", "2", "3"]
    assert found["caption"].nunique() == 1
    assert set(found.columns) == set(RESULT_SCHEMA.names)


def test_each_row_is_there_once_in_the_order_of_the_source(settings: JobSettings) -> None:
    done = quiet(settings, make_annotator=KeyAnnotator)
    assert (done.rows, done.errors) == (100, 1)
    expected = [f"{number:05d}.png" for number in range(100)]
    assert captions(settings.output) == [(key, None if key == "00003.png" else f"caption of {key}") for key in expected]


@pytest.mark.long
def test_an_error_of_the_model_ends_the_job_and_the_next_run_does_the_rest(settings: JobSettings) -> None:
    with pytest.raises(RuntimeError, match="this model is not well"):
        quiet(settings, make_annotator=FailingAnnotator)
    output = Output(Path(settings.output))
    assert 2 in output.pending()
    before = {path: path.stat().st_mtime_ns for path in output.parts.iterdir()}
    with pytest.raises(ValueError, match="of 100 rows are done"):
        read_results(settings.output)
    monitor = {path: path.stat().st_mtime_ns for path in output.parts.iterdir()}
    assert monitor == before
    assert quiet(settings, make_annotator=KeyAnnotator).rows == 100
    assert len(dict(captions(settings.output))) == 100


def test_an_actor_that_dies_is_started_again(tmp_path: Path) -> None:
    marker = tmp_path / "died"
    source = write_rows(tmp_path / "rows.jsonl", 100, dies={40: str(marker)})
    settings = JobSettings(str(source), tmp_path / "out", CAPTION, key_column="image")
    assert quiet(settings, make_annotator=DyingAnnotator).rows == 100
    assert marker.exists()
    assert len(dict(captions(settings.output))) == 100


@pytest.mark.long
def test_a_row_that_kills_each_actor_ends_the_job(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 100, dies={99: "always"})
    settings = JobSettings(str(source), tmp_path / "out", CAPTION, key_column="image", num_actors=1)
    with pytest.raises(RuntimeError, match="An actor died, and died again"):
        quiet(settings, make_annotator=DyingAnnotator)
    assert quiet(settings, make_annotator=KeyAnnotator).rows == 100


def test_a_full_disk_ends_the_job_with_the_file_and_the_next_run_goes_on(
    settings: JobSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def fill(path: Path, content: bytes) -> int:
        if "part-000001" in path.name:
            raise OSError(28, "No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match="No space left") as error:
        quiet(settings, make_annotator=KeyAnnotator)
    assert str(error.value.filename).endswith("part-000001.parquet")
    monkeypatch.undo()
    assert quiet(settings, make_annotator=KeyAnnotator).rows == 100


def test_a_complete_job_does_nothing_more(settings: JobSettings) -> None:
    quiet(settings, make_annotator=KeyAnnotator)
    said: list[str] = []
    started = time.monotonic()
    assert annotate(settings, say=said.append, make_annotator=KeyAnnotator).rows == 100
    assert said == [f"{settings.output} is already complete: 100 rows, 1 row has an error."]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("changes", "message"), [
    ({"task": AnnotationTask(ask=["Is it red?"])}, r'task \{"caption": true.* now it is \{"ask": \["Is it red\?"\]\}'),
    ({"limit": 50}, "limit unset, but now it is 50"),
    ({"dtype": "bfloat16"}, 'dtype unset, but now it is "bfloat16"'),
    ({"format": "jsonl"}, 'format "parquet", but now it is "jsonl"'),
])  # fmt: skip
def test_other_settings_are_refused_and_both_are_named(
    settings: JobSettings, changes: dict[str, Any], message: str
) -> None:
    begin_job(settings)
    with pytest.raises(ValueError, match=message):
        quiet(JobSettings(**{**vars(settings), **changes}), make_annotator=KeyAnnotator)


def test_a_model_with_other_weights_is_refused(settings: JobSettings, lion_folder: Path, tmp_path: Path) -> None:
    begin_job(settings)
    with pytest.raises(ValueError, match=r"made with model .*\(sha256 \w{12}\), but now it is .*\(sha256 \w{12}\)"):
        quiet(JobSettings(**{**vars(settings), "model": str(lion_folder)}), make_annotator=KeyAnnotator)


@pytest.mark.long
def test_batch_size_and_actors_may_change(settings: JobSettings) -> None:
    with pytest.raises(RuntimeError):
        quiet(settings, make_annotator=FailingAnnotator)
    changed = JobSettings(**{**vars(settings), "num_actors": 1, "batch_size": 3})
    assert quiet(changed, make_annotator=KeyAnnotator).rows == 100


def test_a_second_process_is_refused(settings: JobSettings) -> None:
    folder = Path(settings.output)
    folder.mkdir()
    with locked(folder / LOCK, folder), pytest.raises(ValueError, match="another run is writing it"):
        quiet(settings, make_annotator=KeyAnnotator)


def test_a_folder_with_other_files_is_refused(settings: JobSettings) -> None:
    folder = Path(settings.output)
    folder.mkdir()
    (folder / "thesis.txt").write_text("words")
    with pytest.raises(ValueError, match=r"has other files, such as thesis\.txt"):
        quiet(settings, make_annotator=KeyAnnotator)


def test_a_key_that_is_there_twice_is_refused_before_anything_runs(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"image": "a.png", "id": "1"}\n{"image": "b.png", "id": "1"}\n')
    settings = JobSettings(str(source), tmp_path / "out", CAPTION, key_column="id")
    with pytest.raises(ValueError, match="have the key '1'"):
        quiet(settings, make_annotator=KeyAnnotator)
    assert not (tmp_path / "out" / KEYS).exists()


def test_a_column_that_no_row_has_is_refused_before_anything_runs(settings: JobSettings) -> None:
    task = AnnotationTask(ask=["Is it {color}?"])
    with pytest.raises(ValueError, match="there is no column 'color'; the row has"):
        quiet(JobSettings(**{**vars(settings), "task": task}), make_annotator=KeyAnnotator)


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_actors": 5}, "no room for 5 actors"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"format": "csv"}, "format is 'csv'"),
    ({"task": AnnotationTask(caption=True, generation={"beams": 2})}, "'beams' is not an option of generate"),
    ({"model": "nowhere/at-all-17"}, "nowhere/at-all-17 is neither a folder nor"),
])  # fmt: skip
def test_an_invalid_setting_is_refused(settings: JobSettings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quiet(JobSettings(**{**vars(settings), **changes}), make_annotator=KeyAnnotator)


def test_a_source_without_rows_is_refused(settings: JobSettings, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(ValueError, match=r"no rows|empty"):
        quiet(JobSettings(**{**vars(settings), "source": str(empty)}), make_annotator=KeyAnnotator)


def test_the_settings_and_versions_are_beside_the_results(settings: JobSettings) -> None:
    begin_job(settings)
    run = json.loads((Path(settings.output) / RUN).read_text())
    assert run["settings"]["task"] == {"caption": True, "generation": {"max_new_tokens": 8}}
    assert len(run["settings"]["model"]["sha256"]) == 64
    assert run["versions"]["ray"] == ray.__version__


def test_a_dry_run_shows_the_plan_and_writes_nothing(settings: JobSettings) -> None:
    text = describe_job(settings)
    assert "rows      100: 00000.png, 00001.png, 00002.png, ..." in text
    assert "4 chunks of up to 32 rows for 2 actors, each with 1 CPU" in text
    assert "answers  list<struct<question: string, answer: string>>" in text
    assert not Path(settings.output).exists()
