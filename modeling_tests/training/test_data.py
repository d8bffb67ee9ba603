"""Files and datasets of records, their mixtures, and a report of whatever is wrong with them."""

import json
import logging
import pickle
import socket
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, Image, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from training.record_files import good_record, make_image, png, write_images, write_json, write_source
from transformers_lion.training import RecordError, RecordReport, load_records, mix_datasets
from transformers_lion.training.data import FEATURES
from transformers_lion.training.records import open_image, parse_record

EVERY_ONCE = "all_exhausted_without_replacement"

BAD_RECORDS: list[tuple[Any, str]] = [
    (good_record(2, image=...), "no image"),
    (good_record(2, image="none.png"), "missing file"),
    (good_record(2, image="folder.png"), "missing file"),
    (good_record(2, question=" "), "no question"),
    (good_record(2, answer=None), "no answer"),
    (good_record(2, answer=[]), "no answer"),
    (good_record(2, answer=float("nan")), "no answer"),
    (good_record(2, answer={"text": "dog"}), "wrong type"),
    (good_record(2, category=3), "wrong type"),
    (good_record(2, tags=[1]), "wrong type"),
    (good_record(2, question="\ud800"), "broken text"),
    ("no object", "no object"),
    (None, "no object"),
]
UNREADABLE = [
    (good_record(2, image="cut.png"), "unreadable image"),
    (good_record(2, image="x.png"), "unreadable image"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, a file that was cut off, one that is no image, and a folder."""
    write_images(tmp_path, 3)
    (tmp_path / "cut.png").write_bytes(png()[:150])
    (tmp_path / "x.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def questions(dataset: Any) -> list[str]:
    """What is asked, in order."""
    return [row["question"] for row in dataset]


def rows_without_names(dataset: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "source"} for row in dataset]


def is_image(row: dict[str, Any], seed: int) -> bool:
    """Whether a row's image is the image of that seed."""
    return open_image(parse_record(row).image).tobytes() == make_image(seed).tobytes()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_files_become_rows_of_one_form(suffix: str, streaming: bool, folder: Path) -> None:
    records = [
        good_record(0, answer=["dog", "a dog"], category="ref", tags="dog, grass"),
        good_record(1, answer=2, tags=[]),
    ]
    file = write_json(folder / f"train{suffix}", records)
    dataset = load_records(file, streaming=streaming)
    assert isinstance(dataset, IterableDataset if streaming else Dataset)
    assert dataset.features == FEATURES
    first, second = dataset
    assert first == {
        "image": {"path": str(folder / "a0.png"), "bytes": None},
        "question": "What is a0?",
        "answer": "dog",
        "task_type": "region_level",
        "tags": ["dog", "grass"],
        "questions": None,
        "answers": None,
        "task_types": None,
        "source": f"{file}[0]" if suffix == ".json" else f"{file}:1",
    }
    assert (second["answer"], second["task_type"], second["tags"]) == ("2", "image_level", [])


def test_all_sources_give_the_same_rows(folder: Path) -> None:
    records = [good_record(seed, image=str(folder / f"a{seed}.png"), tags=["dog"]) for seed in range(3)]
    sources = [
        records,
        write_json(folder / "train.json", records),
        [write_json(folder / "train.jsonl", records)],
        Dataset.from_list(records),
        Dataset.from_list(records).cast_column("image", Image()),
        Dataset.from_list(records).to_iterable_dataset(),
        Dataset.from_list(records).cast_column("image", Image()).to_iterable_dataset(),
        IterableDataset.from_generator(lambda: iter(records)),
    ]
    expected = rows_without_names(load_records(records))
    for source in sources:
        assert rows_without_names(load_records(source)) == expected
        assert rows_without_names(load_records(source, streaming=True)) == expected


def test_several_files_are_read_one_after_the_other(folder: Path) -> None:
    files = [write_source(folder, 2, "a", ".jsonl"), write_source(folder, 2, "b")]
    expected = ["What is a0?", "What is a1?", "What is b0?", "What is b1?"]
    assert questions(load_records(files)) == expected
    assert sorted(questions(load_records(files, streaming=True))) == expected


def test_files_of_several_folders_need_an_image_folder(folder: Path) -> None:
    (folder / "b").mkdir()
    files = [write_source(folder, 1), write_json(folder / "b" / "b.json", [good_record(1)])]
    with pytest.raises(ValueError, match="image_folder is needed for files in 2 folders"):
        load_records(files)
    assert len(load_records(files, image_folder=folder)) == 2


def test_paths_may_be_absolute_or_lead_out_of_the_image_folder(folder: Path) -> None:
    (folder / "images").mkdir()
    records = [good_record(image=str(folder / "a0.png")), good_record(image="../a0.png")]
    assert len(load_records(records, folder / "images")) == 2


def test_a_file_may_begin_with_a_byte_order_mark_and_have_blank_lines(folder: Path) -> None:
    line = json.dumps(good_record(question="Où est le 狗?"), ensure_ascii=False)
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\n\n \n{line}".encode())
    (folder / "a.json").write_bytes(b"\xef\xbb\xbf" + f"[{line}]".encode())
    assert questions(load_records(folder / "a.jsonl")) == ["Où est le 狗?"] * 2
    assert questions(load_records(folder / "a.json")) == ["Où est le 狗?"]


def test_json_lines_are_known_by_their_content_too(folder: Path) -> None:
    lines = write_json(folder / "a.jsonl", [good_record(0), good_record(1)])
    assert len(load_records(lines.rename(folder / "a.json"))) == 2
    (folder / "one.json").write_text(json.dumps(good_record(), indent=2))
    assert len(load_records(folder / "one.json")) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not valid JSON"), ("  \n", "is not valid JSON"), ("[]", "has no records"),
        ('[{"image": 1}', "is not valid JSON"), ("3", "contains int, not a list"), ("[" * 100_000, "is not valid JSON"),
        ("\xff[]", "is not valid JSON"),
    ],
)  # fmt: skip
def test_a_file_without_records_stops_whatever_is_wished(
    content: str, words: str, streaming: bool, folder: Path
) -> None:
    file = folder / "bad.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"bad.json {words}"):
        list(load_records(file, on_error="skip", streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_file_of_lines_has_no_records(streaming: bool, folder: Path) -> None:
    (folder / "a.jsonl").touch()
    with pytest.raises(ValueError, match="has no records"):
        list(load_records(folder / "a.jsonl", streaming=streaming))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        load_records(tmp_path / "none.jsonl", on_error="skip")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_line_that_is_no_json_is_a_bad_record(streaming: bool, folder: Path) -> None:
    good = json.dumps(good_record()).encode()
    lines = [good, b'{"image": "a0.png", "question"', good, b"\xff\xfe", b"[" * 100_000, b"NaN", good]
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    report = RecordReport()
    assert len(list(load_records(folder / "a.jsonl", on_error="skip", report=report, streaming=streaming))) == 3
    found = {fault.source.rpartition("/")[2]: fault.kind for fault in report.faults}
    assert found == {
        "a.jsonl:2": "broken JSON", "a.jsonl:4": "broken JSON", "a.jsonl:5": "broken JSON", "a.jsonl:6": "no object",
    }  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["list", "lines"])
def test_a_record_with_a_field_that_stands_twice_is_a_bad_one(form: str, streaming: bool, folder: Path) -> None:
    good = json.dumps(good_record(_note={"a": 1}))
    records = [good, '{"image": "a0.png", "question": "A?", "question": "B?", "answer": "C"}']
    file = folder / ("a.json" if form == "list" else "a.jsonl")
    file.write_text(f"[{','.join(records)}]" if form == "list" else "\n".join(records))
    report = RecordReport()
    assert len(list(load_records(file, on_error="skip", report=report, streaming=streaming))) == 1
    (fault,) = report.faults
    assert (fault.kind, fault.reason) == ("broken JSON", "duplicate key 'question'")


def test_an_image_that_never_arrives_is_unreadable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and says nothing
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.png"
        report = RecordReport()
        with pytest.raises(ValueError, match="None of the 1 records"):
            load_records(
                [good_record(image=address)], check_images="decode", on_error="skip", report=report, timeout=0.2
            )
    assert report.counts == {"unreadable image": 1}


def as_source(form: str, records: list[Any], folder: Path) -> Any:
    """The same records in another form."""
    if form == "list":
        return records
    if form in (".json", ".jsonl"):
        return write_json(folder / f"train{form}", records)
    return IterableDataset.from_generator(lambda: iter(records))


@pytest.mark.parametrize("check_images", ["exists", "decode", None])
@pytest.mark.parametrize("form", ["list", ".json", ".jsonl", ".jsonl stream", "IterableDataset"])
def test_bad_records_are_left_out_counted_and_named(form: str, check_images: Any, folder: Path) -> None:
    form, _, stream = form.partition(" ")
    bad = BAD_RECORDS + UNREADABLE
    if form == "IterableDataset":  # holds nothing but objects, which are named by their content
        bad = [({**record, "id": id(record)}, kind) for record, kind in bad if kind != "no object"]
    records = [good_record(0), *(record for record, _ in bad), good_record(1)]
    report = RecordReport()
    dataset = load_records(
        as_source(form, records, folder), folder, check_images=check_images, on_error="skip", report=report,
        streaming=bool(stream),
    )  # fmt: skip
    unchecked = {None: ("missing file", "unreadable image"), "exists": ("unreadable image",), "decode": ()}[
        check_images
    ]
    expected = [kind for _, kind in bad if kind not in unchecked]
    left = len(bad) - len(expected)
    assert Counter(questions(dataset)) == Counter(["What is a0?", "What is a1?", *["What is a2?"] * left])
    assert report.counts == Counter(expected)
    assert len(report) == len(expected)
    if form != "IterableDataset":
        places = [position for position, (_, kind) in enumerate(bad, 1) if kind not in unchecked]
        names = {"list": "records[{}]", ".json": f"{folder}/train.json[{{}}]", ".jsonl": f"{folder}/train.jsonl:{{}}"}
        shift = 1 if form == ".jsonl" else 0
        found = sorted((fault.source, fault.kind) for fault in report.faults)
        assert found == sorted(
            (names[form].format(place + shift), kind) for place, kind in zip(places, expected, strict=True)
        )


@pytest.mark.parametrize("form", ["list", ".json", ".jsonl", ".jsonl stream", "IterableDataset"])
def test_a_bad_record_stops_where_that_is_wished(form: str, folder: Path) -> None:
    form, _, stream = form.partition(" ")
    source = as_source(form, [good_record(0), good_record(1, answer="")], folder)
    report = RecordReport()
    name = {"list": r"records\[1\]", ".json": r"train.json\[1\]", ".jsonl": "train.jsonl:2"}.get(form, "a1.png")
    with pytest.raises(RecordError, match=f"{name}.*: answer is empty"):
        list(load_records(source, folder, streaming=bool(stream), report=report))
    assert report.counts == {"no answer": 1}


def test_bad_rows_of_a_table_are_left_out_counted_and_named(folder: Path) -> None:
    bad = [good_record(2, image=image) for image in (None, "", "none.png", "folder.png", "cut.png")]
    bad += [good_record(2, question=question) for question in (None, " ")]
    bad += [good_record(2, answer=answer) for answer in (None, "")]
    table = Dataset.from_list([good_record(0), *bad, good_record(1, category=None)])
    report = RecordReport()
    dataset = load_records(table, folder, check_images="decode", on_error="skip", report=report)
    assert questions(dataset) == ["What is a0?", "What is a1?"]
    assert [row["source"] for row in dataset] == ["dataset[0]", "dataset[10]"]
    assert report.counts == {"no image": 2, "missing file": 2, "no question": 2, "no answer": 2, "unreadable image": 1}
    assert [fault.source for fault in report.faults] == [f"dataset[{index}]" for index in range(1, 10)]


def embedded_table(**fields: Any) -> Dataset:
    """Images inside of a table: good, none, cut off, of no format, good."""
    contents = [png(0), None, png(1)[:150], b"no image", png(2)]
    rows = [{**good_record(seed, **fields), "image_id": seed} for seed in range(5)]
    table = Dataset.from_list(rows).remove_columns("image")
    images = [{"bytes": content, "path": None} for content in contents]
    return table.add_column("image", images, feature=Image(decode=False)).cast_column("image", Image())


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["map", "stream"])
def test_embedded_images_are_kept_as_they_are(kind: str, streaming: bool) -> None:
    table: Any = embedded_table()
    report = RecordReport()
    table = table if kind == "map" else table.to_iterable_dataset(2)
    dataset = load_records(table, check_images="decode", on_error="skip", report=report, streaming=streaming)
    rows = list(dataset)
    assert questions(rows) == ["What is a0?", "What is a4?"]
    assert [row["image"]["bytes"] for row in rows] == [png(0), png(2)]
    assert report.counts == {"unreadable image": 2, "wrong type": 1}  # without an image the image_id 1 is none either


