import json
import logging
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from transformers_lion.grounding import extract_entities, to_coco_results, to_supervision

ENTITIES = [
    ("a dog", (0, 5), [(10.0, 20.0, 60.0, 80.0), (0.0, 0.0, 5.0, 5.0)]),
    ("a cat", (6, 11), [(1.0, 2.0, 3.0, 4.0)]),
]
RESULT = {
    "boxes": torch.tensor([[10.0, 20.0, 60.0, 80.0], [1.0, 2.0, 3.0, 4.0]]),
    "text_labels": ["a dog", "a cat"], "labels": ["a dog", "a cat"], "scores": torch.tensor([0.75, 0.5]),
}  # fmt: skip


TWO_THINGS = [("a dog", (0, 5), [(10.0, 20.0, 60.0, 80.0)]), ("and a cat", (6, 15), [(1.0, 2.0, 3.0, 4.0)])]
"""The entities of "a dog [..] and a cat [..]"."""


@dataclass
class FakeDetections:
    """The constructor of `supervision.Detections`, with its checks."""

    xyxy: np.ndarray
    mask: np.ndarray | None = None
    confidence: np.ndarray | None = None
    class_id: np.ndarray | None = None
    tracker_id: np.ndarray | None = None
    data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.xyxy.ndim == 2
        assert self.xyxy.shape[1] == 4
        assert self.confidence is None or self.confidence.shape == (len(self.xyxy),)
        assert self.class_id is None or self.class_id.shape == (len(self.xyxy),)
        assert all(len(values) == len(self.xyxy) for values in self.data.values())


@pytest.fixture(params=["fake", "real"])
def supervision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "real":
        return pytest.importorskip("supervision")
    module = ModuleType("supervision")
    module.Detections = FakeDetections  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)
    return module


def test_entities_become_detections(supervision: Any) -> None:
    detections = to_supervision(ENTITIES, scores=[0.9, 0.5, 0.1])
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == [[10, 20, 60, 80], [0, 0, 5, 5], [1, 2, 3, 4]]
    assert detections.confidence.tolist() == pytest.approx([0.9, 0.5, 0.1])
    dog, other, cat = detections.class_id.tolist()
    assert dog == other != cat
    assert detections.data["class_name"].tolist() == ["a dog", "a dog", "a cat"]


def test_a_detectors_result_keeps_its_scores(supervision: Any) -> None:
    detections = to_supervision(RESULT, class_names=["a bird", "a cat", "a dog"])
    assert detections.confidence.tolist() == [0.75, 0.5]
    assert detections.class_id.tolist() == [2, 1]


def test_a_class_has_the_same_id_in_all_answers(supervision: Any) -> None:
    first = to_supervision([("a cat", (0, 5), [(10.0, 10.0, 90.0, 90.0)])])
    second = to_supervision(
        [("a puppy", (0, 7), [(10.0, 10.0, 90.0, 90.0)]), ("and a cat", (8, 17), [(11.0, 10.0, 90.0, 90.0)])]
    )
    puppy, cat = second.class_id.tolist()
    assert first.class_id.tolist() == [cat] != [puppy]
    assert second.data["class_name"].tolist() == ["a puppy", "a cat"]
    if supervision.Detections is not FakeDetections:
        kept = supervision.Detections.merge([first, second]).with_nms(0.5)
        assert sorted(kept.data["class_name"].tolist()) == ["a cat", "a puppy"]


def test_classes_may_be_ids_by_name_or_a_function_of_the_phrase(supervision: Any) -> None:
    assert to_supervision(TWO_THINGS, class_names={"a cat": np.int64(3), "a dog": 5}).class_id.tolist() == [5, 3]
    by_noun = to_supervision(TWO_THINGS, class_names=lambda phrase: phrase.split()[-1])
    assert by_noun.data["class_name"].tolist() == ["dog", "cat"]
    assert to_supervision(TWO_THINGS, class_names=["a cat", "a dog"]).class_id.tolist() == [1, 0]


def test_an_answer_without_boxes_has_no_detections(supervision: Any) -> None:
    assert to_supervision([]).xyxy.shape == (0, 4)


def test_without_supervision_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"transformers-lion\[supervision\]"):
        to_supervision(ENTITIES)


def test_coco_results_have_corner_width_and_height() -> None:
    results = to_coco_results(ENTITIES, image_id=7, categories={"a dog": 18, "a cat": 17}, scores=[0.9, 0.5, 0.1])
    assert json.loads(json.dumps(results)) == [
        {"image_id": 7, "category_id": 18, "bbox": [10.0, 20.0, 50.0, 60.0], "score": 0.9},
        {"image_id": 7, "category_id": 18, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.5},
        {"image_id": 7, "category_id": 17, "bbox": [1.0, 2.0, 2.0, 2.0], "score": 0.1},
    ]
    assert [entry["score"] for entry in to_coco_results(RESULT, image_id=7)] == [0.75, 0.5]
    assert [entry["category_id"] for entry in to_coco_results(ENTITIES, image_id=7)] == [1, 1, 1]


def test_counts_and_categories_must_fit() -> None:
    with pytest.raises(ValueError, match="2 scores for 3 boxes"):
        to_coco_results(ENTITIES, 1, scores=[0.1, 0.2])
    with pytest.raises(ValueError, match="'a cat' is not one of 'a dog'"):
        to_coco_results(ENTITIES, 1, {"a dog": 1})
    with pytest.raises(ValueError, match="its own scores"):
        to_coco_results(RESULT, 1, scores=[0.1, 0.2])


