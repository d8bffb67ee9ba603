"""Captions: words, metrics compared with pycocoevalcap and Java, and data formats."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldens.evaluation.make_captions import draw_images, score_images
from recipe import GOLDENS
from transformers_lion.evaluation import java_metrics
from transformers_lion.evaluation.caption_metrics import compute_bleu, compute_cider, compute_rouge
from transformers_lion.evaluation.caption_words import split_words
from transformers_lion.evaluation.captioning import load_captions, score_captions
from transformers_lion.evaluation.task import Example, Prediction, Scores

GOLDEN = json.loads((GOLDENS / "evaluation" / "captions.json").read_text(encoding="utf-8"))
WORDS = st.lists(st.sampled_from("abcdef"), max_size=8)
IMAGE_ROWS = [{"id": 1, "file_name": "one.jpg"}, {"id": 2, "file_name": "two.jpg"}]


def score(images: Sequence[dict[str, Any]]) -> Scores:
    examples = [Example(str(place), "a.jpg", "?", image["references"]) for place, image in enumerate(images)]
    return score_captions(examples, [Prediction(str(place), image["answer"]) for place, image in enumerate(images)])


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def captions_of(examples: Sequence[Example]) -> dict[str, list[str]]:
    return {example.image: example.references for example in examples}


needs_java = pytest.mark.skipif(java_metrics.find_obstacle("METEOR") is not None, reason="needs Java, pycocoevalcap")


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_metrics.shutil, "which", lambda name: None)


def test_phrases_have_the_words_that_the_java_program_finds() -> None:
    found = {phrase: " ".join(split_words(phrase)) for phrase in GOLDEN["words"]}
    assert found == GOLDEN["words"]


@given(st.text())
def test_any_text_has_words_without_spaces_capitals_or_full_stops(text: str) -> None:
    for word in split_words(text):
        assert word == word.lower() or not word.isascii()
        assert word not in {".", ",", "-", "'"}


@pytest.mark.parametrize("part", ["a.", "'", "-", "a'b", "n't", "x@", "<a", "1.", "é", "a/b-", "aeiou'"])
def test_words_take_time_linear_in_a_captions_length(part: str) -> None:
    assert len(split_words(part * 20_000)) <= 20_000 * len(part)


@pytest.mark.usefixtures("no_java")
def test_metrics_without_java_are_those_of_pycocoevalcap_with_it() -> None:
    metrics, expected = score(GOLDEN["images"]).metrics, GOLDEN["metrics"]
    assert metrics["cider"] == pytest.approx(expected["cider"], abs=0.1)
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"):
        assert metrics[name] == pytest.approx(expected[name], abs=0.1)


@needs_java
def test_where_java_is_both_are_run_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_images(seed=1)
    expected = score_images(images, meteor=False)
    monkeypatch.setattr(java_metrics.shutil, "which", lambda name: None)
    metrics = score(images).metrics
    assert metrics["cider"] == pytest.approx(expected["cider"], abs=0.1)
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"):
        assert metrics[name] == pytest.approx(expected[name], abs=0.1)


@needs_java
def test_meteor_is_that_of_pycocoevalcap() -> None:
    assert score(GOLDEN["images"]).metrics["meteor"] == pytest.approx(GOLDEN["metrics"]["meteor"], abs=0.1)


def test_bleu_by_hand() -> None:
    """Five words for four: 4 of 5 words, 2 of 4 pairs and 1 of 3 triples are right, and no four in a row."""
    found = compute_bleu([["a", "cat", "on", "the", "mat"]], [[["the", "cat", "on", "the", "mat"], ["mat"]]])
    assert found == pytest.approx([4 / 5, math.sqrt(4 / 5 * 3 / 4), (4 / 5 * 3 / 4 * 2 / 3) ** (1 / 3), 0.2**0.25])


def test_a_short_caption_costs_bleu() -> None:
    assert compute_bleu([["a", "cat"]], [[["a", "cat", "sits", "here"]]])[0] == pytest.approx(math.exp(1 - 4 / 2))


def test_rouge_by_hand() -> None:
    """Three of four words in order, of the five that the reference has."""
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert compute_rouge(["a", "cat", "mat", "sits"], [["a", "cat", "sits", "on", "mat"]]) == pytest.approx(expected)


def test_cider_by_hand() -> None:
    """One image's words are those of no other: all that counts is its own cosine, 1 for one to four words in a row."""
    assert compute_cider([["a", "b", "c", "d"], ["x"]], [[["a", "b", "c", "d"]], [["y"]]]) == pytest.approx([10.0, 0.0])


