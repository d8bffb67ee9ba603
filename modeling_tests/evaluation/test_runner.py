"""Runs that are killed, changed, shared out, and that meet damaged images; without weights."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fake_lion import FakeLion
from PIL import Image

from transformers_lion.evaluation.data_files import read_rows
from transformers_lion.evaluation.missing import wrong_prediction
from transformers_lion.evaluation.pope import score_pope
from transformers_lion.evaluation.predictions import read_predictions, score_measures
from transformers_lion.evaluation.rec import score_rec
from transformers_lion.evaluation.results import Result
from transformers_lion.evaluation.runner import evaluate, evaluate_file
from transformers_lion.evaluation.settings import EvaluationSettings
from transformers_lion.evaluation.task import Example, Prediction, Scores, Task
from transformers_lion.evaluation.tasks import TASKS
from transformers_lion.evaluation.visdial import score_visdial
from transformers_lion.evaluation.vqa import score_exact_match, score_multiple_choice
from transformers_lion.images import ORIENTATION

KEPT = ("setup.json", "model.json", "predictions.jsonl", "worst.html", "worst.png")
"""Files that are the same however a run came about."""


def load(data: Path, images: Path | None) -> list[Example]:
    return [
        Example(
            row.name("id"), row.text("image"), row.text("question"), row.find("right"),
            candidates=tuple(row.find("choices") or ()), tags=row.tags,
        )
        for row in read_rows(data)
    ]  # fmt: skip


def score(examples: list[Example], predictions: list[Prediction]) -> Scores:
    def judge(example: Example, prediction: Prediction) -> dict[str, float]:
        return {"accuracy": 100.0 * (prediction.answer == example.references), "length": len(prediction.answer)}

    return score_measures(examples, predictions, judge)


TASK = Task("Echo", load, score, "accuracy", 7, {"Small-val": {"LION-12B": 93.5}})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Five images with three questions each, the last of which has choices; and what the fake says of them."""
    rows = []
    for index in range(5):
        Image.new("RGB", (20 + index, 16), (40 * index, 99, 9)).save(tmp_path / f"{index}.png")
        for question in ("What?", "What is that?"):
            rows.append({"id": f"{index} {question}", "image": f"{index}.png", "question": question,
                         "right": f"{20 + index}x16: {question}", "tags": ["dog"] if index else None})  # fmt: skip
        rows.append({"id": f"{index} which", "image": f"{index}.png", "question": "Which?", "choices": ["red", "no"],
                     "right": 1, "tags": rows[-1]["tags"]})  # fmt: skip
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


def settings(place: Path, output: str = "out", **fields: Any) -> EvaluationSettings:
    known = {"task": TASK, "data": place / "data.jsonl", "output": place / output, "model": str(place / "model"),
             "batch_size": 4, "tag_source": "none"}  # fmt: skip
    return EvaluationSettings(**{**known, **fields})


def run(place: Path, lion: FakeLion | None = None, output: str = "out", **fields: Any) -> Result:
    result = evaluate(settings(place, output, **fields), lambda text: None, load=lambda *_: lion or FakeLion())
    assert result is not None
    return result


def lines(place: Path, output: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / output / "predictions.jsonl").read_text().splitlines()]


def same_files(place: Path, first: str, second: str) -> bool:
    names = [sorted(file.name for file in (place / output).iterdir()) for output in (first, second)]
    same = all((place / first / name).read_bytes() == (place / second / name).read_bytes() for name in KEPT)
    return names[0] == names[1] and same


# --- predictions --------------------------------------------------------------------------------------------------


def test_predictions_stand_in_the_datas_order_with_prompt_tags_and_scores(place: Path) -> None:
    run(place, tag_source="data")
    found = lines(place)
    assert [line["id"] for line in found] == [row.name("id") for row in read_rows(place / "data.jsonl")]
    assert found[0] == {"id": "0 What?", "answer": "20x16: What?", "prompt": "None What?", "tags": None}
    assert found[3] == {"id": "1 What?", "answer": "21x16: What?", "prompt": "['dog'] What?", "tags": ["dog"]}
    assert found[5] == {"id": "1 which", "answer": "no", "scores": [-4.5, -3.0], "prompt": "['dog'] Which?",
                        "tags": ["dog"]}  # fmt: skip
    assert read_predictions(place / "out" / "predictions.jsonl")[5] == Prediction("1 which", "no", (-4.5, -3.0))


