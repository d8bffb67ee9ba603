"""Files of records in all forms: the same rows, named faults, and a cache that is mapped and knows when it is old."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Image

from training.record_files import (
    add_member,
    good_record,
    png,
    write_images,
    write_json,
    write_parquet,
    write_saved,
    write_shard,
)
from transformers_lion.training import RecordError, RecordReport, load_records, record_files, record_tables
from transformers_lion.training.records import open_image, parse_record

RECORDS = [
    good_record(
        seed, tags=["dog", f"cat{seed}"], category="ref" if seed == 2 else "vqa", answer=f"[0.{seed},0.5,0.9,1.0]"
    )
    for seed in range(5)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with five images."""
    write_images(tmp_path, 5)
    return tmp_path


def write_form(form: str, records: list[Any], folder: Path) -> Path | str:
    """The records in a form, and the name that a recipe would give them."""
    half = len(records) // 2
    if form in (".json", ".jsonl"):
        return write_json(folder / f"train{form}", records)
    if form == "saved":
        return write_saved(folder / "saved", records)
    if form == ".parquet":
        return write_parquet(folder / "train.parquet", records, row_group_size=2)
    if form == ".tar":
        return write_shard(folder / "train.tar", records, folder)
    (folder / "parts").mkdir()
    if form == "parquet folder":
        write_parquet(folder / "parts" / "0.parquet", records[:half])
        write_parquet(folder / "parts" / "1.parquet", records[half:])
        return folder / "parts"
    if form == "parquet pattern":
        write_parquet(folder / "part-0.parquet", records[:half])
        write_parquet(folder / "part-1.parquet", records[half:])
        return f"{folder}/part-*.parquet"
    write_shard(folder / "shard-000.tar", records[:half], folder)
    write_shard(folder / "shard-001.tar", records[half:], folder)
    return f"{folder}/shard-{{000..001}}.tar"


FORMS = [".json", ".jsonl", ".parquet", "parquet folder", "parquet pattern", "saved", ".tar", "shards"]


def contents(rows: Any) -> list[Any]:
    """Rows without names, and with pixels in place of images."""
    return [{**row, "source": None, "image": open_image(parse_record(row).image).tobytes()} for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_rows(form: str, streaming: bool, folder: Path) -> None:
    expected = contents(load_records(RECORDS, folder))
    rows = load_records(write_form(form, RECORDS, folder), folder, streaming=streaming)
    assert sorted(contents(rows), key=str) == sorted(expected, key=str)
    if not streaming:
        assert contents(rows) == expected


BAD_NAMES = {
    ".json": ["train.json[1]", "train.json[3]"], ".jsonl": ["train.jsonl:2", "train.jsonl:4"],
    ".parquet": ["train.parquet[1]", "train.parquet[3]"], "parquet folder": ["0.parquet[1]", "1.parquet[1]"],
    "saved": ["saved[1]", "saved[3]"], ".tar": ["train.tar:001", "train.tar:003"],
    "shards": ["shard-000.tar:001", "shard-001.tar:001"],
}  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", BAD_NAMES)
def test_bad_records_are_named_by_file_and_row(form: str, streaming: bool, folder: Path) -> None:
    records = [dict(record) for record in RECORDS]
    records[1]["answer"] = " "
    records[3]["question"] = ""
    source, report = write_form(form, records, folder), RecordReport()
    assert len(list(load_records(source, folder, on_error="skip", report=report, streaming=streaming))) == 3
    assert sorted(os.path.basename(fault.source) for fault in report.faults) == BAD_NAMES[form]
    assert report.counts == {"no answer": 1, "no question": 1}
    with pytest.raises(RecordError, match=r"answer is empty|question is empty"):
        list(load_records(source, folder, streaming=streaming))


def test_lines_are_numbered_across_blocks_with_blank_and_broken_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps(record) for record in RECORDS]
    lines[1:1] = [""]
    lines[3:3] = ["{broken"]
    (folder / "a.jsonl").write_text("\n".join(lines))
    expected = [f"{folder}/a.jsonl:{number}" for number in (1, 3, 5, 6, 7)]
    for size in (1, 200, 1 << 20):
        monkeypatch.setattr(record_files, "BLOCK_BYTES", size)
        report = RecordReport()
        rows = load_records(folder / "a.jsonl", on_error="skip", report=report, cache_folder=folder / str(size))
        assert rows["source"][:] == expected
        assert [fault.source for fault in report.faults] == [f"{folder}/a.jsonl:4"]


# --- memory and cache -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [".jsonl", ".parquet", "saved"])
def test_records_of_files_are_mapped_and_not_held(form: str, folder: Path) -> None:
    records = [{**RECORDS[0], "question": f"What is {index}? {'x' * 200}"} for index in range(5000)]
    source = write_form(form, records, folder)
    before = pa.total_allocated_bytes()
    rows = load_records(source, folder)
    assert pa.total_allocated_bytes() - before < 100_000
    assert rows.cache_files
    assert rows[4999]["question"] == records[4999]["question"]


