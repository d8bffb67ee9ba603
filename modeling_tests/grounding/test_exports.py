import json
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from transformers_lion.grounding import to_coco_results, to_supervision

ENTITIES = [
    ("a dog", (0, 5), [(10.0, 20.0, 60.0, 80.0), (0.0, 0.0, 5.0, 5.0)]),
    ("a cat", (6, 11), [(1.0, 2.0, 3.0, 4.0)]),
]
RESULT = {
    "boxes": torch.tensor([[10.0, 20.0, 60.0, 80.0], [1.0, 2.0, 3.0, 4.0]]),
    "text_labels": ["a dog", "a cat"], "labels": ["a dog", "a cat"], "scores": torch.tensor([0.75, 0.5]),
}  # fmt: skip


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
    assert detections.class_id.tolist() == [0, 0, 1]
    assert detections.data["class_name"].tolist() == ["a dog", "a dog", "a cat"]


def test_a_detectors_result_keeps_its_scores(supervision: Any) -> None:
    detections = to_supervision(RESULT, class_names=["a bird", "a cat", "a dog"])
    assert detections.confidence.tolist() == [0.75, 0.5]
    assert detections.class_id.tolist() == [2, 1]


def test_no_box_becomes_no_detection(supervision: Any) -> None:
    assert to_supervision([]).xyxy.shape == (0, 4)


def test_without_supervision_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"transformers-lion\[supervision\]"):
        to_supervision(ENTITIES)


def test_cocos_results_have_corner_width_and_height() -> None:
    results = to_coco_results(ENTITIES, image_id=7, categories={"a dog": 18, "a cat": 17}, scores=[0.9, 0.5, 0.1])
    assert json.loads(json.dumps(results)) == [
        {"image_id": 7, "category_id": 18, "bbox": [10.0, 20.0, 50.0, 60.0], "score": 0.9},
        {"image_id": 7, "category_id": 18, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.5},
        {"image_id": 7, "category_id": 17, "bbox": [1.0, 2.0, 2.0, 2.0], "score": 0.1},
    ]
    assert [entry["score"] for entry in to_coco_results(RESULT, image_id=7)] == [0.75, 0.5]
    assert [entry["category_id"] for entry in to_coco_results(ENTITIES, image_id=7)] == [1, 1, 1]


def test_counts_and_categories_have_to_fit() -> None:
    with pytest.raises(ValueError, match="2 scores for 3 boxes"):
        to_coco_results(ENTITIES, 1, scores=[0.1, 0.2])
    with pytest.raises(ValueError, match="'a cat' is none of 'a dog'"):
        to_coco_results(ENTITIES, 1, {"a dog": 1})
    with pytest.raises(ValueError, match="its own scores"):
        to_coco_results(RESULT, 1, scores=[0.1, 0.2])
