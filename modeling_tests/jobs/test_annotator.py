"""The annotator answers as `Lion` does, row by row, and a bad row costs no other."""

import gc
import io
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from transformers_lion import Lion
from transformers_lion.example import example_image, sketch
from transformers_lion.inference import Request
from transformers_lion.jobs import RESULT_SCHEMA, AnnotationTask, LionAnnotator
from transformers_lion.jobs.annotator import MAX_FAILURES
from transformers_lion.jobs.source_row import SourceRow, rows_to_table, to_columns

CAPTION = AnnotationTask(caption=True, tag_source="none", generation={"num_beams": 1, "max_new_tokens": 12})
BOX = [40.0, 60.0, 300.0, 260.0]


@pytest.fixture(scope="module")
def lion() -> Lion:
    return Lion.from_pretrained()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of other sizes, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    example_image().save(folder / "scene.png")
    sketch().save(folder / "sketch.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def batch_of(folder: Path, *names: str, **columns: Any) -> dict[str, Any]:
    paths = [str(folder / name) for name in names]
    return {"image": paths, **{name: [value] * len(paths) for name, value in columns.items()}}


def without_seconds(table: pa.Table) -> list[dict[str, Any]]:
    return table.drop_columns(["seconds"]).to_pylist()


def test_every_kind_of_answer_is_that_of_lion(lion: Lion, folder: Path) -> None:
    task = AnnotationTask(
        caption=True, tags=True, ask=["Is there a {shape}?"], locate=["the red circle"], locate_column="nouns",
        regions_column="boxes", scores=True,
    )  # fmt: skip
    names = ("scene.png", "sketch.jpg")
    batch = batch_of(folder, *names, shape="star", nouns=["the blue heart"], boxes=[BOX])
    table = LionAnnotator(lion, task)(batch)
    assert table.schema == RESULT_SCHEMA
    for row, path in zip(table.to_pylist(), batch["image"], strict=True):
        located = lion.locate(path, ["the red circle", "the blue heart"], scores=True)
        assert row["error"] is None
        assert (row["key"], row["width"], row["height"]) == (path, *Image.open(path).size)
        assert row["caption"] == lion.caption(path)
        assert row["tags"] == lion.tag(path)
        assert row["answers"] == [{"question": "Is there a star?", "answer": lion.ask(path, "Is there a star?")}]
        assert row["regions"] == [{"box": BOX, "description": lion.describe_region(path, BOX)}]
        for found, answer in zip(row["located"], located, strict=True):
            assert [tuple(box) for box in found["boxes"]] == answer.boxes
            assert found["scores"] == pytest.approx(answer.scores, abs=1e-4)
            assert np.multiply(found["fractions"], answer.image_size * 2) == pytest.approx(np.array(found["boxes"]))
        assert row["prompts"][0] == lion.answer([Request(path, lion.processor.caption_prompt)])[0].prompt
        assert len(row["prompts"]) == 5


def test_a_picture_that_cannot_be_read_is_a_row_with_an_error(lion: Lion, folder: Path) -> None:
    rows = LionAnnotator(lion, CAPTION)(
        batch_of(folder, "scene.png", "broken.jpg", "none.png", "sketch.jpg")
    ).to_pylist()
    assert [row["error"] is None for row in rows] == [True, False, False, True]
    assert "broken.jpg" in rows[1]["error"]
    assert [row["caption"] is None for row in rows] == [False, True, True, False]


def test_a_row_without_a_column_of_the_task_is_a_row_with_an_error(lion: Lion, folder: Path) -> None:
    task = AnnotationTask(ask=["Is it {color}?"], tag_source="none", generation={"max_new_tokens": 4})
    batch = {**batch_of(folder, "scene.png", "sketch.jpg"), "color": ["red", None]}
    first, second = LionAnnotator(lion, task)(batch).to_pylist()
    assert first["answers"][0]["question"] == "Is it red?"
    assert second["error"] == "column 'color' is empty, but 'Is it {color}?' needs it."
    assert (second["width"], second["answers"]) == (640, None)


def test_a_box_outside_its_picture_is_a_row_with_an_error(lion: Lion, folder: Path) -> None:
    task = AnnotationTask(regions_column="boxes", tag_source="none", generation={"max_new_tokens": 4})
    batch = {**batch_of(folder, "scene.png", "sketch.jpg"), "boxes": [[[500, 500, 600, 600]], []]}
    first, second = LionAnnotator(lion, task)(batch).to_pylist()
    assert "400x400" in first["error"]
    assert (second["error"], second["regions"]) == (None, [])


def test_tags_can_be_the_phrases_to_locate(lion: Lion, folder: Path) -> None:
    (row,) = LionAnnotator(lion, AnnotationTask(locate_tags=True))(batch_of(folder, "scene.png")).to_pylist()
    assert [found["phrase"] for found in row["located"]] == lion.tag(folder / "scene.png")
    assert row["tags"] is None


def test_the_tags_of_a_row_replace_those_of_the_tagger(lion: Lion, folder: Path) -> None:
    task = AnnotationTask(caption=True, tag_column="own", generation={"max_new_tokens": 4})
    batch = {**batch_of(folder, "scene.png", "scene.png"), "own": ["boat, sea", None], "id": ["a", "b"]}
    first, second = LionAnnotator(lion, task, key_column="id")(batch).to_pylist()
    assert "boat, sea" in first["prompts"][0]
    assert ", ".join(lion.tag(folder / "scene.png")) in second["prompts"][0]


def test_tags_alone_need_no_language_model(folder: Path, lion: Lion) -> None:
    annotator = LionAnnotator(task=AnnotationTask(tags=True))
    (row,) = annotator(batch_of(folder, "scene.png")).to_pylist()
    assert annotator.lion is None
    assert row["tags"] == lion.tag(folder / "scene.png")


def test_all_formats_of_a_batch_give_the_same(lion: Lion, folder: Path) -> None:
    names = ("scene.png", "broken.jpg", "sketch.jpg")
    paths = [str(folder / name) for name in names]
    rows = [SourceRow(path, path, "file", columns=json.dumps({})) for path in paths]
    annotator = LionAnnotator(lion, CAPTION)
    expected = without_seconds(annotator({"image": np.array(paths)}))
    for batch in (pa.table({"image": paths}), pa.table({"image": paths}).to_pandas(), rows_to_table(rows)):
        found = without_seconds(annotator(batch))
        assert [row["caption"] for row in found] == [row["caption"] for row in expected]
        assert [row["key"] for row in found] == paths


def test_boxes_of_a_source_are_described(lion: Lion, folder: Path) -> None:
    path = str(folder / "sketch.jpg")
    row = SourceRow(path, path, "file", columns=to_columns({"boxes": [BOX, BOX], "embedding": [0.5] * 5}))
    assert json.loads(row.columns) == {"boxes": [BOX, BOX]}
    task = AnnotationTask(regions_column="boxes", tag_source="none", generation={"max_new_tokens": 4})
    (found,) = LionAnnotator(lion, task)(rows_to_table([row])).to_pylist()
    assert [region["box"] for region in found["regions"]] == [BOX, BOX]


@pytest.mark.parametrize("as_struct", [True, False])
def test_pictures_can_be_bytes_in_a_column(lion: Lion, folder: Path, as_struct: bool) -> None:
    content = (folder / "scene.png").read_bytes()
    cell = {"bytes": content, "path": "a.png"} if as_struct else content
    annotator = LionAnnotator(lion, CAPTION, image_column="img", key_column=None if as_struct else "id")
    (row,) = annotator(pa.Table.from_pylist([{"img": cell, "id": 7}])).to_pylist()
    assert row["key"] == ("a.png" if as_struct else "7")
    assert row["caption"] == lion.caption(folder / "scene.png", tag_source="none", num_beams=1, max_new_tokens=12)


@pytest.mark.parametrize(("options", "message"), [
    ({"image_column": "picture"}, "no column 'picture'; the columns are 'image', 'id'"),
    ({"key_column": "name"}, "no column 'name'"),
    ({}, "Set key_column to one of 'image', 'id'"),
])  # fmt: skip
def test_a_column_that_is_not_there_is_an_error(lion: Lion, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LionAnnotator(lion, CAPTION, **options)({"image": [b"bytes"], "id": ["a"]})


def test_an_empty_batch_has_an_empty_table(lion: Lion) -> None:
    assert LionAnnotator(lion, CAPTION)({"image": []}).schema == RESULT_SCHEMA


def test_a_row_on_which_the_model_fails_costs_no_other(
    lion: Lion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = lion.answer

    def fail_for_two(requests: list[Request], **options: Any) -> Any:
        if any(request.question == "two" for request in requests):
            raise RuntimeError("out of\nmemory")
        return answer(requests, **options)

    monkeypatch.setattr(lion, "answer", fail_for_two)
    task = AnnotationTask(ask=["{number}"], tag_source="none", generation={"max_new_tokens": 3})
    batch = {**batch_of(folder, *["scene.png"] * 3), "number": ["one", "two", "three"], "id": ["1", "2", "3"]}
    rows = LionAnnotator(lion, task, key_column="id")(batch).to_pylist()
    assert [row["error"] for row in rows] == [None, "out of memory", None]


def test_a_model_that_always_fails_ends_the_job(lion: Lion, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(requests: Any, **options: Any) -> Any:
        raise RuntimeError("device lost")

    monkeypatch.setattr(lion, "answer", fail)
    batch = {"image": [str(folder / "scene.png")] * (MAX_FAILURES + 1), "id": list(range(MAX_FAILURES + 1))}
    with pytest.raises(RuntimeError, match=r"failed on 8 rows in succession\. The last error is: device lost"):
        LionAnnotator(lion, CAPTION, key_column="id")(batch)


def test_at_most_one_picture_per_thread_is_in_memory_at_full_size(lion: Lion, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    example_image().save(buffer, "PNG")
    alive: set[int] = set()
    most = 0

    def open_large(cell: Any) -> Image.Image:
        nonlocal most
        image = example_image()
        alive.add(id(image))
        most = max(most, len(alive))
        weakref.finalize(image, alive.discard, id(image))
        return image

    monkeypatch.setattr("transformers_lion.jobs.annotator.open_cell", open_large)
    batch = {"image": [buffer.getvalue()] * 24, "id": list(range(24))}
    task = AnnotationTask(caption=True, generation={"max_new_tokens": 2})
    gc.collect()
    LionAnnotator(lion, task, key_column="id", num_threads=2)(batch)
    assert most <= 3


def test_a_task_that_needs_tags_is_refused_without_a_tagger(lion: Lion) -> None:
    without = Lion(lion.model, lion.processor)
    with pytest.raises(ValueError, match="The task needs tags, but"):
        LionAnnotator(without, AnnotationTask(tags=True))


@pytest.fixture(params=["processor", "tagger"])
def image_processor(request: pytest.FixtureRequest, lion: Lion) -> Any:
    return lion.processor.image_processor if request.param == "processor" else lion.tagger.image_processor


def test_a_picture_that_was_shrunk_has_the_same_pixels(image_processor: Any) -> None:
    whole = image_processor(sketch(1601, 1203), return_tensors="np")["pixel_values"]
    shrunk = image_processor(image_processor.shrink(sketch(1601, 1203)), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(whole, shrunk)
