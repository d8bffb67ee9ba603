"""One record: what is understood, and what is wrong in which words."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training.record_files import good_record, make_image, png
from transformers_lion.training.records import RecordError, make_row, name_record, open_image, parse_record

NAN = float("nan")


def region(answer: str, **fields: Any) -> dict[str, Any]:
    """A region-level record."""
    return good_record(answer=answer, category="ref", **fields)


FAULTS: dict[str, tuple[Any, str, str]] = {
    "null": (None, "no object", "null"),
    "text": ("a record", "no object", "str"),
    "list": ([good_record()], "no object", "list"),
    "number": (3, "no object", "int"),
    "empty object": ({}, "no image", "image_path"),
    "no image": (good_record(image=...), "no image", "missing or empty"),
    "null image": (good_record(image=None), "no image", "missing or empty"),
    "NaN image": (good_record(image=NAN), "no image", "missing or empty"),
    "empty image": (good_record(image=""), "no image", "missing or empty"),
    "blank image": (good_record(image=" \t"), "no image", "missing or empty"),
    "no bytes": (good_record(image=b""), "no image", "missing or empty"),
    "empty image of a dataset": (good_record(image={"bytes": None, "path": None}), "no image", "missing or empty"),
    "number for an image": (good_record(image=7), "wrong type", "image is int '7'"),
    "list for an image": (good_record(image=["a.png"]), "wrong type", "image is list"),
    "number for an image_id": (good_record(image=..., image_id=139), "wrong type", "image_id is int '139'"),
    "surrogate in a path": (good_record(image="\ud800.png"), "broken text", "image is not valid Unicode"),
    "no question": (good_record(question=...), "no question", "question is missing"),
    "null question": (good_record(question=None), "no question", "question is missing"),
    "NaN question": (good_record(question=NAN), "no question", "question is missing"),
    "empty question": (good_record(question=""), "no question", "question is empty"),
    "blank question": (good_record(question=" \n\u3000"), "no question", "question is empty"),
    "number for a question": (good_record(question=1), "wrong type", "question is int"),
    "list for a question": (good_record(question=["a?", "b?"]), "wrong type", "use the fields questions and answers"),
    "surrogate in a question": (good_record(question="a\udfff?"), "broken text", "question is not valid Unicode"),
    "no answer": (good_record(answer=...), "no answer", "answer is missing"),
    "null answer": (good_record(answer=None), "no answer", "answer is missing"),
    "NaN answer": (good_record(answer=NAN), "no answer", "answer is missing"),
    "NaN answer of numpy": (good_record(answer=np.float32("nan")), "no answer", "answer is missing"),
    "empty answer": (good_record(answer=""), "no answer", "answer is empty"),
    "blank answer": (good_record(answer="  "), "no answer", "answer is empty"),
    "empty list of answers": (good_record(answer=[]), "no answer", "answer is an empty list"),
    "list with an empty answer": (good_record(answer=["", "dog"]), "no answer", "answer is empty"),
    "list with a null answer": (good_record(answer=[None]), "no answer", "answer is missing"),
    "list with a NaN answer": (good_record(answer=[NAN]), "no answer", "answer is missing"),
    "list of lists": (good_record(answer=[["dog"]]), "wrong type", "answer is list"),
    "truth value for an answer": (good_record(answer=True), "wrong type", "answer is bool"),
    "object for an answer": (good_record(answer={"answer": "dog"}), "wrong type", "answer is dict"),
    "infinite answer": (good_record(answer=float("inf")), "wrong type", "answer is float"),
    "surrogate in an answer": (good_record(answer="\ud83d"), "broken text", "answer is not valid Unicode"),
    "number for a category": (good_record(category=2), "wrong type", "category is int"),
    "list for a category": (good_record(category=["ref"]), "wrong type", "category is list"),
    "unknown task type": (good_record(task_type="pixel_level"), "unknown category", "pixel_level"),
    "number for a task type": (good_record(task_type=1), "wrong type", "task_type is int"),
    "number for tags": (good_record(tags=5), "wrong type", "tags are int"),
    "number among tags": (good_record(tags=["dog", 5]), "wrong type", "tags are list"),
    "null among tags": (good_record(tags=["dog", None]), "wrong type", "tags are list"),
    "object for tags": (good_record(tags={"dog": 0.9}), "wrong type", "tags are dict"),
    "question that nobody sees": (good_record(question="\u200b\ufeff\x07"), "no question", "question is empty"),
    "answer that nobody sees": (good_record(answer="\u200b "), "no answer", "answer is empty"),
    "number of too many digits": (good_record(answer=10**5000), "wrong type", "answer is int with too many digits"),
    "question of too many digits": (good_record(question=10**5000), "wrong type", "question is int with too many"),
    "numbers for a box": (good_record(answer=[0.1, 0.2, 0.3, 0.4]), "wrong type", "with grounding.format_boxes"),
    "box that is not a number": (region("[nan,0.1,0.2,0.3]"), "bad box", "[nan,0.1,0.2,0.3], but coordinates must be"),
    "box without an end": (region("[0.1,0.1,inf,0.3]"), "bad box", "but coordinates must be from 0 to 1"),
    "box in pixels": (region("Answer: [10,20,300,400]"), "bad box", "answer has the box [10,20,300,400]"),
    "box beside the image": (region("[-0.1,0.2,0.7,0.4]"), "bad box", "but coordinates must be from 0 to 1"),
    "box from right to left": (region("[0.5,0.1,0.1,0.5]"), "bad box", "but the upper left corner must come first"),
    "second box upside down": (
        region("[0.1,0.1,0.5,0.5] [0.1,0.5,0.5,0.1]"), "bad box", "the box [0.1,0.5,0.5,0.1], but the upper left",
    ),
    "box in pixels in a question": (
        region("a dog", question="What is at [1,2,30,40]?"), "bad box", "question has the box [1,2,30,40]",
    ),
    "misspelt field": (good_record(tag=["dog"]), "unread field", "it has tag, which is not read; the fields are"),
    "prompt": (good_record(prompt="Look."), "unread field", "it has prompt, which is not read"),
    "answers of others": (good_record(answers=["1", "2"]), "unread field", "answers together with a single question"),
    "surrogate in a tag": (good_record(tags=["\udc00"]), "broken text", "tags is not valid Unicode"),
}  # fmt: skip


def several(**fields: Any) -> dict[str, Any]:
    """A record of two questions."""
    both = {"questions": ["a?", "b?"], "answers": ["1", "2"], **fields}
    return good_record(**{"question": ..., "answer": ..., "category": ..., **both})


SEVERAL_FAULTS: dict[str, tuple[Any, str, str]] = {
    "fewer answers": (several(answers=["1"]), "uneven lists", "2 questions, but 1 answers"),
    "more categories": (several(categories=["vqa"] * 3), "uneven lists", "2 questions, but 3 categories"),
    "no answers": (several(answers=...), "no answer", "answers is missing or empty"),
    "no questions": (several(questions=[]), "no question", "questions is missing or empty"),
    "text for questions": (several(questions="a?"), "wrong type", "questions is str"),
    "text for answers": (several(answers="12"), "wrong type", "answers is str"),
    "one empty question": (several(questions=["a?", " "]), "no question", "questions[1] is empty"),
    "one null answer": (several(answers=[None, "2"]), "no answer", "answers[0] is missing"),
    "one unknown task": (several(task_types=["image_level", "x"]), "unknown category", "task_types is str 'x'"),
    "one answer more": (several(answer="3"), "unread field", "it has answer beside several questions"),
    "also a question": (several(question="c?", answer="3"), "wrong type", "both question and questions"),
}


@pytest.mark.parametrize(
    ("raw", "kind", "words"), [*FAULTS.values(), *SEVERAL_FAULTS.values()], ids=[*FAULTS, *SEVERAL_FAULTS]
)
def test_a_fault_has_a_kind_and_words(raw: Any, kind: str, words: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(raw)
    assert caught.value.kind == kind
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        region("a cat"), region("[0.000,0.000,1.000,1.000]"), region("[0.2, 0.2, 0.2, 1.003]"), region("[a,b,c,d]"),
        region("[5]"), good_record(answer="[10,20,30,40]"), good_record(answer=["1", "2", "3", "4"]),
    ],
)  # fmt: skip
def test_what_is_no_box_or_a_good_one_is_left_alone(raw: Any) -> None:
    assert parse_record(raw).answers[0].startswith(raw["answer"][0])


def test_a_record_of_the_reference_is_understood() -> None:
    record = parse_record(good_record(answer=["dog", "a dog"], category="ref", tags="dog, grass"), "folder")
    assert record.image == str(Path("folder", "a0.png"))
    assert record.questions == ("What is a0?",)
    assert record.answers == ("dog",)
    assert record.task_types == ("region_level",)
    assert record.tags == ("dog", "grass")


@pytest.mark.parametrize("name", ["image", "image_path", "image_id"])
def test_the_image_has_three_names(name: str) -> None:
    assert parse_record({**good_record(image=...), name: "x.png"}).image == "x.png"


def test_the_first_filled_name_of_the_image_counts() -> None:
    assert parse_record(good_record(image="a.png", image_path="b.png", image_id=9)).image == "a.png"
    assert parse_record(good_record(image=None, image_path=" ", image_id="c.png")).image == "c.png"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.png", "folder/a.png"),
        ("über/图 1.png", "folder/über/图 1.png"),
        ("../a.png", "folder/../a.png"),
        ("/elsewhere/a.png", "/elsewhere/a.png"),
        ("https://example.org/a.png", "https://example.org/a.png"),
        ("data:image/png;base64,iVBORw0KGgo", "data:image/png;base64,iVBORw0KGgo"),
    ],
)
def test_only_relative_paths_begin_in_the_image_folder(path: str, expected: str) -> None:
    assert parse_record(good_record(image=path), "folder").image == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(2, "2"), (2.0, "2"), (2.5, "2.5"), (-1, "-1"), ([3, "three"], "3"), (np.int64(4), "4"), (10**400, str(10**400))],
)
def test_a_number_is_an_answer(answer: Any, expected: str) -> None:
    assert parse_record(good_record(answer=answer)).answers == (expected,)


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("ref", "region_level"), ("region", "region_level"), ("region_level", "region_level"),
        ("grounding", "region_level"), (" Region-Level ", "region_level"), ("vqa", "image_level"),
        ("image_level", "image_level"), ("", "image_level"), (None, "image_level"), (..., "image_level"),
        (NAN, "image_level"),
    ],
)  # fmt: skip
def test_a_category_has_a_task_type(category: Any, expected: str) -> None:
    assert parse_record(good_record(category=category)).task_types == (expected,)


def test_ids_and_notes_may_stand_beside_what_is_read() -> None:
    notes = {"id": 3, "region_id": "r", "_by": "me", "split": "val", "width": 3, "hint": None, "area": NAN}
    assert parse_record(good_record(**notes)) == parse_record(good_record())


def test_a_task_type_overrules_the_category() -> None:
    assert parse_record(good_record(category="ref", task_type="image_level")).task_types == ("image_level",)


@pytest.mark.parametrize("category", ["caption", None, "Ref"])
def test_a_category_that_is_not_listed_is_a_fault_where_there_is_a_list(category: Any) -> None:
    categories = {"ref": "region_level", "vqa": "image_level"}
    assert parse_record(good_record(category="ref"), categories=categories).task_types == ("region_level",)
    with pytest.raises(RecordError, match="no task type in categories") as caught:
        parse_record(good_record(category=category), categories=categories)
    assert caught.value.kind == "unknown category"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (..., None), (None, None), (NAN, None), ("", ()), (" ", ()), ([], ()), ("dog", ("dog",)),
        ("dog,cat", ("dog,cat",)), (["hot dog", "cat"], ("hot dog", "cat")),
    ],
)  # fmt: skip
def test_tags_are_text_or_a_list_or_missing(tags: Any, expected: Any) -> None:
    assert parse_record(good_record(tags=tags)).tags == expected


def test_questions_of_one_image_have_answers_and_categories_each() -> None:
    record = parse_record(several(categories=["ref", "vqa"], answers=[["x", "y"], 2], tags=["dog"]))
    assert record.questions == ("a?", "b?")
    assert record.answers == ("x", "2")
    assert record.task_types == ("region_level", "image_level")
    assert record.tags == ("dog",)
    assert parse_record(several(category="ref")).task_types == ("region_level",) * 2
    assert parse_record(several(categories="ref")).task_types == ("region_level",) * 2


@pytest.mark.parametrize(
    "raw",
    [
        good_record(tags=["dog"], category="ref"),
        good_record(image=png(3)),
        good_record(tags=[]),
        several(categories=["ref", "vqa"]),
        several(questions=["a?"], answers=["1"]),
    ],
)
def test_a_row_is_read_back_as_the_same_record(raw: Any) -> None:
    record = parse_record(raw)
    row = make_row(record)
    assert parse_record(row) == record
    assert (row["question"] is None) == (len(record.questions) > 1) == (row["questions"] is not None)


FORMS: dict[str, Any] = {
    "image": make_image(1),
    "bytes": png(1),
    "bytes of a dataset": {"bytes": png(1), "path": "a.png"},
    "array": np.asarray(make_image(1)),
    "tensor": torch.from_numpy(np.array(make_image(1))),
    "base64": base64.b64encode(png(1)).decode(),
    "data URI": "data:image/png;base64," + base64.b64encode(png(1)).decode(),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_embedded_images_keep_their_pixels_in_a_row(form: Any) -> None:
    row = make_row(parse_record(good_record(image=form), "folder"))
    assert set(row["image"]) == {"bytes", "path"}
    opened = open_image(parse_record(row).image)
    assert np.array_equal(np.asarray(opened), np.asarray(make_image(1)))


def test_an_image_on_its_side_is_stored_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image(1).save(tmp_path / "side.png", exif=exif)
    with Image.open(tmp_path / "side.png") as sideways:
        row = make_row(parse_record(good_record(image=sideways)))
    assert open_image(parse_record(row).image).size == (10, 12)


BROKEN_IMAGES: dict[str, tuple[Any, str, str]] = {
    "missing": ("none.png", "missing file", "none.png' does not exist"),
    "folder": ("folder.png", "missing file", "folder.png' is a folder"),
    "truncated": ("cut.png", "unreadable image", "cut.png"),
    "empty": ("empty.png", "unreadable image", "empty.png"),
    "text": ("text.png", "unreadable image", "not an image in a known format"),
    "truncated bytes": (png()[:150], "unreadable image", "cannot be read"),
    "other bytes": (b"no image", "unreadable image", "8 bytes are not an image"),
    "null in the path": ("a\0.png", "missing file", "does not exist"),
    "long path": ("a-/" * 5000, "missing file", "does not exist"),
    "broken base64": ("A" * 101, "unreadable image", "AAAA"),
    "array of a strange shape": (np.zeros((2, 2, 7)), "unreadable image", "ndarray"),
}


@pytest.mark.parametrize(("image", "kind", "words"), BROKEN_IMAGES.values(), ids=BROKEN_IMAGES.keys())
def test_an_image_that_cannot_be_opened_says_why(image: Any, kind: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(png()[:150])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RecordError) as caught:
        open_image(parse_record(good_record(image=image), tmp_path).image)
    assert caught.value.kind == kind
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (good_record(source="train.json[3]"), "train.json[3]"),
        (good_record(), "record with image 'a0.png', question 'What is a0?'"),
        (good_record(id=7, image={"bytes": b"x", "path": None}, question=None), "record with id '7'"),
        (good_record(image={"bytes": None, "path": "a.png"}), "record with image 'a.png', question 'What is a0?'"),
        ({"image": make_image()}, "record without a name"),
        ([], "record list '[]'"),
    ],
)
def test_a_record_without_a_place_is_named_by_its_content(raw: Any, name: str) -> None:
    assert name_record(raw) == name
