"""Records in Parquet: as those in JSON, pictures by their names, and errors that say what is read."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from transformers_lion.evaluation.pope import load_pope
from transformers_lion.evaluation.rec import load_rec

RECORDS = [
    {"id": 1, "image": "a.jpg", "phrase": "the dog", "bbox": [20.0, 20.0, 100.0, 80.0], "width": 200, "height": 100},
    {"id": 2, "image": "b.jpg", "phrase": "a cat", "bbox": [0.5, 0.0, 60.0, 50.0], "width": 200, "height": 100},
]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_records_are_those_of_the_same_json(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in RECORDS))
    assert load_rec(write_parquet(tmp_path / "a.parquet", RECORDS)) == load_rec(lines)


def test_another_task_reads_it_too(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
    [example] = load_pope(write_parquet(tmp_path / "random.parquet", [row]))
    assert (example.id, example.image, example.references) == ("1", "a.jpg", "yes")


def test_a_column_of_pictures_is_read_as_their_paths(tmp_path: Path) -> None:
    rows = [{**row, "image": {"bytes": b"many", "path": row["image"]}, "thumbnail": b"few"} for row in RECORDS]
    assert load_rec(write_parquet(tmp_path / "a.parquet", rows))[1].image == "b.jpg"


def test_pictures_without_a_path_are_an_error_that_says_so(tmp_path: Path) -> None:
    rows = [{**RECORDS[0], "image": {"bytes": b"many", "path": path}} for path in ("a.jpg", None)]
    with pytest.raises(ValueError, match=r"a\.parquet, record 2: the picture in image is in the file itself"):
        load_rec(write_parquet(tmp_path / "a.parquet", rows))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"a\.parquet is no Parquet that can be read"):
        load_rec(tmp_path / "a.parquet")
    (tmp_path / "a.arrow").write_bytes(b"ARROW1\xff\xff")
    with pytest.raises(ValueError, match=r"a\.arrow is no text in UTF-8 .* What is read is JSON, JSON Lines, and Parq"):
        load_rec(tmp_path / "a.arrow")
    with pytest.raises(ValueError, match=r"lost\.parquet cannot be read"):
        load_rec(tmp_path / "lost.parquet")


def test_without_pyarrow_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet: reading Parquet needs pyarrow"):
        load_rec(tmp_path / "a.parquet")
