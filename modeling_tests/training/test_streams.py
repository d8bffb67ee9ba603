"""Streams: each record once in a pass, an order that follows from the seed, and resuming at any record."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest
from torch.utils.data import DataLoader

from training.record_files import good_record, write_images, write_json, write_parquet, write_saved, write_shard
from transformers_lion.training import (
    FileSource,
    RecordReport,
    RecordStream,
    StreamCollator,
    TableSource,
    load_records,
    stream_records,
)
from transformers_lion.training.record_files import find_files

NUM_RECORDS = 23
RECORDS = [good_record(seed % 3, question=f"q{seed}?") for seed in range(NUM_RECORDS)]
FORMS = ["lines", "json", "parquet", "saved", "shards", "table"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records in all forms."""
    folder = tmp_path_factory.mktemp("stream")
    write_images(folder, 3)
    write_json(folder / "a.jsonl", RECORDS)
    write_json(folder / "a.json", RECORDS)
    write_parquet(folder / "a.parquet", RECORDS, row_group_size=4)
    write_saved(folder / "saved", RECORDS)
    for index in range(4):
        write_shard(folder / f"shard-{index}.tar", RECORDS[index::4], folder)
    return folder


def source(form: str, folder: Path, buffer_size: int = 5, **options: Any) -> Any:
    """A source of the records, in a form."""
    names = {
        "lines": "a.jsonl", "json": "a.json", "parquet": "a.parquet", "saved": "saved", "shards": "shard-{0..3}.tar"
    }  # fmt: skip
    if form == "table":
        return TableSource("table", load_records(folder / "a.jsonl"), buffer_size)
    return stream_records(f"{folder}/{names[form]}", folder, on_error="skip", buffer_size=buffer_size, **options)


