"""From logits to tags."""

from typing import Any

import pytest
import torch

from ram.factories import tiny_config
from transformers_lion.ram.tags import select_tags

SCORES = torch.tensor([[0.9, 0.2, 0.95, 0.5, 0.7], [0.1, 0.1, 0.1, 0.1, 0.1]])
CONFIG = tiny_config(thresholds=[0.5, 0.1, 0.96, 0.4, 0.7])  # red, green, blue, round, large


def names(**selection: Any) -> list[str]:
    return [tag["label"] for tag in select_tags(SCORES.logit(), CONFIG, **selection)[0]]


def test_a_tag_is_present_above_its_own_threshold_and_in_the_lists_order() -> None:
    tags = select_tags(SCORES.logit(), CONFIG)
    assert [tag["label"] for tag in tags[0]] == ["red", "green", "round"]
    assert [tag["score"] for tag in tags[0]] == pytest.approx([0.9, 0.2, 0.5])


def test_a_tag_at_its_threshold_is_absent() -> None:
    assert select_tags(torch.zeros(1, 5), tiny_config(thresholds=[0.5] * 5)) == [[]]


def test_an_image_without_tags_has_an_empty_list() -> None:
    assert select_tags(SCORES.logit(), CONFIG, threshold=0.5)[1] == []


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"threshold": 0.6}, ["red", "blue", "large"]),
        ({"threshold": 0.0}, ["red", "green", "blue", "round", "large"]),
        ({"threshold": 0.6, "top_k": 2}, ["red", "blue"]),
        ({"threshold": 0.6, "top_k": 2, "sort_by_score": True}, ["blue", "red"]),
        ({"threshold": 0.6, "sort_by_score": True}, ["blue", "red", "large"]),
        ({"top_k": 10}, ["red", "green", "round"]),
        ({"allow": ["round", "red", "blue"]}, ["red", "round"]),
        ({"allow": []}, []),
        ({"drop": "red"}, ["green", "round"]),
        ({"allow": ["red", "green"], "drop": ["red"]}, ["green"]),
        ({"drop": ["red"], "top_k": 1}, ["round"]),
    ],
)
def test_tags_can_be_selected(selection: dict[str, Any], expected: list[str]) -> None:
    assert names(**selection) == expected


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"allow": ["red", "purple"]}, "purple"),
        ({"drop": ["Red"]}, "Red"),
        ({"threshold": 65}, "65"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_a_wrong_selection_is_refused(selection: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        names(**selection)


def test_logits_of_another_model_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"7 tags.*has 5"):
        select_tags(torch.zeros(1, 7), CONFIG)


def test_scores_of_half_precision_are_compared_in_full() -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, 1.0, 4.0]])
    assert select_tags(logits.bfloat16(), CONFIG) == select_tags(logits, CONFIG)