def test_images_of_a_table_are_not_copied_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("transformers_lion.training.records.store_image")
    table = embedded_table().select([0, 4]).flatten_indices()
    assert is_image(load_records(table)[1], 2)


def test_a_table_may_hold_images_and_paths(folder: Path) -> None:
    images = [{"bytes": png(1), "path": None}, {"bytes": None, "path": str(folder / "a2.png")}]
    table = Dataset.from_dict(
        {"image": images, "question": ["a?", "b?"], "answer": [1.0, 2.5]}, features=None
    ).cast_column("image", Image())
    rows = list(load_records(table))
    assert [row["answer"] for row in rows] == ["1", "2.5"]
    assert is_image(rows[0], 1)
    assert is_image(rows[1], 2)


def test_a_table_that_was_shuffled_and_formatted_keeps_its_images_at_their_questions() -> None:
    table = embedded_table().select([4, 0]).with_format("numpy")
    rows = list(load_records(table, on_error="skip"))
    assert questions(rows) == ["What is a4?", "What is a0?"]
    assert is_image(rows[0], 2)
    assert is_image(rows[1], 0)


def test_images_in_a_list_are_embedded() -> None:
    (row,) = load_records([good_record(image=make_image(3))])
    assert is_image(row, 3)


def test_several_questions_on_an_image_are_one_row(folder: Path) -> None:
    record = good_record(
        question=..., answer=..., category=..., questions=["a?", "b?"], answers=["1", "2"], categories=["ref", "vqa"]
    )
    for dataset in (load_records([record, good_record(1)], folder), load_records(Dataset.from_list([record]), folder)):
        row = dataset[0]
        assert (row["question"], row["answer"], row["task_type"]) == (None, None, None)
        assert (row["questions"], row["answers"]) == (["a?", "b?"], ["1", "2"])
        assert row["task_types"] == ["region_level", "image_level"]