def test_the_result_has_metrics_settings_versions_and_the_papers_number(place: Path) -> None:
    run(place, dataset="small-VAL", generation={"num_beams": 2})
    result = json.loads((place / "out" / "result.json").read_text())
    assert result["metrics"]["accuracy"] == pytest.approx(100 * 10 / 15)
    assert (result["dataset"], result["paper"]) == ("Small-val", {"LION-12B": 93.5})
    assert result["counts"]["examples"] == result["counts"]["answered_in_this_run"] == 15
    generation = result["model"]["generation"]
    assert (generation["num_beams"], generation["max_new_tokens"]) == (2, 7)
    assert (result["model"]["dtype"], result["model"]["device"], result["model"]["seed"]) == ("float32", "cpu", 0)
    assert {"python", "torch", "transformers", "transformers-lion"} <= result["versions"].keys()
    assert len(result["data"]["sha256"]) == 64
    assert result["seconds"] >= 0


def test_a_data_set_that_the_paper_does_not_have_is_named_with_those_it_has(place: Path) -> None:
    with pytest.raises(ValueError, match="The paper has no Echo results for 'other', only for: Small-val"):
        run(place, dataset="other")


def test_tags_of_data_without_any_are_an_error(place: Path) -> None:
    file = place / "data.jsonl"
    file.write_text(file.read_text().replace('["dog"]', "null"))
    with pytest.raises(ValueError, match="tag_source is 'data', but none of the 15 examples"):
        run(place, tag_source="data")


# --- killed and taken up again ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 30, 200, 500, 10_000])
def test_a_run_that_was_killed_in_the_middle_of_a_line_ends_as_any_other(place: Path, cut: int) -> None:
    run(place, output="whole")
    with pytest.raises(KeyboardInterrupt):
        run(place, FakeLion(stop_after=6))
    file = place / "out" / "predictions.jsonl"
    file.write_bytes(file.read_bytes()[: -cut or None])
    run(place)
    assert same_files(place, "whole", "out")


def test_what_is_done_is_not_done_again(place: Path) -> None:
    first, second, third = FakeLion(stop_after=6), FakeLion(), FakeLion()
    with pytest.raises(KeyboardInterrupt):
        run(place, first)
    assert len(lines(place)) == 6
    run(place, second)
    assert len(first.asked) + len(second.asked) == 15
    result = run(place, third)
    assert third.asked == []
    assert result.counts["answered_in_this_run"] == 0
    assert result.model is not None


def test_a_batch_that_is_half_there_is_answered_as_a_whole(place: Path) -> None:
    run(place)
    file, whole = place / "out" / "predictions.jsonl", (place / "out" / "predictions.jsonl").read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[1:]))
    lion = FakeLion()
    run(place, lion)
    assert sorted(lion.asked) == ["What is that?", "What?", "Which?"]
    assert file.read_bytes() == whole


def test_files_of_other_processes_are_taken_in(place: Path) -> None:
    run(place, output="whole")
    run(place)
    rows = (place / "out" / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (place / "out" / "predictions.jsonl").write_bytes(b"".join(rows[:6]))
    (place / "out" / "predictions.3.jsonl").write_bytes(b"".join(rows[6:12]) + rows[12][:20])
    lion = FakeLion()
    run(place, lion)
    assert len(lion.asked) == 3
    assert same_files(place, "whole", "out")


def test_more_examples_and_other_batches_go_on_in_the_same_folder(place: Path) -> None:
    run(place, limit=6)
    assert len(lines(place)) == 6
    lion = FakeLion()
    run(place, lion, batch_size=6)
    assert len(lion.asked) == 9
    assert run(place, limit=3).counts["examples"] == 3
    assert len(lines(place)) == 15


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "other"}, r"made with model .*/model \(sha256 \w{12}\), but now it is .*/other \(sha256"),
    "tags": ({"tag_source": "data"}, "made with tag_source none, but now it is data"),
    "beams": ({"generation": {"num_beams": 4}}, "made with num_beams unset, but now it is 4"),
    "length": ({"generation": {"max_new_tokens": 4}}, "made with max_new_tokens 7, but now it is 4"),
    "dtype": ({"dtype": "bfloat16"}, "made with dtype unset, but now it is bfloat16"),
    "seed": ({"seed": 1}, "made with seed 0, but now it is 1"),
    "data": ({"data": "other.jsonl"}, r"with data .*data.jsonl \(sha256 \w{12}\), but now it is .*other.jsonl \(sha"),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_setup_is_an_error_that_names_both(place: Path, change: dict[str, Any], words: str) -> None:
    run(place)
    before = (place / "out" / "predictions.jsonl").read_bytes()
    (place / "other").mkdir()
    (place / "other" / "config.json").write_text("{}")
    (place / "other.jsonl").write_text((place / "data.jsonl").read_text().replace("What?", "Who?"))
    paths = {"model": lambda name: str(place / name), "data": lambda name: place / name}
    with pytest.raises(ValueError, match=words):
        run(place, **{name: paths.get(name, lambda value: value)(value) for name, value in change.items()})
    assert (place / "out" / "predictions.jsonl").read_bytes() == before


