"""What a task asks about a row, and the errors of tasks that ask for something impossible."""

from pathlib import Path
from typing import Any

import pytest

from transformers_lion.jobs import AnnotationTask
from transformers_lion.jobs.task import read_task

ROW = {"category": "mug", "nouns": ["cup", "spoon", "cup"], "empty": None, "boxes": [[1, 2, 3, 4]], "one": "a hat"}


def test_templates_are_filled_with_the_columns_of_the_row() -> None:
    task = AnnotationTask(ask=["Is the {category} near {nouns}?", "Is {{this}} kept?"])
    assert task.questions(ROW) == ["Is the mug near cup, spoon, cup?", "Is {this} kept?"]
    assert task.columns == ["category", "nouns"]


@pytest.mark.parametrize(("text", "message"), [
    ("Is the {colour} bright?", "there is no column 'colour'; the row has 'category', 'nouns'"),
    ("Is it {empty}?", "column 'empty' is empty"),
])  # fmt: skip
def test_a_column_that_is_missing_or_empty_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnnotationTask(ask=[text]).questions(ROW)


def test_phrases_come_from_texts_a_column_and_tags_each_once() -> None:
    task = AnnotationTask(locate=["the {category}", "cup"], locate_column="nouns", locate_tags=True)
    assert task.phrases(ROW, ["spoon", "table"]) == ["the mug", "cup", "spoon", "table"]


def test_a_column_may_hold_one_phrase_or_none() -> None:
    assert AnnotationTask(locate_column="one").phrases(ROW, None) == ["a hat"]
    assert AnnotationTask(locate_column="empty").phrases(ROW, None) == []


def test_a_column_of_phrases_must_hold_texts() -> None:
    with pytest.raises(ValueError, match="column 'boxes' must hold texts"):
        AnnotationTask(locate_column="boxes").phrases(ROW, None)


@pytest.mark.parametrize(("fields", "message"), [
    ({}, "asks for nothing"),
    ({"caption": "yes"}, "caption is 'yes', but must be true or false"),
    ({"ask": ["fine", " "]}, "ask is"),
    ({"ask": [3]}, "ask is"),
    ({"locate": ["{0}"], "caption": True}, "'{0}': a template holds only names of columns"),
    ({"ask": ["what is {this"]}, "what is {this"),
    ({"caption": True, "scores": True}, "scores is set, but nothing is located"),
    ({"caption": True, "tag_source": "web"}, "tag_source is 'web'"),
    ({"caption": True, "tag_source": "data"}, "there is no tag_column"),
    ({"caption": True, "tag_source": "none", "tag_column": "x"}, "tag_column is 'x', but tag_source is 'none'"),
    ({"caption": True, "generation": 3}, "generation is 3"),
    ({"caption": True, "captions": True}, "'captions' is not a field of a task; the fields are caption, tags, ask"),
])  # fmt: skip
def test_an_invalid_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnnotationTask.from_dict(fields)


def test_a_task_in_yaml_is_the_same_as_in_python(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("caption: true\nask: ['Is it red?']\nlocate_column: nouns\ngeneration: {num_beams: 1}\n")
    task = AnnotationTask(caption=True, ask=["Is it red?"], locate_column="nouns", generation={"num_beams": 1})
    assert AnnotationTask.from_dict(read_task(path)) == task
    assert AnnotationTask.from_dict(task.to_dict()) == task


@pytest.mark.parametrize(("text", "message"), [("caption: [", "is not YAML"), ("- caption", "expected a mapping")])
def test_a_file_that_is_no_task_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_task(path)
    assert str(path) in str(error.value)


def test_a_task_needs_a_tagger_only_if_tags_are_its_result() -> None:
    assert AnnotationTask(locate_tags=True).needs_tagger
    assert not AnnotationTask(caption=True).needs_tagger
    assert AnnotationTask(caption=True).uses_tagger
    assert not AnnotationTask(caption=True, tag_source="none").uses_tagger