def test_half_a_caption_has_half_the_cosines_and_a_penalty_for_its_length() -> None:
    """Of a b c d: a b has cosines 2/2/sqrt(2) and 1/sqrt(3), and two pairs fewer."""
    found = compute_cider([["a", "b"], ["x"]], [[["a", "b", "c", "d"]], [["y"]]])[0]
    expected = 10 * (2 / math.sqrt(2 * 4) + 1 / math.sqrt(3)) / 4 * math.exp(-4 / 72)
    assert found == pytest.approx(expected)


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_metrics_are_shares(images: list) -> None:
    answers, references = [answer for answer, _ in images], [group for _, group in images]
    assert all(0 <= value <= 10 + 1e-9 for value in compute_cider(answers, references))
    assert all(0 <= value <= 1 for value in compute_bleu(answers, references))
    assert all(0 <= compute_rouge(*image) <= 1 + 1e-9 for image in images)


@pytest.mark.usefixtures("no_java")
def test_an_empty_answer_is_worth_nothing() -> None:
    found = score([{"answer": "", "references": ["a cat"]}, {"answer": "a dog", "references": ["a dog"]}])
    assert found.per_example["0"] == 0 < found.per_example["1"]


@pytest.mark.usefixtures("no_java")
def test_the_missing_requirement_of_meteor_and_spice_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        metrics = score([{"answer": "a cat", "references": ["a cat"]}]).metrics
    assert "meteor" not in metrics
    assert "METEOR is skipped: java is not on the PATH." in caplog.text
    assert "SPICE is skipped" in caplog.text