def test_a_model_that_was_trained_further_in_its_folder_is_another(place: Path) -> None:
    run(place)
    (place / "model" / "model.safetensors").write_bytes(b"new")
    with pytest.raises(ValueError, match="made with model"):
        run(place)


def test_a_setup_without_predictions_binds_nobody(place: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(place, FakeLion(stop_after=0))
    assert run(place, seed=3).is_complete


def test_predictions_of_unknown_origin_are_not_added_to(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "predictions.jsonl").write_text('{"id": "a", "answer": "b"}\n')
    with pytest.raises(ValueError, match=r"has predictions\.jsonl, but no setup\.json"):
        run(place)


def test_a_second_run_on_the_folder_is_refused_and_the_first_goes_on(place: Path) -> None:
    class Meddled(FakeLion):
        def answer(self, *arguments: Any, **options: Any) -> Any:
            with pytest.raises(ValueError, match=rf"out: another run is writing it .process {os.getpid()}"):
                run(place)
            with pytest.raises(ValueError, match="out: another run is writing it"):
                evaluate_file(settings(place), place / "other.jsonl")
            return super().answer(*arguments, **options)

    (place / "other.jsonl").write_text(
        "".join(f'{{"id": "{x.id}", "answer": ""}}\n' for x in load(place / "data.jsonl", None))
    )
    run(place, output="whole")
    assert run(place, Meddled()).is_complete
    assert same_files(place, "whole", "out")


def test_a_full_disk_is_named_and_what_was_done_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(place, output="whole")
    written: list[int] = []

    def write(descriptor: int, content: bytes) -> int:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(real(descriptor, content[: 20 if written else None]))
        return written[-1]

    real = os.write
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match=r"No space left on device: '.*predictions\.jsonl"):
        run(place)
    monkeypatch.undo()
    assert len(lines(place)) == 3
    run(place)
    assert same_files(place, "whole", "out")


# --- damaged images ---------------------------------------------------------------------------------------------


def test_a_damaged_image_costs_its_own_examples_only(place: Path) -> None:
    (place / "2.png").write_bytes(b"no image")
    result = run(place)
    assert not result.is_complete
    assert "15 examples, of which 3 have no answer and count as wrong" in result.to_sentence()
    assert result.counts["missing"] == 3
    errors = [json.loads(line) for line in (place / "out" / "errors.jsonl").read_text().splitlines()]
    assert [error["id"] for error in errors] == ["2 What?", "2 What is that?", "2 which"]
    assert all("2.png' is not an image" in error["error"] for error in errors)
    assert result.metrics["accuracy"] == pytest.approx(100 * 8 / 15)
    assert len(lines(place)) == 15


def test_an_image_that_was_repaired_is_tried_again(place: Path) -> None:
    whole = (place / "2.png").read_bytes()
    run(place, output="whole")
    (place / "2.png").write_bytes(b"no image")
    run(place)
    (place / "2.png").write_bytes(whole)
    assert run(place).is_complete
    assert same_files(place, "whole", "out")


def test_a_scored_file_counts_its_errors_as_wrong(place: Path) -> None:
    (place / "2.png").unlink()
    result = run(place)
    again = evaluate_file(settings(place, "again"), place / "out" / "predictions.jsonl")
    assert again.metrics == result.metrics
    assert again.counts["missing"] == 3
    assert (again.setup, again.model) == (result.setup, result.model)
    assert not (place / "again" / "setup.json").exists()


