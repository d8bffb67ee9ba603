"""Files of predictions: supported formats, errors, and whether they match the examples."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformers_lion.evaluation.predictions import (
    format_prediction,
    match_predictions,
    read_predictions,
    write_predictions,
)
from transformers_lion.evaluation.task import Example, Prediction

SCORE = st.floats(max_value=0, allow_nan=False) | st.just(float("-inf"))
PREDICTION = st.builds(
    Prediction,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.none() | st.lists(SCORE, min_size=1).map(tuple),
)


def examples(*names: str) -> list[Example]:
    return [Example(name, "a.jpg", "?", None) for name in names]


def predictions(*names: str) -> list[Prediction]:
    return [Prediction(name, f"answer {name}") for name in names]


@given(st.lists(PREDICTION))
def test_predictions_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, made: list) -> None:
    path = tmp_path_factory.mktemp("predictions") / "a.jsonl"
    write_predictions(path, made)
    assert read_predictions(path) == made


@given(st.integers(0, 200))
def test_whatever_is_cut_off_the_end_the_whole_lines_are_read(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("predictions") / "a.jsonl"
    made = [Prediction(str(number), "eine Tür, 門", (-1.0, -2.0)) for number in range(4)]
    write_predictions(path, made)
    content = path.read_bytes()[: -cut or None]
    path.write_bytes(content)
    complete = content.count(b"\n") + (1 if content.endswith(b"]}") else 0)
    assert read_predictions(path) == made[:complete]


def test_an_incomplete_last_line_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "1", "answer": "yes"}\n{"id": "2", "ans')
    with caplog.at_level(logging.WARNING):
        read_predictions(path)
    assert "line 2 is incomplete" in caplog.text


def test_other_fields_are_kept_beside_a_prediction(tmp_path: Path) -> None:
    line = format_prediction(Prediction("1", "yes"), {"prompt": "Is it?"})
    assert json.loads(line) == {"id": "1", "answer": "yes", "prompt": "Is it?"}
    (tmp_path / "a.jsonl").write_text(line)
    assert read_predictions(tmp_path / "a.jsonl") == [Prediction("1", "yes")]


@pytest.mark.parametrize("record", [{"question_id": 7, "answer": "a cat"}, {"image_id": 7, "caption": "a cat"}])
def test_results_as_official_scripts_read_them_are_read(tmp_path: Path, record: dict) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([record]))
    assert read_predictions(path) == [Prediction("7", "a cat")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "1", "answer": "a"}\n{"id": "2"\n{"id": "3", "answer": "b"}\n', "line 2: expected a JSON object"),
        ('{"answer": "a"}\n', "line 1: expected id or question_id or image_id, but its fields are answer"),
        ('{"id": "1"}\n', "line 1: expected answer or caption"),
        ('{"id": "1", "answer": 3}\n', "line 1: expected a string in answer, not 3"),
        ('{"id": "1", "answer": "a", "scores": [NaN]}\n', "log-likelihoods in scores, not NaN"),
        ('{"id": "1", "answer": "a", "scores": []}\n', "expected a non-empty list in scores"),
        ('{"id": [], "answer": "a"}\n', r"integer in id or question_id or image_id, not \[\]"),
        ("3\n", "line 1: expected an object, not 3"),
        ('[{"id": "1", "answer": "a"}', "expected a JSON list of predictions"),
        ("[3]", "record 1: expected an object, not 3"),
    ],
)
def test_an_error_names_the_file_the_record_and_what_was_expected(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl cannot be read: No such file"):
        read_predictions(tmp_path / "a.jsonl")


def test_predictions_are_put_in_the_order_of_their_examples() -> None:
    assert match_predictions(examples("a", "b", "c"), predictions("c", "a", "b")) == predictions("a", "b", "c")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abbc", "4 predictions do not match 3 examples: 1 ids are predicted twice: b."),
        ("a", "1 predictions do not match 3 examples: 2 ids are without a prediction: b, c."),
        ("abcd", "4 predictions do not match 3 examples: 1 ids are not in the examples: d."),
        ("ad", "2 ids are without a prediction: b, c; 1 ids are not in the examples: d."),
    ],
)
def test_predictions_that_do_not_match_are_named_and_counted(names: str, message: str) -> None:
    with pytest.raises(ValueError, match="ids are ") as error:
        match_predictions(examples("a", "b", "c"), predictions(*names))
    assert message in str(error.value)


def test_of_many_ids_some_are_named() -> None:
    with pytest.raises(ValueError, match=r"1000 ids are without a prediction: 0, 1, 2, 3, 4, 5, 6, 7 and 992 more"):
        match_predictions(examples(*map(str, range(1000))), [])
