"""The page and the image of the worst cases."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transformers_lion.evaluation.pages import Case, describe_reference, find_worst, make_page, make_sheet
from transformers_lion.evaluation.results import Result
from transformers_lion.evaluation.task import Example, Prediction

EVIL = "<script>alert('x')</script>&{style}\"'"
RED, GREEN = (230, 25, 75), (11, 110, 79)


def result(**fields: Any) -> Result:
    known = {
        "task": "REC", "dataset": None, "metrics": {"accuracy": 50.0}, "headline": "accuracy", "paper": {},
        "counts": {"examples": 2, "missing": 0}, "data": {"name": "a.json"}, "predictions": None, "setup": None,
        "model": None, "versions": {}, "batch_size": 1, "seconds": 0.0, "check": None,
    }  # fmt: skip
    return Result(**{**known, **fields})


def example(name: str = "a", references: Any = (0.5, 0.5, 0.9, 0.9), **fields: Any) -> Example:
    return Example(name, "a.png", fields.pop("question", "Where?"), references, **fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (60, 40), "white").save(tmp_path / "a.png")
    return tmp_path


class Tags(HTMLParser):
    """The content that a browser finds in a page."""

    def __init__(self, page: str):
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_whatever_data_and_model_say_is_text_on_the_page(folder: Path) -> None:
    evil = example(EVIL, [EVIL], question=EVIL, group=EVIL)
    missing = Example("b", f"{EVIL}.png", "?", [EVIL])
    page = make_page(
        result(task=EVIL, dataset=EVIL, metrics={EVIL: 1.0}, paper={EVIL: 1.0}, data={"name": EVIL}, predictions=EVIL),
        [Case(evil, EVIL, 0.0), Case(missing, "", 0.0, error=EVIL)],
        folder,
    )
    seen = Tags(page)
    assert "script" not in seen.names
    assert seen.names.count("img") == 1
    assert seen.text.count(EVIL) >= 12


def test_the_page_needs_no_other_file(folder: Path) -> None:
    page = make_page(result(), [Case(example(), "[0.1,0.1,0.3,0.3]", 0.0)], folder)
    links = Tags(page).links
    assert links
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not re.search(r"url\(|@import|https?:", page)


def test_boxes_of_answer_and_reference_are_drawn_in_their_colours(folder: Path) -> None:
    image = Case(example(), "[0.1,0.1,0.3,0.3]", 0.0).draw(folder, 600)
    assert image is not None
    assert image.size == (600, 400)
    colors = {color for _, color in image.getcolors(1 << 20)}  # type: ignore[union-attr]
    assert {RED, GREEN} <= colors
    assert image.getpixel((60, 100)) == RED
    assert image.getpixel((540, 250)) == GREEN


def test_the_worst_come_first_and_those_without_an_answer_last() -> None:
    examples = [example(name) for name in "abcd"]
    predictions = [Prediction(name, name.upper()) for name in "abcd"]
    scores = {"a": 0.0, "b": 50.0, "c": 10.0, "d": 10.0}
    cases = find_worst(examples, predictions, scores, {"a": "damaged"}, 4)
    assert [(case.example.id, case.answer, case.error) for case in cases] == [
        ("c", "C", None), ("d", "D", None), ("b", "B", None), ("a", "A", "damaged"),
    ]  # fmt: skip
    assert len(find_worst(examples, predictions, scores, {}, 2)) == 2


REFERENCES: dict[str, tuple[Example, str]] = {
    "box": (example(), "[0.500,0.500,0.900,0.900]"),
    "answers": (example(references=["red", "red", "dark red"]), "red (x2); dark red"),
    "word": (example(references="yes"), "yes"),
    "choice": (example(references=1, candidates=("a", "b")), "b"),
    "dialogue": (example(references={"gt_index": 0, "relevance": [1, 0]}, candidates=("a", "b")), "a"),
    "four numbers as words": (example(references=["1", "2", "3", "4"]), "1; 2; 3; 4"),
}


@pytest.mark.parametrize(("made", "words"), REFERENCES.values(), ids=REFERENCES.keys())
def test_references_of_all_tasks_are_put_in_words(made: Example, words: str) -> None:
    assert describe_reference(made) == words


def test_the_image_has_a_tile_for_each_case_also_for_one_that_cannot_be_read(folder: Path) -> None:
    cases = [Case(example(), "word " * 500, 0.0), Case(Example("b", "lost.png", "?", ["x"]), "", 0.0, error="lost")]
    sheet = make_sheet(cases, folder)
    assert sheet.width > 2 * 320
    assert make_sheet([], folder).width > 0
    Image.new("RGB", (3000, 2)).save(folder / "a.png")
    assert make_sheet(cases, folder).size == sheet.size


def test_the_papers_number_stands_beside_the_headline_alone() -> None:
    made = result(metrics={"mean_iou": 1.0, "accuracy": 50.0}, paper={"LION-4B": 89.8, "LION-12B": 93.0})
    assert made.columns() == ["REC", "here", "paper, LION-4B", "paper, LION-12B"]
    assert made.rows() == [("mean_iou", "1.00", ["", ""]), ("accuracy", "50.00", ["89.80", "93.00"])]


def test_the_papers_number_stands_beside_the_group_that_it_is_of() -> None:
    metrics = {"accuracy": 50.0, "accuracy testA": 40.0, "accuracy val": 60.0}
    rows = result(metrics=metrics, paper={"LION": 89.0}, dataset="RefCOCO testA").rows()
    assert [name for name, _, paper in rows if paper != [""]] == ["accuracy testA"]