def test_cocos_captions_are_read(tmp_path: Path) -> None:
    annotations = [{"image_id": 2, "caption": "b"}, {"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "c"}]
    data = write(tmp_path / "a.json", {"images": IMAGE_ROWS, "annotations": annotations})
    examples = load_captions(data)
    assert captions_of(examples) == {"one.jpg": ["a"], "two.jpg": ["b", "c"]}
    assert [example.id for example in examples] == ["1", "2"]


@pytest.mark.usefixtures("no_java")
def test_domains_of_nocaps_have_their_own_metrics(tmp_path: Path) -> None:
    images = [{**image, "domain": name} for image, name in zip(IMAGE_ROWS, ("in", "out"), strict=True)]
    annotations = [{"image_id": 2, "caption": "b"}, {"image_id": 1, "caption": "a"}]
    examples = load_captions(write(tmp_path / "a.json", {"images": images, "annotations": annotations}))
    metrics = score_captions(examples, [Prediction("1", "a"), Prediction("2", "c")]).metrics
    assert (metrics["bleu_1 in"], metrics["bleu_1 out"], metrics["bleu_1"]) == pytest.approx((100, 0, 50))


def test_images_and_captions_that_do_not_match_are_counted(tmp_path: Path) -> None:
    content = {"images": IMAGE_ROWS, "annotations": [{"image_id": 1, "caption": "a"}]}
    with pytest.raises(ValueError, match=r"2 images do not match the captions of 1 images: 1 images have .* 2\."):
        load_captions(write(tmp_path / "a.json", content))


def karpathy(**splits: str) -> dict[str, Any]:
    return {
        "images": [
            {"filepath": "val2014", "filename": f"{name}.jpg", "split": split, "sentences": [{"raw": "A cat."}]}
            for name, split in splits.items()
        ]
    }


def test_of_a_karpathy_split_the_test_is_read(tmp_path: Path) -> None:
    data = write(tmp_path / "a.json", karpathy(a="train", b="val", c="test", d="restval"))
    assert captions_of(load_captions(data)) == {"val2014/c.jpg": ["A cat."]}


def test_of_a_karpathy_split_without_a_test_what_is_not_for_training_is_read(tmp_path: Path) -> None:
    data = write(tmp_path / "a.json", karpathy(a="train", b="val", d="restval"))
    assert list(captions_of(load_captions(data))) == ["val2014/b.jpg"]


def test_images_are_found_without_the_folder_that_a_karpathy_split_names(tmp_path: Path) -> None:
    (tmp_path / "c.jpg").touch()
    data = write(tmp_path / "a.json", karpathy(c="test"))
    assert load_captions(data, tmp_path)[0].image == "c.jpg"


RECORDS = {
    "caption": {"image": "a.jpg", "caption": "one"},
    "captions": {"image": "a.jpg", "captions": ["one"]},
    "flickr": {"image": "a.jpg", "caption": ["one"]},
    "textcaps": {"image_id": "a", "reference_strs": ["one"], "caption_str": "two"},
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("form", ["lines", "list", "data"])
def test_records_are_read(tmp_path: Path, record: dict[str, Any], form: str) -> None:
    data = tmp_path / "a.json"
    text = json.dumps(record)
    data.write_text({"lines": f"{text}\n{text}\n", "list": f"[{text}]", "data": f'{{"data": [{text}]}}'}[form])
    assert captions_of(load_captions(data)) == {"a.jpg": ["one"]}


@pytest.mark.parametrize(
    ("file", "images", "expected"),
    [
        ("train_images/a.jpg", ".", "train_images/a.jpg"),
        ("train_images/a.jpg", "train_images", "a.jpg"),
        ("images/a.jpg", "images", "a.jpg"),
        ("train/a.jpg", ".", "train/a.jpg"),
        ("elsewhere/a.jpg", ".", "train/a.jpg"),
    ],
)
def test_an_image_of_textcaps_is_found_where_it_is_published(
    tmp_path: Path, file: str, images: str, expected: str
) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_bytes(b"")
    record = {"image_id": "a", "image_path": "train/a.jpg", "set_name": "val", "reference_strs": ["one"]}
    [example] = load_captions(write(tmp_path / "a.json", {"data": [record]}), tmp_path / images)
    assert (example.id, example.image) == ("a", expected)


def test_an_image_of_another_folder_is_not_taken_for_one_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"")
    [example] = load_captions(write(tmp_path / "a.json", [{"image": "val/1.jpg", "caption": "one"}]), tmp_path)
    assert example.image == "val/1.jpg"


def test_captions_of_one_image_are_put_together(tmp_path: Path) -> None:
    data = write(tmp_path / "a.json", [{"image": "a.jpg", "caption": "one"}, {"image": "a.jpg", "caption": "two"}])
    assert captions_of(load_captions(data)) == {"a.jpg": ["one", "two"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image": "a.jpg"}], "record 1: expected captions or caption"),
        ([{"image": "a.jpg", "caption": "a"}, {"image": "a.jpg", "caption": 3}], "record 2: expected a caption or"),
        ([{"caption": "a"}], "record 1: expected image or"),
        ([{"image": "a.jpg", "question": "?", "caption": "a"}], "record 1: question is not read: captions answer"),
        ([], "expected a list of records or an object"),
        (["a"], "record 1: expected an object, not"),
    ],
)
def test_an_error_names_the_file_and_the_record(tmp_path: Path, content: Any, message: str) -> None:
    data = write(tmp_path / "a.json", content)
    with pytest.raises(ValueError, match=message) as error:
        load_captions(data)
    assert str(data) in str(error.value)
