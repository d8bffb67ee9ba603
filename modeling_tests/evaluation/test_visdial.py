"""VisDial: metrics compared with the challenge's code, ties, and the data format."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe import GOLDENS
from transformers_lion.evaluation.task import Example, Prediction
from transformers_lion.evaluation.visdial import compute_ndcg, load_visdial, rank_right_answer, score_visdial

GOLDEN = json.loads((GOLDENS / "evaluation" / "official.json").read_text(encoding="utf-8"))["visdial"]
OFFICIAL = {"mrr": "mrr", "r@1": "recall_at_1", "r@5": "recall_at_5", "r@10": "recall_at_10", "ndcg": "ndcg"}
DATA: dict[str, Any] = {
    "split": "val2018",
    "data": {
        "questions": ["is it big", "what color?"],
        "answers": ["yes", "no", "red"],
        "dialogs": [
            {
                "image_id": 185565,
                "caption": "a dog",
                "dialog": [
                    {"question": 0, "answer": 1, "answer_options": [0, 1], "gt_index": 1},
                    {"question": 1, "answer": 2, "answer_options": [2, 0], "gt_index": 0},
                ],
            }
        ],
    },
}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_metrics_are_those_of_the_challenge() -> None:
    examples, predictions = [], []
    for place, (scores, right, relevance) in enumerate(
        zip(GOLDEN["scores"], GOLDEN["right"], GOLDEN["relevance"], strict=True)
    ):
        references = {"gt_index": right, "relevance": relevance}
        examples.append(Example(str(place), "a.jpg", "?", references, candidates=("x",) * len(scores)))
        predictions.append(Prediction(str(place), "x", tuple(scores)))
    metrics = score_visdial(examples, predictions).metrics
    for name, ours in OFFICIAL.items():
        assert metrics[ours] == pytest.approx(100 * GOLDEN["metrics"][name], rel=1e-5)
    assert metrics["mean_rank"] == pytest.approx(GOLDEN["metrics"]["mean"])


def test_ranks_by_hand() -> None:
    found = rank_right_answer([-1.0, -3.0, -2.0, -9.0], 2)
    assert found == {"mrr": 50, "recall_at_1": 0, "recall_at_5": 100, "recall_at_10": 100, "mean_rank": 2}


def test_equals_count_as_if_in_a_random_order() -> None:
    """One is better and two are equal: rank 2 or 3."""
    found = rank_right_answer([-2.0, -2.0, -1.0], 0)
    assert found["mean_rank"] == 2.5
    assert found["mrr"] == pytest.approx(100 * (1 / 2 + 1 / 3) / 2)


def test_a_model_that_knows_nothing_is_worth_what_chance_is() -> None:
    found = rank_right_answer([-1.0] * 100, 7)
    assert (found["recall_at_1"], found["recall_at_5"], found["mean_rank"]) == pytest.approx((1, 5, 50.5))


def test_gain_by_hand() -> None:
    """Two are relevant, so two places count: 0.5 at the first of 1 and 0.5."""
    best = 1 + 0.5 / 1.5849625007211562
    assert compute_ndcg([-2.0, -1.0, -1.5], [1.0, 0.5, 0.0]) == pytest.approx(0.5 / best)
    assert compute_ndcg([-1.0, -1.5, -3.0], [1.0, 0.5, 0.0]) == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(-5, 0), st.integers(0, 4)), min_size=1), st.randoms())
def test_the_order_of_candidates_does_not_count(pairs: list, shuffler: Any) -> None:
    pairs.append((-1, 1))
    before = compute_ndcg([float(score) for score, _ in pairs], [float(value) for _, value in pairs])
    shuffler.shuffle(pairs)
    after = compute_ndcg([float(score) for score, _ in pairs], [float(value) for _, value in pairs])
    assert before == pytest.approx(after)
    assert 0 <= before <= 1 + 1e-9


def test_dialogues_are_read(tmp_path: Path) -> None:
    first, second = load_visdial(write(tmp_path / "visdial_1.0_val.json", DATA))
    assert (first.id, second.id) == ("185565-1", "185565-2")
    assert first.image == "VisualDialog_val2018_000000185565.jpg"
    assert first.question == "Dialog history: a dog Question: is it big? Short answer:"
    assert second.question == "Dialog history: a dog. is it big? no Question: what color? Short answer:"
    assert (second.candidates, second.references) == (("red", "yes"), {"gt_index": 0})


def test_relevance_is_read_from_the_file_beside(tmp_path: Path) -> None:
    write(
        tmp_path / "visdial_1.0_val_dense_annotations.json",
        [{"image_id": 185565, "round_id": 2, "gt_relevance": [0.5, 1.0]}],
    )
    examples = load_visdial(write(tmp_path / "visdial_1.0_val.json", DATA))
    assert examples[1].references["relevance"] == (0.5, 1.0)
    metrics = score_visdial(
        examples, [Prediction("185565-1", "yes", (-2.0, -1.0)), Prediction("185565-2", "yes", (-2.0, -1.0))]
    ).metrics
    assert (metrics["mrr"], metrics["ndcg"]) == (75, 100)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"gt_index": None}, "dialog, record 1: expected gt_index.*test split"),
        ({"gt_index": 2}, "expected an index below 2 in gt_index, not 2"),
        ({"answer_options": [0, 9]}, "expected an index below 3, not 9"),
        ({"question": -1}, "expected an index below 2, not -1"),
    ],
)
def test_a_round_that_is_wrong_is_named(tmp_path: Path, turn: dict[str, Any], message: str) -> None:
    data = json.loads(json.dumps(DATA))
    data["data"]["dialogs"][0]["dialog"][0].update(turn)
    with pytest.raises(ValueError, match=message) as error:
        load_visdial(write(tmp_path / "a.json", data))
    assert "dialogs, record 1" in str(error.value)


def test_relevance_of_no_round_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a_dense_annotations.json", [{"image_id": 1, "round_id": 1, "gt_relevance": [1.0]}])
    with pytest.raises(ValueError, match=r"1 of 1 dense annotations belong to no round: 1-1\."):
        load_visdial(write(tmp_path / "a.json", DATA))


def test_a_file_in_another_form_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an object in VisDial's format"):
        load_visdial(write(tmp_path / "a.json", [{"id": 1}]))