WRONG: dict[str, tuple[Any, Example, str]] = {
    "box": (score_rec, Example("a", "a.jpg", "?", [0.1, 0.2, 0.3, 0.4]), "accuracy"),
    "words": (score_exact_match, Example("a", "a.jpg", "?", ["red"]), "accuracy"),
    "yes": (score_pope, Example("a", "a.jpg", "?", "yes"), "accuracy"),
    "no": (score_pope, Example("a", "a.jpg", "?", "no"), "accuracy"),
    "choice": (score_multiple_choice, Example("a", "a.jpg", "?", 1, candidates=("x", "y", "z")), "accuracy"),
    "dialogue": (
        score_visdial, Example("a", "a.jpg", "?", {"gt_index": 0}, candidates=("x", "y", "z")), "recall_at_1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("score_task", "example", "figure"), WRONG.values(), ids=WRONG.keys())
def test_a_missing_answer_is_wrong_in_every_task(score_task: Any, example: Example, figure: str) -> None:
    assert score_task([example], [wrong_prediction(example)]).metrics[figure] == 0


def test_a_missing_ranking_is_the_worst_one() -> None:
    references = {"gt_index": 1, "relevance": [0.5, 1.0, 0.0, 0.0]}
    example = Example("a", "a.jpg", "?", references, candidates=("w", "x", "y", "z"))
    metrics = score_visdial([example], [wrong_prediction(example)]).metrics
    assert (metrics["mean_rank"], metrics["ndcg"]) == (4, 0)


@pytest.fixture
def phone(place: Path) -> Path:
    """Images with boxes whose records give a size: one turned by EXIF, one resized, one cropped, one as it is."""
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    Image.new("RGB", (48, 64)).save(place / "turned.jpg", exif=turned)
    Image.new("RGB", (31, 41)).save(place / "resized.jpg")
    Image.new("RGB", (48, 40)).save(place / "cropped.jpg")
    Image.new("RGB", (48, 64)).save(place / "plain.jpg")
    names = ("turned", "resized", "cropped", "plain")
    rows = [{"id": name, "image": f"{name}.jpg", "phrase": "it", "bbox": [4, 4, 40, 60], "width": 48, "height": 64}
            for name in names]  # fmt: skip
    (place / "boxes.json").write_text(json.dumps(rows))
    return place


def test_a_record_that_gives_its_image_another_size_is_named(phone: Path) -> None:
    result = run(phone, task=TASKS["rec"], data=phone / "boxes.json")
    errors = {row["id"]: row["error"] for row in map(json.loads, (phone / "out" / "errors.jsonl").open())}
    assert list(errors) == ["turned", "cropped"]
    assert errors["turned"].startswith(
        "Image turned.jpg is 64 x 48 pixels upright, but the data say 48 x 64: its EXIF orientation rotates"
    )
    assert "Image cropped.jpg is 48 x 40 pixels upright, but the data say 48 x 64: boxes in pixels" in errors["cropped"]
    assert result.counts["missing"] == 2


def test_an_image_without_a_size_that_was_repaired_is_tried_again(phone: Path) -> None:
    rows = json.loads((phone / "boxes.json").read_text())
    sizeless = [{name: row[name] for name in ("id", "image", "phrase", "bbox")} for row in rows[2:]]
    (phone / "boxes.json").write_text(json.dumps(sizeless))
    (phone / "cropped.jpg").write_bytes(b"no image")
    fields = {"task": TASKS["rec"], "data": phone / "boxes.json"}
    result = run(phone, **fields)
    again = evaluate_file(settings(phone, "again", **fields, images=phone), phone / "out" / "predictions.jsonl")
    assert (result.counts["missing"], again.counts["missing"]) == (1, 1)
    Image.new("RGB", (48, 64)).save(phone / "cropped.jpg")
    assert run(phone, **fields).counts == {"examples": 2, "missing": 0, "answered_in_this_run": 2}


# --- batching -----------------------------------------------------------------------------------------------------


def test_answers_that_depend_on_their_batch_are_counted_and_shown(place: Path) -> None:
    result = run(place, FakeLion(leaky=True), check_batching=6)
    assert result.check is not None
    assert (result.check["examples"], result.check["differ"]) == (6, 4)  # the ranked ones do not differ
    row = result.check["differences"][0]
    assert row["alone"].endswith("(1)")
    assert not row["batched"].endswith("(1)")
    assert not result.is_complete


def test_answers_that_do_not_depend_on_their_batch_pass(place: Path) -> None:
    lion = FakeLion()
    result = run(place, lion, check_batching=100, generation={"num_beams": 2})
    assert result.check == {"examples": 15, "differ": 0, "differences": []}
    assert result.is_complete
    assert all(call["do_sample"] is False and call["num_beams"] == 2 for call in lion.calls if "do_sample" in call)


def test_the_check_is_in_float32_whatever_the_evaluation(place: Path) -> None:
    loaded: list[str | None] = []

    def load_fake(settings: EvaluationSettings, device: str, dtype: str | None) -> Any:
        loaded.append(dtype)
        return FakeLion()

    evaluate(settings(place, check_batching=1, dtype="bfloat16"), lambda text: None, load=load_fake)
    assert loaded == ["float32", "bfloat16"]