def test_listed_categories_are_the_only_ones(folder: Path) -> None:
    records = [good_record(0, category="box"), good_record(1, category="Box"), good_record(2, category=...)]
    report = RecordReport()
    dataset = load_records(records, folder, categories={"box": "region_level"}, on_error="skip", report=report)
    assert dataset["task_type"][:] == ["region_level"]
    assert report.counts == {"unknown category": 2}
    with pytest.raises(ValueError, match="maps 'box' to 'pixel_level'"):
        load_records(records, folder, categories={"box": "pixel_level"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"check_images": "all"}, "check_images is 'all'"),
        ({"source": 3}, "not from int"),
        ({"source": []}, "records has no records"),
        (
            {"source": DatasetDict({"train": Dataset.from_list([good_record()])})},
            "Pass one split of the data; this has 'train'",
        ),
        ({"source": [good_record(answer="")], "on_error": "skip"}, "None of the 1 records"),
        ({"source": Dataset.from_dict({"image": []})}, "dataset has no records"),
        (
            {"source": Dataset.from_dict({"image": [], "hint": []})},
            "columns hint, which are not read; columns are image",
        ),
        (
            {"source": Dataset.from_dict({"other": [1]}), "on_error": "skip"},
            "no column image or image_path or image_id",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(arguments: dict[str, Any], words: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=words):
        load_records(**{"source": [good_record()], "image_folder": folder, **arguments})


def test_a_report_can_be_printed_and_saved(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = RecordReport()
    records = [good_record(0, category="ref"), good_record(1, answer=""), good_record(2, image="none.png")]
    with caplog.at_level(logging.WARNING):
        load_records(records, folder, on_error="skip", report=report)
    assert "records: 2 of 3 records are left out" in caplog.text
    assert str(report).splitlines() == [
        "records: 1 of 3 records kept (1 region_level questions)",
        "2 bad records: 1 no answer, 1 missing file.",
        "records[1]: answer is empty",
        f"records[2]: its image '{folder}/none.png' does not exist",
    ]
    report.save(folder / "report.json")
    saved = json.loads((folder / "report.json").read_text())
    assert saved["counts"] == {"no answer": 1, "missing file": 1}
    assert saved["faults"][0] == {"source": "records[1]", "kind": "no answer", "reason": "answer is empty"}
    assert (saved["sources"][0]["num_records"], saved["sources"][0]["num_kept"]) == (3, 1)


def test_a_long_report_names_the_first_and_saves_all(folder: Path) -> None:
    report = RecordReport()
    load_records([good_record(0), *[good_record(answer="")] * 50], folder, on_error="skip", report=report)
    assert str(report).splitlines()[-1] == "... and 30 more."
    report.save(folder / "report.json")
    assert len(json.loads((folder / "report.json").read_text())["faults"]) == 50


def test_a_report_in_a_file_outlives_its_process_and_one_without_leaves_none(folder: Path) -> None:
    report = RecordReport(folder / "logs" / "report.jsonl")
    load_records([good_record(0), good_record(1, answer="")], folder, on_error="skip", report=report)
    assert RecordReport(folder / "logs" / "report.jsonl").counts == pickle.loads(pickle.dumps(report)).counts
    temporary = RecordReport()
    path = temporary.path
    assert path.exists()
    del temporary
    assert not path.exists()


@pytest.mark.parametrize("form", [".jsonl", "IterableDataset"])
def test_what_workers_find_is_in_the_report_once(form: str, folder: Path) -> None:
    records = [good_record(0), good_record(1, answer=""), good_record(2, image="none.png"), good_record(2)]
    report = RecordReport()
    source = as_source(form, records, folder)
    dataset = load_records(source, folder, streaming=True, num_shards=4, on_error="skip", report=report)
    for epoch in range(2):
        mixture = mix_datasets([dataset], seed=1, epoch=epoch)
        loaded = [row["question"] for row in DataLoader(mixture, batch_size=None, num_workers=2)]
        assert sorted(loaded) == ["What is a0?", "What is a2?"]
    assert report.counts == {"no answer": 1, "missing file": 1}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of 23 records and one of 9."""
    folder = tmp_path_factory.mktemp("sources")
    return write_source(folder, 23, "a"), write_source(folder, 9, "b", ".jsonl")


def both(sources: tuple[Path, Path], kind: str) -> list[Any]:
    """The two sources as they are mixed."""
    streaming = {"map": (False, False), "stream": (True, True), "mixed": (True, False)}[kind]
    return [load_records(file, streaming=flag, num_shards=4) for file, flag in zip(sources, streaming, strict=True)]


EVERYTHING = sorted([f"What is a{seed}?" for seed in range(23)] + [f"What is b{seed}?" for seed in range(9)])


@pytest.mark.parametrize("kind", ["map", "stream", "mixed"])
def test_a_mixture_draws_in_proportion_to_the_ratios(kind: str, sources: tuple[Path, Path]) -> None:
    mixture = mix_datasets(both(sources, kind), [1, 7], seed=3)
    drawn = Counter(question[8] for question in questions(mixture))
    assert set(questions(mixture)) == set(EVERYTHING)
    assert 0.05 < drawn["a"] / drawn.total() < 0.22
    equal = Counter(question[8] for question in questions(mix_datasets(both(sources, kind), seed=3)))
    assert 0.3 < equal["a"] / equal.total() < 0.7


@pytest.mark.parametrize("kind", ["map", "stream", "mixed"])
def test_the_order_follows_from_seed_and_epoch(kind: str, sources: tuple[Path, Path]) -> None:
    def order(**arguments: int) -> tuple[str, ...]:
        return tuple(questions(mix_datasets(both(sources, kind), [2, 1], **arguments)))

    assert order() == order(seed=0, epoch=0)
    assert len({order(seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 2)}) == 4
    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)


def test_a_stream_has_another_order_in_each_epoch(sources: tuple[Path, Path]) -> None:
    mixture = mix_datasets(both(sources, "stream"), stopping_strategy=EVERY_ONCE)
    orders = []
    for epoch in (0, 1, 2, 1):
        mixture.set_epoch(epoch)
        orders.append(questions(mixture))
    assert len({tuple(order) for order in orders}) == 3
    assert orders[1] == orders[3]
    assert all(sorted(order) == EVERYTHING for order in orders)


SHARES = [
    (2, 2, "map", 0), (2, 2, "stream", 0), (2, 2, "stream", 1), (2, 2, "mixed", 1), (1, 2, "stream", 1),
    (2, 0, "stream", 1), (3, 0, "stream", 1),
]  # fmt: skip


@pytest.mark.parametrize(("world_size", "num_workers", "kind", "epoch"), SHARES)
def test_ranks_and_workers_share_everything_exactly_once(
    world_size: int, num_workers: int, kind: str, epoch: int, sources: tuple[Path, Path]
) -> None:
    mixture = mix_datasets(both(sources, kind), [2, 1], epoch=epoch, stopping_strategy=EVERY_ONCE)
    parts = []
    for rank in range(world_size):
        part: Any = split_dataset_by_node(mixture, rank, world_size)
        parts.append([row["question"] for row in DataLoader(part, batch_size=None, num_workers=num_workers)])
    assert sorted(chain(*parts)) == EVERYTHING
    assert all(len(part) >= len(EVERYTHING) // world_size - 3 for part in parts)


def batches(dataset: Any, batch_size: int, num_workers: int = 0) -> Iterator[list[str]]:
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=questions)
    yield from loader


@pytest.mark.parametrize(
    ("kind", "world_size", "num_workers"),
    [
        ("map", 1, 0),
        ("map", 2, 0),
        ("stream", 1, 0),
        ("stream", 2, 0),
        ("stream", 3, 0),
        ("stream", 2, 2),
        ("mixed", 2, 2),
    ],
)
def test_whole_batches_may_come_from_one_dataset(
    kind: str, world_size: int, num_workers: int, sources: tuple[Path, Path]
) -> None:
    mixture = mix_datasets(
        both(sources, kind), [2, 1], run_length=2 * world_size, stopping_strategy=EVERY_ONCE, epoch=1
    )
    found = []
    for rank in range(world_size):
        found += batches(split_dataset_by_node(mixture, rank, world_size), 2, num_workers)
    assert all(len({question[8] for question in batch}) == 1 and len(batch) == 2 for batch in found)
    drawn = [question for batch in found for question in batch]
    assert set(drawn) == set(EVERYTHING)
    assert len(drawn) <= len(EVERYTHING) + 2 * 4 * 2 * world_size  # at most a run for each dataset and shard


def test_batches_are_of_several_datasets_unless_that_is_wished(sources: tuple[Path, Path]) -> None:
    mixture = mix_datasets(both(sources, "map"))
    assert any(len({question[8] for question in batch}) == 2 for batch in batches(mixture, 2))


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_each_dataset_is_shuffled_unless_that_is_not_wished(kind: str, sources: tuple[Path, Path]) -> None:
    dataset = both(sources, kind)[1]
    kept, shuffled = (questions(mix_datasets([dataset], shuffle=shuffle)) for shuffle in (False, True))
    assert kept == questions(dataset)
    assert shuffled != kept
    assert sorted(shuffled) == sorted(kept) == EVERYTHING[-9:]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sample_ratios": [1, 2, 3]}, "3 sample_ratios for 2 datasets"),
        ({"sample_ratios": [1, 0]}, "must be positive"),
        ({"sample_ratios": [1, float("nan")]}, "must be positive"),
        ({"run_length": 0}, "run_length is 0"),
        ({"datasets": []}, "0 sample_ratios for 0 datasets"),
        ({"datasets": [Dataset.from_list([good_record()])]}, "Dataset 0 has no column 'answers'"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(arguments: dict[str, Any], words: str, sources: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=words):
        mix_datasets(**{"datasets": both(sources, "map"), **arguments})