def as_batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch that says what its records ask."""
    return {"questions": [row["question"] for row in rows]}


def batches(stream: RecordStream, batch_size: int = 2) -> Iterator[list[str]]:
    """What the records of each batch ask; the stream notes each batch."""
    for batch in DataLoader(
        stream, batch_size, collate_fn=StreamCollator(as_batch), num_workers=stream.num_workers, prefetch_factor=None
    ):
        stream.note(batch)
        yield batch["questions"]


def first(stream: RecordStream, count: int) -> list[str]:
    """What the first records ask."""
    return [row["question"] for row in islice(stream, count)]


EVERYTHING = sorted(record["question"] for record in RECORDS)


@pytest.mark.parametrize("form", FORMS)
def test_each_pass_draws_each_record_once_in_another_order(form: str, folder: Path) -> None:
    drawn = first(RecordStream([source(form, folder)], seed=3), 3 * NUM_RECORDS)
    passes = [drawn[start : start + NUM_RECORDS] for start in range(0, len(drawn), NUM_RECORDS)]
    assert all(sorted(one) == EVERYTHING for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert EVERYTHING not in passes
    assert first(RecordStream([source(form, folder)], seed=3), len(drawn)) == drawn
    assert first(RecordStream([source(form, folder)], seed=4), len(drawn)) != drawn


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_readers", [2, 3, 7])
def test_readers_share_each_pass_without_loss_or_repetition(num_readers: int, form: str, folder: Path) -> None:
    one_pass: list[str] = []
    for rank in range(num_readers):
        stream = RecordStream([source(form, folder, 1000)])
        stream.set_process(rank, num_readers)
        for row in stream:
            if row["_stream_position"][2]:  # the second pass begins
                break
            one_pass.append(row["question"])
    assert sorted(one_pass) == EVERYTHING


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "shard-{0..3}.tar"])
def test_urls_are_streamed_through_fsspec(name: str, folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for file in find_files(folder / name):
        memory.pipe(f"/stream/{file.name}", file.read_bytes())
    stream = RecordStream([stream_records(f"memory://stream/{name}", folder)])
    rows = list(islice(stream, NUM_RECORDS))
    assert sorted(row["question"] for row in rows) == EVERYTHING
    assert all(row["source"].startswith("memory://stream/") for row in rows)


@pytest.mark.parametrize("form", ["lines", "parquet"])
def test_workers_share_what_a_process_reads(form: str, folder: Path) -> None:
    found: Counter[str] = Counter()
    for rank in range(2):
        stream = RecordStream([source(form, folder)])
        stream.set_process(rank, 2, num_workers=2)
        found.update(question for batch in islice(batches(stream, 1), NUM_RECORDS) for question in batch)
    assert set(found) == set(EVERYTHING)
    assert max(found.values()) <= 3


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_resumes_at_any_batch(form: str, folder: Path) -> None:
    def make() -> RecordStream:
        stream = RecordStream([source(form, folder), source("lines", folder, 3)], [2, 1], run_length=2, seed=1)
        stream.set_process(1, 2)
        return stream

    expected = list(islice(batches(make()), 30))
    for count in range(30):
        stream = make()
        assert list(islice(batches(stream), count)) == expected[:count]
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        assert list(islice(batches(resumed), 30 - count)) == expected[count:]


@pytest.mark.parametrize("count", [1, 4, 13])
def test_workers_resume_in_step_although_they_read_ahead(count: int, folder: Path) -> None:
    def make() -> RecordStream:
        stream = RecordStream([source("parquet", folder)])
        stream.set_process(0, 1, num_workers=2)
        return stream

    expected = list(islice(batches(make()), 20))
    stream = make()
    assert list(islice(batches(stream), count)) == expected[:count]
    resumed = make()
    resumed.load_state_dict(stream.state_dict())
    assert list(islice(batches(resumed), 20 - count)) == expected[count:]


def test_resuming_does_not_check_again_what_was_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = RecordStream([source("lines", folder)])
    expected = list(islice(batches(stream, 1), 22))
    stream = RecordStream([source("lines", folder)])
    list(islice(batches(stream, 1), 17))
    names: list[str] = []
    check = FileSource.check
    monkeypatch.setattr(FileSource, "check", lambda self, name, raw: names.append(name) or check(self, name, raw))
    resumed = RecordStream([source("lines", folder)])
    resumed.load_state_dict(stream.state_dict())
    assert list(islice(batches(resumed, 1), 5)) == expected[17:]
    assert len(names) == 5


def test_a_record_that_becomes_good_does_not_move_the_others(folder: Path, tmp_path: Path) -> None:
    records = [good_record(seed, question=f"q{seed}?") for seed in range(10)]
    write_images(tmp_path, 9)
    file = write_json(tmp_path / "a.jsonl", records)

    def make() -> RecordStream:
        return RecordStream([stream_records(file, on_error="skip", buffer_size=4)])

    stream = make()
    drawn = [batch[0] for batch in islice(batches(stream, 1), 6)]
    write_images(tmp_path, 10)
    whole = first(make(), 10)
    resumed = make()
    resumed.load_state_dict(stream.state_dict())
    later = [batch[0] for batch in islice(batches(resumed, 1), 4 - ("q9?" in whole[: whole.index(drawn[-1])]))]
    assert [question for question in whole if question != "q9?"] == [q for q in drawn + later if q != "q9?"]


def test_a_reader_holds_no_more_than_its_buffer(folder: Path) -> None:
    class Endless:
        name, parts, buffer_size, num_read = "endless", (0,), 10, 0

        def read(self, part: int, start: int, step: int, skip: int) -> Iterator[Any]:
            while True:
                self.num_read += 1
                yield "", {"question": ""}

        def check(self, name: str, raw: Any) -> Any:
            return raw

    endless = Endless()
    for count, _ in enumerate(islice(RecordStream([endless]), 35), 1):
        assert endless.num_read == -(-count // 10) * 10


def test_sources_are_drawn_in_proportion_and_in_runs(folder: Path) -> None:
    stream = RecordStream([source("lines", folder), source("shards", folder)], [1, 3], run_length=4)
    origins = [".tar" in row["source"] for row in islice(stream, 4000)]
    assert 0.7 < sum(origins) / 4000 < 0.8
    assert all(len(set(origins[start : start + 4])) == 1 for start in range(0, 4000, 4))


def test_a_position_is_saved_before_another_process_has_created_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    stream = RecordStream([source("lines", folder)])
    stream.save(tmp_path / "checkpoint-1")
    stream.load(tmp_path / "checkpoint-1")


def test_bad_records_and_other_tasks_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    records = [good_record(0), good_record(0, answer=""), good_record(1, category="ref"), good_record(1)]
    write_json(tmp_path / "a.jsonl", records)
    report = RecordReport()
    options: dict[str, Any] = {"on_error": "skip", "report": report}
    stream = RecordStream([stream_records(tmp_path / "a.jsonl", task_types=("image_level",), **options)])
    assert Counter(first(stream, 20)) == {"What is a0?": 10, "What is a1?": 10}
    assert [fault.source for fault in report.faults] == [f"{tmp_path}/a.jsonl:2"]
    nothing = RecordStream([stream_records(tmp_path / "a.jsonl", task_types=(), **options)])
    with pytest.raises(
        ValueError, match=r"Reader 0 of 1 found no record that can be used in 11 passes over .*a.jsonl, among 44"
    ):
        next(iter(nothing))


def test_a_state_belongs_to_one_stream(folder: Path) -> None:
    state = RecordStream([source("lines", folder)]).state_dict()
    other = RecordStream([source("lines", folder)])
    other.set_process(0, 2)
    with pytest.raises(ValueError, match="saved with world_size 1 of the data, but now it is 2"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="sources"):
        RecordStream([source("lines", folder, 7)]).load_state_dict(state)
    other.set_process(0, 1, num_workers=2)
    with pytest.raises(ValueError, match="expects 2 dataloader workers, but there are 1"):
        next(iter(other))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sample_ratios": [1, 2]}, "2 sample_ratios for 1 sources"),
        ({"sample_ratios": [0]}, "must be positive"),
        ({"run_length": 0}, "run_length is 0"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(arguments: dict[str, Any], words: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=words):
        RecordStream([source("lines", folder)], **arguments)
