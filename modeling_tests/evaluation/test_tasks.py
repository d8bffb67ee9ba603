"""All tasks: metrics from files of data and predictions, without a model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from transformers_lion.evaluation import java_metrics
from transformers_lion.evaluation.predictions import write_predictions
from transformers_lion.evaluation.task import Example, Prediction, average_by_group
from transformers_lion.evaluation.tasks import TASKS, evaluate_predictions

CASES: dict[str, tuple[dict[str, Any], Prediction]] = {
    "rec": (
        {"id": 1, "image": "a.jpg", "phrase": "a dog", "bbox": [0, 0, 50, 50], "width": 100, "height": 50},
        Prediction("1", "Answer: [0,0,0.5,1]"),
    ),
    "captioning": ({"id": 1, "image": "a.jpg", "caption": "a red dog runs"}, Prediction("1", "A red dog runs.")),
    "vqa": ({"id": 1, "image": "a.jpg", "question": "?", "answers": ["yes"] * 10}, Prediction("1", "yes")),
    "exact-match": ({"id": 1, "image": "a.jpg", "question": "?", "answer": "two"}, Prediction("1", "2")),
    "multiple-choice": (
        {"id": 1, "image": "a.jpg", "question": "?", "choices": ["a", "b"], "answer": "b"},
        Prediction("1", "b", (-2.0, -1.0)),
    ),
    "visdial": (
        {
            "data": {
                "questions": ["is it"],
                "answers": ["no", "yes"],
                "dialogs": [
                    {
                        "image_id": 1,
                        "caption": "a dog",
                        "dialog": [{"question": 0, "answer": 1, "answer_options": [0, 1], "gt_index": 1}],
                    }
                ],
            }
        },
        Prediction("1-1", "yes", (-2.0, -1.0)),
    ),
    "pope": ({"question_id": 1, "image": "a.jpg", "text": "?", "label": "yes"}, Prediction("1", "yes")),
}
TOP = {name: 0.0 if name == "captioning" else 100.0 for name in CASES}
"""A single image's CIDEr is 0, since none of its words is rarer than another."""


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_metrics.shutil, "which", lambda name: None)


def test_every_task_has_a_case() -> None:
    assert list(CASES) == list(TASKS)


@pytest.mark.parametrize("task", CASES)
def test_a_right_prediction_has_the_top_figure(tmp_path: Path, task: str) -> None:
    record, prediction = CASES[task]
    (tmp_path / "data.json").write_text(json.dumps(record))
    write_predictions(tmp_path / "predictions.jsonl", [prediction])
    scores = evaluate_predictions(task, tmp_path / "data.json", tmp_path / "predictions.jsonl")
    assert scores.metrics[TASKS[task].headline] == TOP[task]
    assert scores.per_example == {prediction.id: TOP[task]}


@pytest.mark.parametrize("task", CASES)
def test_a_missing_prediction_is_an_error(tmp_path: Path, task: str) -> None:
    (tmp_path / "data.json").write_text(json.dumps(CASES[task][0]))
    with pytest.raises(ValueError, match="0 predictions do not match 1 examples: 1 ids are without a prediction"):
        evaluate_predictions(task, tmp_path / "data.json", [])


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="Unknown task 'tagging'; use one of rec, captioning, vqa"):
        evaluate_predictions("tagging", Path("data.json"), [])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_papers_metrics_are_of_its_models(task: Any) -> None:
    assert task.paper
    for metrics in task.paper.values():
        assert set(metrics) in ({"LION-4B", "LION-12B"}, {"LION"})
        assert all(30 < value < 150 for value in metrics.values())


def test_metrics_of_one_group_are_not_repeated() -> None:
    examples = [Example(name, "a.jpg", "?", None, group="val") for name in "ab"]
    assert average_by_group(examples, [{"x": 1.0}, {"x": 2.0, "y": 5.0}]) == {"x": 1.5, "y": 5.0}


def test_metrics_that_a_group_lacks_are_left_out() -> None:
    examples = [Example(name, "a.jpg", "?", None, group=name) for name in "ab"]
    found = average_by_group(examples, [{"x": 1.0}, {"x": 2.0, "y": 5.0}])
    assert found == {"x": 1.5, "y": 5.0, "x a": 1.0, "x b": 2.0, "y b": 5.0}


def test_without_the_package_of_the_extra_all_but_its_metrics_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    record, prediction = CASES["captioning"]
    (tmp_path / "data.json").write_text(json.dumps(record))
    metrics = evaluate_predictions("captioning", tmp_path / "data.json", [prediction]).metrics
    assert list(metrics) == ["cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"]
    assert "METEOR is skipped: pycocoevalcap is not installed" in caplog.text