def test_embedded_images_of_a_saved_dataset_are_not_copied(folder: Path) -> None:
    records = [{**good_record(seed), "image": {"bytes": png(seed), "path": None}} for seed in range(4)]
    records[2]["answer"] = ""
    table = Dataset.from_list(records).cast_column("image", Image())
    table.save_to_disk(folder / "saved")
    report = RecordReport()
    for _ in range(2):
        rows = load_records(folder / "saved", cache_folder=folder / "cache", on_error="skip", report=report)
        assert [row["image"]["bytes"] for row in rows] == [png(0), png(1), png(3)]
        assert [row["source"] for row in rows] == [f"{folder}/saved[{index}]" for index in (0, 1, 3)]
    assert [fault.source for fault in report.faults] == [f"{folder}/saved[2]"]
    (file,) = (folder / "cache").rglob("*.arrow")
    assert png(0) not in file.read_bytes()


@pytest.mark.parametrize("form", [".jsonl", ".parquet", "saved", ".tar"])
def test_a_second_start_reads_the_cache_and_reports_the_same(
    form: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_form(form, [*RECORDS, good_record(0, answer="")], folder)
    reports = [RecordReport(), RecordReport()]
    first = load_records(source, folder, on_error="skip", report=reports[0])[:]
    monkeypatch.setattr(record_tables, "convert", lambda *_: pytest.fail("read again"))
    assert load_records(source, folder, on_error="skip", report=reports[1])[:] == first
    assert str(reports[1]) == str(reports[0])
    with pytest.raises(pytest.fail.Exception):  # the record is an error now
        load_records(source, folder)


def test_a_cache_is_not_used_after_a_change(folder: Path) -> None:
    file = write_json(folder / "a.jsonl", RECORDS)
    assert len(load_records(file)) == 5
    (folder / "a4.png").unlink()
    with pytest.raises(RecordError, match=r"a\.jsonl:5: its image .*a4\.png' does not exist"):
        load_records(file)
    assert len(load_records(file, on_error="skip")) == 4
    (folder / "a4.png").write_bytes(png(4))
    assert len(load_records(file, on_error="skip")) == 5
    write_json(file, RECORDS[:3])
    os.utime(file, ns=(1, 1))
    assert len(load_records(file)) == 3
    (folder / "a0.png").write_text("no image")
    assert len(load_records(file)) == 3
    with pytest.raises(RecordError, match=r"a0\.png"):
        load_records(file, check_images="decode")


def test_an_interrupted_conversion_leaves_no_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_json(folder / "a.jsonl", [*RECORDS, good_record(0, answer="")])
    with pytest.raises(RecordError):
        load_records(file, cache_folder=folder / "cache")
    assert not list((folder / "cache").rglob("*.*"))


# --- what cannot be read ----------------------------------------------------------------------------------------------


def test_what_is_not_there_or_not_clear_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No file matches this pattern.*none-\*\.parquet"):
        load_records(f"{folder}/none-*.parquet")
    write_shard(folder / "shard-0.tar", RECORDS, folder)
    with pytest.raises(FileNotFoundError, match=r"shard-1\.tar"):
        load_records(f"{folder}/shard-{{0..1}}.tar")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no \.parquet, \.tar or \.jsonl files"):
        load_records(folder / "empty")
    write_parquet(folder / "empty" / "a.parquet", RECORDS)
    write_json(folder / "empty" / "b.jsonl", RECORDS)
    with pytest.raises(ValueError, match=r"holds 1 \.parquet, 1 \.jsonl files"):
        load_records(folder / "empty")
    DatasetDict({"train": Dataset.from_list(RECORDS)}).save_to_disk(folder / "splits")
    with pytest.raises(ValueError, match=r"splits train; name one: .*splits/train"):
        load_records(folder / "splits")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_that_is_none_or_has_other_columns_is_named(streaming: bool, folder: Path) -> None:
    (folder / "a.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"a\.parquet is not a Parquet file"):
        load_records(folder / "a.parquet", streaming=streaming)
    write_parquet(folder / "b.parquet", [{**RECORDS[0], "hint": "a"}])
    with pytest.raises(ValueError, match=r"b\.parquet has the columns hint, which are not read"):
        load_records(folder / "b.parquet", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("size", [700, 1024, 5000])
def test_a_shard_that_is_cut_off_is_an_error(size: int, streaming: bool, folder: Path) -> None:
    shard = write_shard(folder / "a.tar", RECORDS, folder)
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"a\.tar is not a complete tar file"):
        list(load_records(shard, streaming=streaming, on_error="skip"))


def test_members_of_a_sample_are_read_or_named(folder: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key, members in {
            "x/a.b": {"json": b'{"question": "What?"}', "txt": "Größe\n".encode(), "png": png(0), "_meta": b"?"},
            "x/c": {"json": b'{"question": "What?", "answer": "a"}', "txt": b"b", "png": png(0)},
            "x/d": {"json": b"{broken", "png": png(0)},
            "x/e": {"json": b"{}", "png": png(0), "jpg": png(0)},
            "x/f": {"json": b"{}", "png": png(0), "cls": b"3"},
        }.items():
            for suffix, content in members.items():
                add_member(tar, f"{key.replace('.b', '')}.{suffix}", content)
    report = RecordReport()
    (row,) = load_records(folder / "a.tar", on_error="skip", report=report)
    assert (row["answer"], row["image"]["bytes"]) == ("Größe", png(0))
    assert [fault.kind for fault in report.faults] == ["unread field", "broken JSON", "no image", "unread field"]


def test_ranges_in_names_keep_their_zeros() -> None:
    assert record_files.expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert record_files.expand_braces("{0..1}/{0..1}") == ["0/0", "0/1", "1/0", "1/1"]
    assert record_files.expand_braces("plain.tar") == ["plain.tar"]
