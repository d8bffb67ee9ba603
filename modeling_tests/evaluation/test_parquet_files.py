"""Records in Parquet: the same as in JSON, images inside the file, and errors that list the supported formats."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transformers_lion.evaluation.answering import open_image
from transformers_lion.evaluation.pope import load_pope
from transformers_lion.evaluation.rec import load_rec
from transformers_lion.evaluation.settings import hash_examples

RECORDS = [
    {"id": 1, "image": "a.jpg", "phrase": "the dog", "bbox": [20.0, 20.0, 100.0, 80.0], "width": 200, "height": 100},
    {"id": 2, "image": "b.jpg", "phrase": "a cat", "bbox": [0.5, 0.0, 60.0, 50.0], "width": 200, "height": 100},
]


def write_parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path


def test_records_are_those_of_the_same_json(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in RECORDS))
    assert load_rec(write_parquet(tmp_path / "a.parquet", RECORDS)) == load_rec(lines)


def test_another_task_reads_it_too(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
    [example] = load_pope(write_parquet(tmp_path / "random.parquet", [row]))
    assert (example.id, example.image, example.references) == ("1", "a.jpg", "yes")


def encode(color: tuple[int, int, int], size: tuple[int, int] = (200, 100)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_is_the_file_of_its_path_or_else_the_one_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    rows = [{**row, "image": {"bytes": b"many", "path": row["image"]}, "thumbnail": b"few"} for row in RECORDS]
    rows[1]["image"] = {"bytes": encode((9, 9, 9)), "path": None}
    first, second = load_rec(write_parquet(tmp_path / "a.parquet", rows), tmp_path)
    assert (first.image, second.image) == ("a.jpg", f"{tmp_path}/a.parquet#image:1")
    assert open_image(second.image, tmp_path).getpixel((0, 0)) == (9, 9, 9)


def test_images_of_many_row_groups_are_their_own(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": encode((index, 0, 0), (200 + index, 100)), "path": f"{index}.png"},
             "phrase": "it", "bbox": [20.0, 20.0, 100.0, 80.0]} for index in range(7)]  # fmt: skip
    examples = load_rec(write_parquet(tmp_path / "a.parquet", rows, row_group_size=2), tmp_path)
    images = [open_image(example.image, tmp_path) for example in examples[::-1]]
    assert [image.getpixel((0, 0)) for image in images] == [(index, 0, 0) for index in range(6, -1, -1)]
    assert [example.references[2] for example in examples] == [pytest.approx(100 / (200 + x)) for x in range(7)]


def test_a_damaged_image_in_the_file_costs_its_own_phrases_only(tmp_path: Path) -> None:
    contents = (b"no image", None, encode((1, 2, 3)))
    record = {name: value for name, value in RECORDS[0].items() if name not in ("width", "height")}
    rows = [{**record, "id": index, "image": {"bytes": x, "path": "lost.png"}} for index, x in enumerate(contents)]
    bad, lost, good = load_rec(write_parquet(tmp_path / "a.parquet", rows), tmp_path)
    assert "a.parquet#image:0 cannot be read: cannot identify image" in bad.error
    assert "a.parquet#image:1 cannot be read: the Parquet file contains its path but not the image itself" in lost.error
    assert (good.error, good.references) == ("", pytest.approx([0.1, 0.2, 0.5, 0.8]))
    with pytest.raises(ValueError, match=r"a\.parquet#image:1 cannot be read: the Parquet file contains its path"):
        open_image(lost.image, tmp_path)


def test_data_that_were_moved_have_the_same_hash(tmp_path: Path) -> None:
    rows = [{**RECORDS[0], "image": {"bytes": encode((1, 2, 3)), "path": None}}]
    (tmp_path / "other").mkdir()
    here, there = (load_rec(write_parquet(folder / "a.parquet", rows)) for folder in (tmp_path, tmp_path / "other"))
    assert here != there
    assert hash_examples(here) == hash_examples(there)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        load_rec(tmp_path / "a.parquet")
    (tmp_path / "a.arrow").write_bytes(b"ARROW1\xff\xff")
    with pytest.raises(ValueError, match=r"a\.arrow is not UTF-8 text .* Supported formats are JSON, JSON Lines"):
        load_rec(tmp_path / "a.arrow")
    with pytest.raises(ValueError, match=r"lost\.parquet cannot be read as Parquet"):
        load_rec(tmp_path / "lost.parquet")


def test_without_pyarrow_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet: reading Parquet requires pyarrow"):
        load_rec(tmp_path / "a.parquet")
