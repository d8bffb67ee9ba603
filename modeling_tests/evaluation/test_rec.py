"""Referring expressions: metrics computed by hand, data formats, and ambiguous boxes."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transformers_lion.evaluation.rec import load_rec, score_rec
from transformers_lion.evaluation.task import Example, Prediction
from transformers_lion.grounding import format_boxes
from transformers_lion.images import ORIENTATION

BOX = [0.1, 0.2, 0.5, 0.8]
"""The box in all formats below, in an image of 200 by 100 pixels."""
XYXY, XYWH = [20, 20, 100, 80], [20, 20, 80, 60]
SIZE = {"width": 200, "height": 100}
RECORD = {"image": "a.jpg", "phrase": "the dog", **SIZE}
IMAGE_ROWS = [{"id": 7, "file_name": "a.jpg", **SIZE}]
FRACTION = st.integers(0, 1000).map(lambda value: value / 1000)


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def score(answer: str, box: list[float] = BOX) -> dict[str, float]:
    example = Example("1", "a.jpg", "?", box, "region_level")
    return score_rec([example], [Prediction("1", answer)]).metrics


FORMS: dict[str, Any] = {
    "record": {"id": 3, **RECORD, "bbox": XYXY},
    "list": [{"id": 3, **RECORD, "box": XYXY}],
    "Shikra": {"id": 3, "img_path": "a.jpg", "expression": "the dog", "bbox": XYXY, **SIZE},
    "sentences": [{"id": 3, "file_name": "a.jpg", "sentences": ["the dog"], "bbox": XYXY, **SIZE}],
    "sentences of REFER": [{"id": 3, "file_name": "a.jpg", "sentences": [{"sent": "the dog"}], "bbox": XYXY, **SIZE}],
    "xywh told": {"id": 3, **RECORD, "bbox": XYWH, "box_format": "xywh"},
    "fractions told": {"id": 3, "image": "a.jpg", "phrase": "the dog", "bbox": BOX, "box_unit": "fractions"},
    "thousandths told": {"id": 3, **RECORD, "bbox": [100, 200, 500, 800], "box_unit": "thousandths"},
    "MDETR": {
        "images": [{**IMAGE_ROWS[0], "caption": "the dog"}],
        "annotations": [{"id": 3, "image_id": 7, "category_id": 1, "bbox": XYWH}],
    },
    "COCO with phrases": {
        "images": IMAGE_ROWS,
        "annotations": [{"id": 3, "image_id": 7, "category_id": 1, "bbox": XYWH, "caption": "the dog"}],
    },
    "COCO": {
        "images": IMAGE_ROWS,
        "annotations": [{"id": 3, "image_id": 7, "category_id": 1, "bbox": XYWH}],
        "categories": [{"id": 1, "name": "the dog"}],
    },
}


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
def test_forms_of_data_are_read(tmp_path: Path, content: Any) -> None:
    [example] = load_rec(write(tmp_path / "a.json", content))
    assert example == Example(
        "3",
        "a.jpg",
        "How can I locate the dog in the image? Please provide the coordinates.",
        pytest.approx(BOX),
        "region_level",
    )


def refer(**splits: str) -> list[dict[str, Any]]:
    return [
        {
            "ref_id": number,
            "ann_id": 3,
            "image_id": 7,
            "split": split,
            "file_name": "a_1.jpg",
            "sentences": [{"sent_id": f"{name}{part}", "sent": f"dog {part}", "raw": "Dog"} for part in (1, 2)],
        }
        for number, (name, split) in enumerate(splits.items())
    ]


@pytest.fixture
def refer_folder(tmp_path: Path) -> Path:
    annotations = [{"id": 3, "image_id": 7, "bbox": XYWH}]
    write(tmp_path / "instances.json", {"images": IMAGE_ROWS, "annotations": annotations})
    return tmp_path


def test_references_of_refer_are_read_with_their_instances(refer_folder: Path) -> None:
    data = write(refer_folder / "refs(unc).json", refer(a="train", b="testA", c="testB"))
    examples = load_rec(data)
    assert [(example.id, example.group) for example in examples] == [
        ("b1", "testA"), ("b2", "testA"), ("c1", "testB"), ("c2", "testB"),
    ]  # fmt: skip
    assert (examples[0].image, examples[0].references) == ("a.jpg", pytest.approx(BOX))
    assert "locate dog 1 in" in examples[0].question


def test_splits_have_their_own_metrics(refer_folder: Path) -> None:
    examples = load_rec(write(refer_folder / "refs(unc).json", refer(b="testA", c="testB")))
    right, wrong = f"Answer: {format_boxes([tuple(BOX)])}", "Answer: [0,0,0.01,0.01]"
    answers = {"b1": right, "b2": right, "c1": right, "c2": wrong}
    metrics = score_rec(examples, [Prediction(name, answer) for name, answer in answers.items()]).metrics
    assert (metrics["accuracy"], metrics["accuracy testA"], metrics["accuracy testB"]) == (75, 100, 50)


def test_references_of_unknown_instances_are_named(refer_folder: Path) -> None:
    data = write(refer_folder / "refs.json", [{**refer(b="val")[0], "ann_id": 9}])
    with pytest.raises(ValueError, match=r"refs\.json, record 1: expected one of 1 ids in ann_id, not 9"):
        load_rec(data)


def test_pickled_references_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p: pickled references may run code"):
        load_rec(tmp_path / "refs(unc).p")


def test_coco_annotations_that_are_the_only_ones_of_their_category_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = [
        {"id": number, "image_id": 7, "category_id": kind, "bbox": XYWH} for number, kind in enumerate((1, 2, 2))
    ]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    content = {"images": IMAGE_ROWS, "annotations": annotations, "categories": categories}
    assert [example.id for example in load_rec(write(tmp_path / "a.json", content))] == ["0"]
    assert "skipped 2 of 3 annotations" in caplog.text


def test_an_images_caption_is_the_phrase_of_its_only_annotation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    captioned = [{**IMAGE_ROWS[0], "caption": "a dog and a cat"}, {**IMAGE_ROWS[0], "id": 8, "caption": "the dog"}]
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": XYWH},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": XYWH},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": XYWH},
        {"id": 4, "image_id": 8, "category_id": 2, "bbox": XYWH},
    ]
    content = {"images": captioned, "annotations": annotations}
    [alone] = load_rec(write(tmp_path / "a.json", content))
    assert (alone.id, alone.question.split(" in the")[0]) == ("4", "How can I locate the dog")
    assert "skipped 3 of 4 annotations, which have no phrase of their own and are not the only ones of" in caplog.text
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    examples = load_rec(write(tmp_path / "b.json", {**content, "categories": categories}))
    assert [example.id for example in examples] == ["1", "4"]
    assert "locate dog in" in examples[0].question


def test_several_phrases_of_a_record_are_examples_of_their_own(tmp_path: Path) -> None:
    record = {**RECORD, "phrase": ["the dog", "a pet"], "bbox": XYXY, "tags": ["dog"]}
    examples = load_rec(write(tmp_path / "a.jsonl", record))
    assert [(example.id, example.tags) for example in examples] == [("1-1", ("dog",)), ("1-2", ("dog",))]


def test_the_form_of_boxes_can_be_told_for_a_whole_file(tmp_path: Path) -> None:
    data = write(tmp_path / "a.json", {"id": 3, **RECORD, "bbox": [0.1, 0.2, 0.4, 0.6]})
    [example] = load_rec(data, box_format="xywh", box_unit="fractions")
    assert example.references == pytest.approx(BOX)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (BOX, r"record 1: the box \[0\.1, 0\.2, 0\.5, 0\.8\] may be in fractions or pixels; specify"),
        ([100, 20, 80, 60], r"the box \[100\.0, .*\] has no area\. Does it have another format \(box_format"),
        ([20, 20, 100, 180], r"extends beyond its image, of which it covers 0\.100, 0\.200, 0\.500, 1\.800\. Does it"),
        ([20, 20, 100], "expected 4 numbers in bbox, but found 3"),
        ([20, 20, 100, float("nan")], r"expected numbers in bbox or box, not \[20, 20, 100, NaN\]"),
        ([20, 20, 100, "80"], "expected numbers in bbox"),
        (None, "expected bbox or box, but its fields are"),
    ],
)
def test_a_box_that_is_invalid_or_ambiguous_is_an_error(tmp_path: Path, box: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_rec(write(tmp_path / "a.json", {**RECORD, "bbox": box}))


@pytest.mark.parametrize("field", ["box_format", "box_unit"])
def test_an_unknown_box_format_is_an_error(tmp_path: Path, field: str) -> None:
    data = write(tmp_path / "a.json", {**RECORD, "bbox": XYXY, field: "cxcywh"})
    with pytest.raises(ValueError, match=rf"expected one of .* in {field}, not \"cxcywh\""):
        load_rec(data)
    with pytest.raises(ValueError, match=f"{field} is 'cxcywh', but must be one of"):
        load_rec(data, **{field: "cxcywh"})


def test_a_box_a_little_over_the_edge_is_cut_off_there(tmp_path: Path) -> None:
    [example] = load_rec(write(tmp_path / "a.json", {**RECORD, "bbox": [-1, 0, 201, 100]}))
    assert example.references == [0, 0, 1, 1]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])  # Pillow turns the latter by itself
@pytest.mark.parametrize(("orientation", "size"), [(1, (200, 100)), (6, (100, 200))])
def test_an_images_size_is_read_off_the_image_as_it_is_seen(
    tmp_path: Path, orientation: int, size: tuple[int, int], suffix: str
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", size).save(tmp_path / f"a.{suffix}", exif=exif)
    data = write(tmp_path / "a.json", {"image": f"a.{suffix}", "phrase": "the dog", "bbox": XYXY})
    assert load_rec(data, tmp_path)[0].references == pytest.approx(BOX)


def test_an_unknown_size_is_asked_for(tmp_path: Path) -> None:
    data = write(tmp_path / "a.json", {"image": "a.jpg", "phrase": "the dog", "bbox": XYXY})
    with pytest.raises(ValueError, match=r"record 1: has no width and height; pass the image folder"):
        load_rec(data)
    with pytest.raises(ValueError, match=r"record 1: has no width and height, and image .*a\.jpg cannot be read"):
        load_rec(data, tmp_path)


UNREADABLE = {
    "missing": (lambda path: None, "No such file"),
    "no image": (lambda path: path.write_bytes(b"no image"), "cannot identify"),
    "above Pillow's limit": (lambda path: path.write_bytes(b"P6 100000 100000 255\n"), "exceeds limit"),
}


@pytest.mark.parametrize(("spoil", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_image_without_a_size_costs_its_own_phrases_only(
    tmp_path: Path, spoil: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "good.png")
    spoil(tmp_path / "bad.png")
    rows = [{"id": name, "image": f"{name}.png", "phrase": "the dog", "bbox": XYXY} for name in ("bad", "good")]
    bad, good = load_rec(write(tmp_path / "a.json", rows), tmp_path)
    assert (bad.references, good.references, good.error) == ([], pytest.approx(BOX), "")
    assert "record 1: has no width and height, and image" in bad.error
    assert reason in bad.error
    assert f"1 of 2 phrases cannot be scored. {bad.error}" in caplog.text
    predictions = [Prediction(name, format_boxes([tuple(BOX)])) for name in ("bad", "good")]
    assert score_rec([bad, good], predictions).metrics["accuracy"] == 50


@pytest.mark.parametrize("block", [b"no EXIF at all", b"Exif\0\0XX\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_damaged_exif_block_does_not_hide_a_size(tmp_path: Path, suffix: str, block: bytes) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / f"a.{suffix}", exif=block)
    data = write(tmp_path / "a.json", {"image": f"a.{suffix}", "phrase": "the dog", "bbox": XYXY})
    assert load_rec(data, tmp_path)[0].references == pytest.approx(BOX)


REGION = {"region_id": 5, "image_id": 31, "phrase": "the dog", "x": 20, "y": 20, "width": 80, "height": 60}
REGIONS: dict[str, dict[str, Any]] = {
    "flat": REGION,
    "with a box": {**REGION, "bbox": XYWH, "box_format": "xywh"},
    "with corners": {**REGION, "bbox": XYXY},
}


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_the_size_of_a_visual_genome_region_is_not_that_of_its_image(tmp_path: Path, region: dict[str, Any]) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "31.jpg")
    data = write(tmp_path / "a.json", [region])
    [example] = load_rec(data, tmp_path)
    assert (example.id, example.image, example.references) == ("5", "31.jpg", pytest.approx(BOX))
    with pytest.raises(ValueError, match="its width and height are the region's; pass the image folder"):
        load_rec(data)


def test_a_point_beside_the_images_size_is_no_region(tmp_path: Path) -> None:
    data = write(tmp_path / "a.json", {"id": 1, **RECORD, "x": 60, "y": 50, "bbox": XYXY})
    assert load_rec(data)[0].references == pytest.approx(BOX)


def test_metrics_by_hand() -> None:
    """Half of the box: an IoU of 0.5 just suffices."""
    assert score("Answer: [0,0,1,0.5]", [0, 0, 1, 1]) == {"mean_iou": 50, "accuracy": 100, "without_box": 0}
    assert score("Answer: [0,0,1,0.499]", [0, 0, 1, 1]) == {
        "mean_iou": pytest.approx(49.9), "accuracy": 0, "without_box": 0,
    }  # fmt: skip


def test_an_answer_without_a_box_is_counted() -> None:
    assert score("It is on the left.") == {"mean_iou": 0, "accuracy": 0, "without_box": 100}


def test_of_several_boxes_the_first_counts() -> None:
    assert score("[0,0,0.1,0.1] or [0,0,1,1]", [0, 0, 1, 1])["accuracy"] == 0


@given(st.tuples(FRACTION, FRACTION, FRACTION, FRACTION).filter(lambda box: box[0] < box[2] and box[1] < box[3]))
def test_the_box_itself_is_right(box: tuple[float, float, float, float]) -> None:
    assert score(format_boxes([box]), list(box)) == {"mean_iou": 100, "accuracy": 100, "without_box": 0}


def test_a_long_file_is_read_in_linear_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text("".join(json.dumps({**RECORD, "bbox": XYXY}) + "\n" for _ in range(20_000)))
    with caplog.at_level(logging.WARNING):
        assert len(load_rec(data)) == 20_000
    assert not caplog.records