def test_a_category_is_found_after_and_or_a_comma() -> None:
    categories = {"a dog": 18, "a cat": 17}
    assert [row["category_id"] for row in to_coco_results(TWO_THINGS, 7, categories)] == [18, 17]
    box = [(10.0, 20.0, 60.0, 80.0)]
    for phrase in (", a cat", "And a cat", "and, a cat", " or a cat"):
        assert to_coco_results([(phrase, (0, 1), box)], 7, categories)[0]["category_id"] == 17, phrase
    own = {"and a cat": 5, "a cat": 17}
    assert to_coco_results(TWO_THINGS[1:], 7, own)[0]["category_id"] == 5
    assert to_coco_results([("android", (0, 7), box)], 7, {"android": 4, "roid": 5})[0]["category_id"] == 4
    assert [row["category_id"] for row in to_coco_results(TWO_THINGS, 7, lambda phrase: len(phrase))] == [5, 9]


EXPORTS = {"coco": lambda found, scores=None: to_coco_results(found, 7, scores=scores), "supervision": to_supervision}


@pytest.fixture(params=EXPORTS)
def export(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("supervision")
    module.Detections = FakeDetections  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)
    return EXPORTS[request.param]


def test_fractions_are_an_error_that_shows_the_box(export: Any) -> None:
    with pytest.raises(
        ValueError, match=r"box \[0\.1, 0\.2, 0\.5, 0\.75\] of 'a dog' looks like fractions, but must be in pixels"
    ):
        export([("a dog", (0, 5), [(0.1, 0.2, 0.5, 0.75)])])
    with pytest.raises(ValueError, match="looks like fractions"):
        export({**RESULT, "boxes": torch.tensor([[10.0, 20.0, 60.0, 80.0], [0.0, 0.0, 1.0, 1.0]])})


def test_boxes_without_an_area_are_dropped_with_a_warning(export: Any, caplog: pytest.LogCaptureFixture) -> None:
    boxes = [(320.0, 96.0, 320.0, 288.0), (0.0, 0.0, 0.0, 0.0), (60.0, 80.0, 10.0, 20.0)]
    with caplog.at_level(logging.WARNING):
        found = export([("a pole", (0, 6), boxes)], scores=[0.3, 0.2, 0.9])
    assert "2 of 3 boxes have no area and were dropped: [320.0, 96.0, 320.0, 288.0] of 'a pole'." in caplog.text
    if isinstance(found, list):
        assert found == [{"image_id": 7, "category_id": 1, "bbox": [10.0, 20.0, 50.0, 60.0], "score": 0.9}]
    else:
        assert (found.xyxy.tolist(), found.confidence.tolist()) == ([[10, 20, 60, 80]], [pytest.approx(0.9)])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None, "high"])
def test_a_score_that_is_not_a_number_is_an_error(export: Any, score: Any) -> None:
    with pytest.raises(ValueError, match=rf"The score of box 2 \('and a cat'\) is {score}, which"):
        export(TWO_THINGS, scores=[0.5, score])


def test_a_box_without_four_finite_numbers_is_an_error(export: Any) -> None:
    for box in ((10.0, 20.0, float("nan"), 80.0), (10.0, 20.0, 60.0), (10.0, 20.0, float("inf"), 80.0)):
        with pytest.raises(ValueError, match=r"Box 1 \('a dog'\) must be four finite numbers, but is \[10"):
            export([("a dog", (0, 5), [box])])


NUMPY_IDS = {"int64": np.int64(7), "uint8": np.uint8(7), "array": np.array(7), "tensor": torch.tensor(7)}


@pytest.mark.parametrize("number", NUMPY_IDS.values(), ids=NUMPY_IDS)
def test_ids_and_numbers_of_any_type_are_written_as_json(number: Any) -> None:
    entities = [("a dog", (0, 5), [np.array([10, 20, 60, 80], dtype=np.float32)])]
    expected = [{"image_id": 7, "category_id": 7, "bbox": [10.0, 20.0, 50.0, 60.0], "score": 0.5}]
    for categories in (number, {"a dog": number}, lambda phrase: number):
        results = to_coco_results(entities, number, categories, scores=np.array([0.5], dtype=np.float32))
        assert json.loads(json.dumps(results)) == expected
    assert json.loads(json.dumps(to_coco_results(entities, np.str_("a"))))[0]["image_id"] == "a"


@pytest.mark.parametrize("number", [True, np.True_, torch.tensor(True), 7.5, None, "dog"])
def test_a_category_that_is_not_an_integer_is_an_error(number: Any) -> None:
    with pytest.raises(ValueError, match="categories must be an integer, but is"):
        to_coco_results(ENTITIES[:1], 7, number)
    with pytest.raises(ValueError, match="The category of 'a dog' must be an integer, but is"):
        to_coco_results(ENTITIES[:1], 7, {"a dog": number})
    if not isinstance(number, str):
        with pytest.raises(ValueError, match="image_id must be an integer or a string, but is"):
            to_coco_results(ENTITIES[:1], number)


def test_boxes_at_the_edges_are_written_with_a_decimal_point() -> None:
    """JSON Lines readers infer a column's type from its first rows, and would truncate later fractions."""
    _, entities = extract_entities("a wall [0,0,1,1]")
    assert json.dumps(entities[0][2]) == "[[0.0, 0.0, 1.0, 1.0]]"
    assert json.dumps(extract_entities("a wall [0,0,1,1]", (200, 100))[1][0][2]) == "[[0.0, 0.0, 200.0, 100.0]]"
    row = to_coco_results([("a wall", (0, 6), [(0, 0, 200, 100)])], 7, scores=[1])[0]
    assert json.dumps([row["bbox"], row["score"]]) == "[[0.0, 0.0, 200.0, 100.0], 1.0]"
