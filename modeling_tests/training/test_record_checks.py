"""Checks of whole columns: they find what the checks of single records find, and prove plain records to be good."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.record_files import good_record, png, write_images
from transformers_lion.training import RecordReport
from transformers_lion.training.checked_images import CheckedImages
from transformers_lion.training.record_checks import Batch, Checked, CheckImages, RecordChecker, check_batch
from transformers_lion.training.record_files import parse_lines

SEVERAL = {"question": ..., "answer": ..., "category": ..., "questions": ["a?", "b?"], "answers": ["1", "2"]}

PLAIN = [
    good_record(0),
    good_record(1, tags=["dog", "green grass"]),
    good_record(1, tags=[]),
    good_record(0, category="Region Level", answer="[0.1,0.2,0.3,0.4]"),
    good_record(0, category="vqa", answer="[7,7,1,1]"),
    good_record(0, category=...),
    good_record(0, category="vqa", task_type="region_level"),
    good_record(0, question="Où est le 狗?", answer="là"),
    good_record(0, id=7, image_id=8, _note={"a": [1]}, width=3, split="train"),
    good_record(0, hint=None),
    good_record(0, **SEVERAL),
    good_record(0, **SEVERAL, tags=["dog"], image_id=3),
    good_record(0, **{**SEVERAL, "category": "ref", "answers": ["[0.1,0.2,0.3,0.4]", "x [a"]}),
    good_record(0, image=..., image_path="a1.png"),
]
ODD: list[Any] = [
    good_record(0, answer=2),
    good_record(0, answer=1.5),
    good_record(0, answer=True),
    good_record(0, answer=["dog", "a dog"]),
    good_record(0, tags=" "),
    good_record(0, tags="dog, grass"),
    good_record(0, tags=[1]),
    good_record(0, tags=[None]),
    good_record(0, question="\u200b"),
    good_record(0, question="?"),
    good_record(0, question=" "),
    good_record(0, question="\ud800"),
    good_record(0, answer=None),
    good_record(0, answer=float("nan")),
    good_record(0, category="ref", answer="[0.5,0.2,0.3,0.4]"),
    good_record(0, category="ref", question="[2,2,3,3]?", answer="[0.1,0.2,0.3,0.4] and [1.2,0,1.3,1]"),
    good_record(0, category="ref", answer="[a,b,c,d]"),
    good_record(0, category=3),
    good_record(0, task_type="pixel_level"),
    good_record(0, hint="cat"),
    good_record(0, answers=["a"]),
    good_record(0, image="none.png"),
    good_record(0, image="broken.png"),
    good_record(0, image=" ", image_path="a1.png"),
    good_record(0, image=None, image_id="a1.png"),
    good_record(0, image={"path": "a1.png", "bytes": None}),
    good_record(0, image="http://example.com/a.png"),
    good_record(0, image="data:image/png;base64,AAAA"),
    good_record(0, **SEVERAL),
    good_record(0, **{**SEVERAL, "answers": ["1"]}),
    good_record(0, **{**SEVERAL, "answers": []}),
    good_record(0, **{**SEVERAL, "answers": ["1", " "]}),
    good_record(0, **{**SEVERAL, "questions": ["a?", None]}),
    good_record(0, **{**SEVERAL, "questions": ["a?"], "answers": ["1"]}),
    good_record(0, **{**SEVERAL, "category": "ref", "answers": ["[0.1,0.2,0.3,0.4]", "[0.4,0,0.1,1]"]}),
    good_record(0, **SEVERAL, categories=["ref", "vqa"]),
    good_record(0, **SEVERAL, task_types=["region_level", "region_level"]),
    good_record(0, **{**SEVERAL, "question": "c?"}),
    good_record(0, **{**SEVERAL, "answer": "c"}),
    good_record(0, **{**SEVERAL, "category": 3}),
    "no object",
    None,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 2)
    (folder / "broken.png").write_text("no image")
    return folder


def check(records: list[Any], folder: Path, images: CheckImages | None, columns: bool) -> tuple[Checked, list[Any]]:
    """Check records, as columns where they fit; return the rows and the faults."""
    report = RecordReport()
    checker = RecordChecker(folder, None, images, "skip", report, CheckedImages(timeout=0.01))
    lines = "\n".join(map(json.dumps, records)).encode()
    names = [f"r{index}" for index in range(len(records))]
    table = parse_lines(lines, len(records)) if columns else None
    return check_batch(Batch(names, records.__getitem__, table), checker), report.faults


@pytest.mark.parametrize("images", ["exists", "decode", None])
def test_columns_and_single_records_give_the_same_rows_and_faults(images: CheckImages | None, folder: Path) -> None:
    urls = ("http", "data:") if images == "decode" else ()
    odd = [record for record in ODD if not (isinstance(record, dict) and str(record.get("image")).startswith(urls))]
    batches = [[record] for record in PLAIN + odd] + [[PLAIN[0], record, PLAIN[2]] for record in odd] + [PLAIN, odd]
    for records in batches:
        (fast, found), (slow, expected) = (check(records, folder, images, columns) for columns in (True, False))
        assert fast.table.to_pylist() == slow.table.to_pylist(), records
        assert fast.positions.tolist() == slow.positions.tolist()
        assert fast.count_tasks() == slow.count_tasks()
        assert found == expected
        assert fast.faults == slow.faults


@pytest.mark.parametrize("images", ["exists", "decode"])
def test_plain_records_are_not_checked_one_by_one(
    images: CheckImages, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordChecker, "__call__", lambda *_: pytest.fail("checked in Python"))
    for record in PLAIN:
        checked, _ = check([record] * 2, folder, images, columns=True)
        assert checked.table.num_rows == 2
    for answer in (0, -7, 2**62):
        assert check([good_record(0, answer=answer)], folder, images, columns=True)[0].table["answer"][
            0
        ].as_py() == str(answer)
    same_image_field = PLAIN[:-1]
    assert check(same_image_field, folder, images, columns=True)[0].table.num_rows == len(same_image_field)


@pytest.mark.parametrize(
    "lines",
    [
        b'{"image": "a", "image": "b"}', b'{"a": 1} {"b": 2}', b'{"a": 1}{"b": 2}\n{"c": "\n"}',
        b'{"question": "\xff"}',
        b'{"question": "\\ud800"}', b'{"a": 01}', b"[1]", b'{"a": 1},', b'{"answer": 1.0}', b'{"answer": NaN}',
        b'{"answer": 1}\n{"answer": "1"}', b'{"answer": 123456789012345678901234567890}',
        b'{"question": "a}\n{b"}', b'{"image": {"path": "a"}}', b'{"question": "a\tb"}',
    ],
)  # fmt: skip
def test_lines_that_may_not_be_records_of_text_are_left_to_python(lines: bytes) -> None:
    assert parse_lines(lines, lines.count(b"\n") + 1) is None


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"\ud83d\ude00", "😀"), (r"\u00e9\n\t\"\\", 'é\n\t"\\'), ("2020-01-01", "2020-01-01"), ("true", "true"),
        ("12", "12"), ("a} {b", "a} {b"),
    ],
)  # fmt: skip
def test_columns_hold_the_text_as_it_was_written(written: str, text: str) -> None:
    line = f'{{"question": "{written}"}}'
    assert json.loads(line)["question"] == text
    table = parse_lines(f"{line}\r\n".encode(), 1)
    assert table is not None
    assert table["question"].to_pylist() == [text]


def test_embedded_images_are_kept_and_blank_ones_are_left_to_python(folder: Path) -> None:
    import pyarrow as pa

    contents = [png(0), b"", None, b" " * 3, png(1)[:80]]
    rows = [{**good_record(0), "image": {"bytes": content, "path": "a0.png"}} for content in contents]
    for images, kept in (("exists", [0, 1, 2, 4]), ("decode", [0, 1, 2])):
        report = RecordReport()
        checker = RecordChecker(folder, None, images, "skip", report, CheckedImages())  # type: ignore[arg-type]
        checked = check_batch(Batch(list("abcde"), rows.__getitem__, pa.Table.from_pylist(rows)), checker)
        alone = check_batch(Batch(list("abcde"), rows.__getitem__), checker)
        assert checked.positions.tolist() == kept
        assert checked.table.to_pylist() == alone.table.to_pylist()
        assert checked.table["image"][0].as_py() == {"bytes": png(0), "path": None}
