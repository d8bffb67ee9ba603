"""Short answers: metrics compared with VQA's official script, exact match, choices, and data formats."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe import GOLDENS
from transformers_lion.evaluation.task import Example, Prediction
from transformers_lion.evaluation.vqa import (
    compute_vqa_accuracy,
    load_exact_match,
    load_multiple_choice,
    load_vqa,
    normalize_answer,
    score_exact_match,
    score_multiple_choice,
    score_vqa,
)

GOLDEN = json.loads((GOLDENS / "evaluation" / "official.json").read_text(encoding="utf-8"))["vqa"]
QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"question_id": 2, "image_id": 42, "question": "What is it?"},
        {"question_id": 1, "image_id": 7, "question": "Is it?"},
    ],
}
PEOPLE = [{"answer": "yes", "answer_id": number} for number in range(10)]
ANNOTATIONS = {
    "data_subtype": "val2014",
    "annotations": [
        {"question_id": 1, "image_id": 7, "answers": PEOPLE, "answer_type": "yes/no"},
        {"question_id": 2, "image_id": 42, "answers": PEOPLE, "answer_type": "other"},
    ],
}
NAMES = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
CHOICE = {"id": 5, "image": "a.jpg", "question": "Which?", "choices": ["red", "blue"]}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def write_pair(folder: Path, questions: Any = QUESTIONS, annotations: Any = ANNOTATIONS) -> tuple[Path, Path]:
    return write(folder / NAMES[0], questions), write(folder / NAMES[1], annotations)


def choice(scores: tuple[float, ...] | None, right: int = 1) -> dict[str, float]:
    example = Example("1", "a.jpg", "?", right, candidates=("red", "blue", "green"))
    return score_multiple_choice([example], [Prediction("1", "red", scores)]).metrics


def test_accuracies_are_those_of_the_official_script() -> None:
    found = [round(100 * compute_vqa_accuracy(case["answer"], case["references"]), 6) for case in GOLDEN]
    assert found == [case["accuracy"] for case in GOLDEN]
    assert sum(0 < value < 100 for value in found) / len(found) > 0.1


def test_accuracy_by_hand() -> None:
    """Three of ten agree: leaving out one of them two are left, 2/3; leaving out another all three, 1."""
    assert compute_vqa_accuracy("red", ["red"] * 3 + ["blue"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("The Two dogs", "2 dogs"),
        ("an apple, a pear", "apple pear"),
        ("dont", "don't"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("1,000", "1000"),
        ("2.5 cm.", "2.5 cm"),
        ("None", "0"),
        ("somebody'd", "somebodyd"),
        ("lets", "lets"),
    ],
)
def test_answers_are_normalized(answer: str, normalized: str) -> None:
    assert normalize_answer(answer) == normalized


def test_of_full_stops_only_the_first_32_are_dropped_as_by_the_official_script() -> None:
    assert normalize_answer("." * 40) == "." * 8


def test_where_all_people_agree_capitals_count() -> None:
    assert compute_vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert compute_vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1


@given(st.text(), st.lists(st.text(), min_size=1, max_size=10))
def test_accuracy_is_a_share_whatever_the_order(answer: str, references: list[str]) -> None:
    found = compute_vqa_accuracy(answer, references)
    assert 0 <= found <= 1
    assert compute_vqa_accuracy(answer, references[::-1]) == found


def test_a_pair_of_files_is_read_by_either_or_their_folder(tmp_path: Path) -> None:
    questions, annotations = write_pair(tmp_path)
    examples = load_vqa(questions)
    assert examples == load_vqa(annotations) == load_vqa(tmp_path)
    assert [example.id for example in examples] == ["1", "2"]
    assert examples[1].question == "Question: What is it? Short answer:"
    assert examples[1].image == "COCO_val2014_000000000042.jpg"
    assert examples[1].references == ["yes"] * 10


def test_kinds_of_answers_have_their_own_metrics(tmp_path: Path) -> None:
    examples = load_vqa(write_pair(tmp_path)[0])
    metrics = score_vqa(examples, [Prediction("2", "yes"), Prediction("1", "no")]).metrics
    assert metrics == {"accuracy": 50, "accuracy yes/no": 0, "accuracy other": 100}


def test_a_missing_partner_is_asked_for(tmp_path: Path) -> None:
    data = write(tmp_path / NAMES[0], QUESTIONS)
    with pytest.raises(ValueError, match="expected the file of annotations in the same folder"):
        load_vqa(data)


def test_a_pair_that_does_not_fit_is_counted(tmp_path: Path) -> None:
    data, _ = write_pair(tmp_path, {"questions": QUESTIONS["questions"][:1]})
    with pytest.raises(ValueError, match=r"has 2 annotations for the 1 questions of .*without a question: 1\."):
        load_vqa(data)


def test_an_image_is_found_under_the_names_that_data_sets_give(tmp_path: Path) -> None:
    (tmp_path / "000000000042.jpg").touch()
    record = {"id": 1, "image_id": 42, "question": "?", "answers": ["a"] * 10}
    assert load_vqa(write(tmp_path / "a.json", [record]), tmp_path)[0].image == "000000000042.jpg"


def test_direct_answers_that_are_too_difficult_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = {"image_id": 1, "question": "?", "direct_answers": ["a"] * 10}
    records = [{**record, "question_id": name, "difficult_direct_answer": name == "b"} for name in "abc"]
    with caplog.at_level(logging.INFO):
        examples = load_vqa(write(tmp_path / "a.json", records))
    assert [example.id for example in examples] == ["a", "c"]
    assert "skipped 1 of 3 questions marked as too difficult" in caplog.text


def test_vqa_needs_the_answers_of_several_people(tmp_path: Path) -> None:
    data = write(tmp_path / "a.json", [{"id": 1, "image": "a.jpg", "question": "?", "answer": "yes"}])
    with pytest.raises(ValueError, match="record 1: expected the answers of at least 4 people, but found 1"):
        load_vqa(data)


def test_questions_of_gqa_are_read(tmp_path: Path) -> None:
    data = write(tmp_path / "a.json", {"07": {"question": "Is it?", "imageId": "2405722", "answer": "yes"}})
    [example] = load_exact_match(data)
    assert (example.id, example.image, example.references) == ("07", "2405722.jpg", ["yes"])


@pytest.mark.parametrize(
    ("answer", "accuracy", "verbatim"), [("red", 100, 100), ("The red.", 100, 0), ("blue", 0, 0), ("", 0, 0)]
)
def test_exact_match_by_hand(answer: str, accuracy: float, verbatim: float) -> None:
    metrics = score_exact_match([Example("1", "a.jpg", "?", ["red", "crimson"])], [Prediction("1", answer)]).metrics
    assert metrics == {"accuracy": accuracy, "accuracy_verbatim": verbatim}


@pytest.mark.parametrize(
    ("scores", "accuracy"),
    [((-3.0, -1.0, -2.0), 100), ((-1.0, -3.0, -2.0), 0), ((-1.0, -1.0, -2.0), 50), ((-math.inf,) * 3, 100 / 3)],
)
def test_choices_by_hand(scores: tuple[float, ...], accuracy: float) -> None:
    assert choice(scores) == {"accuracy": pytest.approx(accuracy)}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "'1' has no scores for 3 candidates"),
        ((-1.0,), "'1' has 1 scores for 3 candidates"),
        ((math.nan, -1.0, -1.0), "'1' has a score that is not a number"),
    ],
)
def test_scores_that_do_not_fit_the_candidates_are_an_error(scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choice(scores)


@pytest.mark.parametrize("answer", [{"answer": "blue"}, {"answer": 1}, {"correct_choice_idx": 1}])
def test_choices_are_read(tmp_path: Path, answer: dict[str, Any]) -> None:
    [example] = load_multiple_choice(write(tmp_path / "a.jsonl", {**CHOICE, **answer}))
    assert (example.candidates, example.references) == (("red", "blue"), 1)
    assert example.question == "Question: Which? Options: (a) red (b) blue. Short answer:"


@pytest.mark.parametrize("answer", ["green", 2, -1, None, "1", True])
def test_an_answer_that_is_no_choice_is_an_error(tmp_path: Path, answer: Any) -> None:
    data = write(tmp_path / "a.jsonl", {**CHOICE, "answer": answer})
    with pytest.raises(ValueError, match="record 1: expected"):
        load_multiple_choice(data)


def test_statements_of_vsr_are_read(tmp_path: Path) -> None:
    lines = [{"image": f"{label}.jpg", "caption": "The cat is on the mat.", "label": label} for label in (1, 0)]
    data = tmp_path / "a.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    examples = load_multiple_choice(data)
    assert [(example.id, example.image, example.references) for example in examples] == [
        ("1", "1.jpg", 1),
        ("2", "0.jpg", 0),
    ]
    assert examples[0].candidates == ("false", "true")


def test_of_iconqa_questions_with_texts_to_choose_from_are_read(tmp_path: Path) -> None:
    record = {"question": "Which?", "choices": ["red", "blue"], "answer": 0}
    kinds = {"5": "choose_txt", "6": "choose_img", "7": "fill_in_blank"}
    data = write(tmp_path / "a.json", {name: {**record, "ques_type": kind} for name, kind in kinds.items()})
    assert [(example.id, example.image) for example in load_multiple_choice(data)] == [("5", "5/image.png")]


def test_duplicate_ids_are_named(tmp_path: Path) -> None:
    data = write(tmp_path / "a.json", [{**CHOICE, "answer": 0}] * 3)
    with pytest.raises(ValueError, match=r"3 records have 1 ids; duplicates: 5\."):
        load_multiple_choice(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"id": 1,\n', "line 2: expected JSON or JSON Lines"),
        ('{"id": 1}\n{"id": 2\n', "line 2: expected JSON or JSON Lines"),
        ("[" * 100_000, "nested too deeply|expected JSON"),
        ('{"id": 1, "image": "a.jpg", "question": " ", "answer": "a"}', "expected a string in question, not"),
        ('{"id": 1, "image": 1.5, "question": "?", "answer": "a"}', "string or an integer in image"),
        ('{"id": 1, "image": "a.jpg", "question": "?", "answer": ["a", 1]}', "a string or a list of strings in"),
        (
            '{"id": 1, "image": "a.jpg", "question": "?", "answer": "a", "tag": ["b"]}',
            "record 1: tag is not read: use tags",
        ),
        (
            '{"data": [{"id": 1, "image": "a.jpg", "question": "?", "answer": "a", "prompt": "b"}]}',
            "prompt is not read",
        ),
        ('{"1": {"image": "a.jpg", "question": "?", "answer": "a", "task_type": "b"}}', "'1': task_type is not read"),
        ('{"id": 1, "image": "a.jpg", "question": "?", "answer": "a", "tags": [1]}', "non-empty strings in tags"),
    ],
)
def test_invalid_data_is_an_error_that_says_where(tmp_path: Path, content: str, message: str) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_exact_match(data)
    assert str(data) in str(error.value)


@pytest.mark.parametrize(("tags", "read"), [(["cat", "dog"], ("cat", "dog")), ("cat, dog", ("cat", "dog")), ([], ())])
def test_tags_of_a_record_are_read(tmp_path: Path, tags: Any, read: tuple[str, ...]) -> None:
    record = {"id": 1, "image": "a.jpg", "question": "?", "answer": "a", "tags": tags}
    assert load_exact_match(write(tmp_path / "a.jsonl", record))[0].tags == read
