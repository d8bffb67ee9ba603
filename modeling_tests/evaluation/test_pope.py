"""POPE: metrics compared with its official script, splits, and answers that are neither yes nor no."""

import json
from pathlib import Path
from typing import Any

import pytest

from recipe import GOLDENS
from transformers_lion.evaluation.pope import is_neither, is_official_no, load_pope, score_pope
from transformers_lion.evaluation.task import Example, Prediction

GOLDEN = json.loads((GOLDENS / "evaluation" / "official.json").read_text(encoding="utf-8"))["pope"]
OFFICIAL = {
    "Accuracy": "accuracy",
    "Precision": "precision",
    "Recall": "recall",
    "F1 score": "f1",
    "Yes ratio": "yes_share",
}
RECORD = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "yes"}


def score(labels: list[str], answers: list[str]) -> dict[str, float]:
    examples = [Example(str(place), "a.jpg", "?", label) for place, label in enumerate(labels)]
    return score_pope(examples, [Prediction(str(place), answer) for place, answer in enumerate(answers)]).metrics


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_metrics_are_those_of_the_official_script() -> None:
    metrics = score(GOLDEN["labels"], GOLDEN["answers"])
    for name, ours in OFFICIAL.items():
        assert metrics[ours] == pytest.approx(100 * GOLDEN["metrics"][name])


def test_metrics_by_hand() -> None:
    """Of four yes and one no: two yes found, one no taken for yes, and nothing else said yes."""
    metrics = score(["yes", "yes", "yes", "yes", "no"], ["yes", "Yes.", "no", "not at all", "I think so"])
    precision, recall = 2 / 3, 2 / 4
    assert metrics == {
        "accuracy": pytest.approx(40),
        "precision": pytest.approx(100 * precision),
        "recall": pytest.approx(100 * recall),
        "f1": pytest.approx(100 * 2 * precision * recall / (precision + recall)),
        "yes_share": pytest.approx(60),
        "neither": 1,
    }


@pytest.mark.parametrize(
    ("answer", "is_no"),
    [("no", True), ("No, there is", True), ("NO", False), ("Yes. No", False), ("It is not.", True), ("no\n", False)],
)
def test_no_is_what_the_official_script_takes_for_it(answer: str, is_no: bool) -> None:
    assert is_official_no(answer) is is_no


@pytest.mark.parametrize(
    ("answer", "neither"),
    [("", True), ("a cat", True), ("nothing", True), ("NO!", False), ("Yes.", False), ("not", False)],
)
def test_neither_is_where_no_such_word_stands(answer: str, neither: bool) -> None:
    assert is_neither(answer) is neither


def test_nothing_that_is_yes_is_no_error() -> None:
    assert score(["no"], ["no"])["f1"] == 0


def test_the_split_is_read_off_the_files_name(tmp_path: Path) -> None:
    [example] = load_pope(write(tmp_path / "coco_pope_popular.json", RECORD))
    assert example == Example("1", "a.jpg", RECORD["text"], "yes", group="popular")


def test_a_folder_of_three_splits_is_read_as_one(tmp_path: Path) -> None:
    for split in ("adversarial", "popular", "random"):
        write(tmp_path / f"coco_pope_{split}.json", RECORD, {**RECORD, "question_id": 2, "label": "no"})
    examples = load_pope(tmp_path)
    assert [example.id for example in examples[:3]] == ["random-1", "random-2", "popular-1"]
    answers = {"random": ("yes", "no"), "popular": ("yes", "yes"), "adversarial": ("no", "yes")}
    predictions = [
        Prediction(f"{split}-{number}", answer) for split in answers for number, answer in enumerate(answers[split], 1)
    ]
    metrics = score_pope(examples, predictions).metrics
    assert [metrics[f"accuracy {split}"] for split in answers] == [100, 50, 0]
    assert metrics["accuracy"] == 50


def test_a_split_that_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "coco_pope_random.json", RECORD)
    with pytest.raises(ValueError, match=r"expected one file \*popular\*\.json, but found 0"):
        load_pope(tmp_path)


def test_categories_of_records_are_splits(tmp_path: Path) -> None:
    record = {"question_id": "1", "image_source": "a", "question": "Is it?", "answer": "no", "category": "popular"}
    [example] = load_pope(write(tmp_path / "a.jsonl", record))
    assert (example.image, example.references, example.group) == ("a.jpg", "no", "popular")


def test_a_label_that_is_neither_is_an_error(tmp_path: Path) -> None:
    data = write(tmp_path / "a.json", RECORD, {**RECORD, "question_id": 2, "label": "maybe"})
    with pytest.raises(ValueError, match="record 2: expected yes or no in label, not 'maybe'"):
        load_pope(data)
