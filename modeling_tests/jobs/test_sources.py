"""Which rows a source has: their keys, places and columns, in which order, and what is refused."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pytest
from PIL import Image

from jobs.source_files import (
    image_file,
    serve,
    shard_bytes,
    stored,
    write_images,
    write_lines,
    write_parquet,
)
from transformers_lion.images import files as image_files
from transformers_lion.jobs import sources
from transformers_lion.jobs.source_row import SourceRow, rows_to_table, table_to_rows
from transformers_lion.jobs.sources import check_unique, list_rows
from transformers_lion.jobs.storage import expand_braces


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system of fsspec in memory, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def keys(source: Any, **options: Any) -> list[str]:
    return [row.key for row in list_rows(source, **options)]


def columns(row: SourceRow) -> dict[str, Any]:
    return json.loads(row.columns)


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        list(list_rows(source, **options))
    return str(caught.value)


# --- images -------------------------------------------------------------------------------------------------------


def test_images_of_a_folder_come_in_order_with_their_names_and_absolute_paths(place: Path) -> None:
    write_images(place / "pics", "b.png", "a.JPG", "sub/c d.webp", ".hidden/f.png", "._g.png")
    rows = list(list_rows("pics"))
    assert [row.key for row in rows] == ["pics/a.JPG", "pics/b.png", "pics/sub/c d.webp"]
    assert [row.path for row in rows] == [str(place / row.key) for row in rows]
    assert {row.kind for row in rows} == {"file"}


def test_files_that_are_skipped_are_counted_by_suffix(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "register_plug_ins", tuple)
    write_images(place / "pics", "a.png", "b.HEIC", "sub/c.heic", "d.txt")
    skipped = Counter[str]()
    assert keys("pics", skipped=skipped) == ["pics/a.png"]
    assert skipped == {".heic": 2, ".txt": 1}
    assert "2 .heic" in image_files.describe_passed_over(skipped)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("pics/*.png", ["pics/b.png", "pics/x[1].png"]),
        ("pics/**/e.png", ["pics/sub/deep/e.png"]),
        ("pics/s*", ["pics/sub/deep/e.png"]),
        ("pics/x[1].png", ["pics/x[1].png"]),
        ("pics/{b,x[[]1]}.png", ["pics/b.png", "pics/x[1].png"]),
        (["pics/b.png", "https://example.org/a*b.png"], ["pics/b.png", "https://example.org/a*b.png"]),
    ],
)
def test_a_source_is_what_is_there_before_it_is_a_pattern(source: Any, expected: list[str], place: Path) -> None:
    write_images(place / "pics", "b.png", "x[1].png", "sub/deep/e.png")
    Path("pics/notes.json").write_text("{}")
    assert keys(source) == expected


def test_a_pattern_that_matches_images_skips_what_is_beside_them(place: Path) -> None:
    write_images(place / "pics", "b.png")
    Path("pics/notes.json").write_text("{}")
    skipped = Counter[str]()
    assert keys("pics/*", skipped=skipped) == ["pics/b.png"]
    assert skipped == {".json": 1}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("lost.png", "lost.png"),
        ("*.gif", "[*].gif"),
        ("empty", "empty: there are no images, Parquet files or shards"),
        ([], "There is no source"),
        ("nowhere://a/b.png", "nowhere://a/b.png cannot be opened: Protocol not known"),
        ("shard.tar.gz", "shard.tar.gz is compressed"),
    ],
)
def test_what_is_no_source_is_refused_before_anything_is_listed(source: Any, words: str, place: Path) -> None:
    Path("empty").mkdir()
    Path("shard.tar.gz").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        list_rows(source)


def test_a_name_that_is_not_utf8_is_a_row_with_an_error(place: Path) -> None:
    (place / "pics").mkdir()
    Path(os.fsdecode(b"pics/bad\xff.png")).write_bytes(image_file(10))
    (row,) = list_rows("pics")
    assert (row.key, row.kind, row.error) == ("pics/bad\\udcff.png", "missing", "its name is not valid UTF-8.")
    assert table_to_rows(rows_to_table([row])) == [row]


def test_a_subfolder_that_cannot_be_read_is_a_row_with_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(place / "pics", "a.png", "closed/b.png")
    list_folder = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", refuse)
    first, second = list_rows("pics")
    assert first.key == "pics/a.png"
    assert (second.key, second.error) == ("pics/closed", "this folder cannot be read: Permission denied.")


# --- how many -----------------------------------------------------------------------------------------------------


def test_limit_takes_the_first_and_reads_no_more(place: Path) -> None:
    write_lines(place / "a.jsonl", {"image": "a.png"}, {"image": "b.png"}, {"image": "c.png"})
    assert keys("a.jsonl", limit=2) == ["a.png", "b.png"]
    assert keys(["a.jsonl", "https://example.org/x.png"], limit=3) == ["a.png", "b.png", "c.png"]


def test_a_sample_is_drawn_with_the_seed_and_keeps_the_order(place: Path) -> None:
    write_lines(place / "a.jsonl", *({"image": f"{number:03}.png"} for number in range(500)))
    first, second = keys("a.jsonl", sample=50, seed=1), keys("a.jsonl", sample=50, seed=2)
    assert first == keys("a.jsonl", sample=50, seed=1) == sorted(set(first))
    assert (len(first), len(second)) == (50, 50)
    assert first != second
    assert max(map(int, (key[:3] for key in first))) > 250
    assert len(keys("a.jsonl", sample=1000)) == 500


def test_limit_and_sample_are_refused_together_and_if_they_are_not_positive(place: Path) -> None:
    assert refusal("a", limit=3, sample=2) == "limit is 3 and sample is 2, but only one of them can be set."
    assert refusal("a", limit=0) == "limit is 0, but must be at least 1."


def test_rows_are_listed_one_by_one(place: Path) -> None:
    write_lines(place / "a.jsonl", *({"image": "x" * 500 + f"{number}.png"} for number in range(20_000)))
    program = (
        "import resource; from transformers_lion.jobs.sources import list_rows, check_unique\n"
        "next(iter(list_rows('a.jsonl'))); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert check_unique(lambda: list_rows('a.jsonl')) == 20_000\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 6_000  # KiB; the rows have 20 MB


# --- Parquet ------------------------------------------------------------------------------------------------------


def test_images_in_parquet_are_named_by_file_and_row(place: Path) -> None:
    file = write_parquet(
        place / "a.parquet",
        {"image": stored(10, 11, 12), "label": [1, None, 3], "words": [["a"], [], None], "odd": [[1], [], []]},
        rows_per_group=2,
    )
    rows = list(list_rows("a.parquet"))
    assert [row.key for row in rows] == ["a.parquet#0", "a.parquet#1", "a.parquet#2"]
    assert [(row.path, row.kind, row.position, row.column) for row in rows] == [
        (str(file), "parquet", number, "image") for number in range(3)
    ]
    assert [columns(row) for row in rows] == [{"label": 1, "words": ["a"]}, {"words": []}, {"label": 3}]


def test_bytes_are_images_and_a_column_gives_the_keys(place: Path) -> None:
    write_parquet(place / "a.parquet", {"picture": [image_file(10), None], "id": [7, 8]})
    first, second = list_rows("a.parquet", key_column="id")
    assert (first.key, first.kind, first.column, columns(first)) == ("7", "parquet", "picture", {"id": 7})
    assert (second.key, second.kind, second.error) == ("8", "missing", "its picture is empty.")


def test_a_row_without_a_key_is_a_row_with_an_error(place: Path) -> None:
    write_parquet(place / "a.parquet", {"image": ["a.png", "b.png"], "id": ["x", None]})
    assert [(row.key, row.error) for row in list_rows("a.parquet", key_column="id")] == [
        ("x", None), ("a.parquet#1", "its id is empty."),
    ]  # fmt: skip


def test_paths_and_urls_in_parquet_are_the_keys_and_are_resolved(place: Path) -> None:
    write_parquet(place / "data/a.parquet", {"file_name": ["x/a.png", "https://example.org/b.png", "/c.png"]})
    rows = list(list_rows("data/a.parquet"))
    assert [row.key for row in rows] == ["x/a.png", "https://example.org/b.png", "/c.png"]
    assert [row.path for row in rows] == [str(place / "data/x/a.png"), "https://example.org/b.png", "/c.png"]
    assert next(list_rows("data/a.parquet", image_root="pics")).path == str(place / "pics/x/a.png")
    assert next(list_rows("data/a.parquet", image_root="s3://pics/")).path == "s3://pics/x/a.png"
    assert keys("data/a.parquet", key_column="file_name") == [row.key for row in rows]
    assert keys("data/a.parquet", key_column="#") == [f"data/a.parquet#{number}" for number in range(3)]


@pytest.mark.parametrize("rows_per_group", [1, 2, 4])
def test_a_struct_without_bytes_is_its_path(place: Path, rows_per_group: int) -> None:
    write_parquet(place / "a.parquet", {"image": stored(10, None, None, 13)}, rows_per_group)
    assert [(row.key, row.kind) for row in list_rows("a.parquet")] == [
        ("a.parquet#0", "parquet"), ("None.png", "file"), ("None.png", "file"), ("a.parquet#3", "parquet"),
    ]  # fmt: skip


def test_a_folder_of_parquet_files_gives_them_all(place: Path) -> None:
    for name in ("b", "a", "_hidden"):
        write_parquet(place / f"data/{name}.parquet", {"image": stored(10)})
    Path("data/README.md").touch()
    assert keys("data") == ["data/a.parquet#0", "data/b.parquet#0"] == keys("data/[ab].parquet")
    write_images(place / "data", "x.png")
    assert keys("data") == ["data/x.png"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "a.parquet has no image column; its columns are 'text', 'number'. Choose the image column."),
        ({"image_column": "img"}, "a.parquet has no column 'img'; its columns are 'text', 'number'."),
        ({"image_column": "text", "key_column": "id"}, "has no column 'id'; its columns are 'text', 'number'."),
        ({"image_column": "number"}, "the column 'number' has the type int64, but images are bytes"),
    ],
)
def test_a_column_that_is_missing_is_refused_with_those_that_exist(
    options: dict[str, str], words: str, place: Path
) -> None:
    write_parquet(place / "a.parquet", {"text": ["a"], "number": [1]})
    assert words in refusal("a.parquet", **options)


def test_a_column_with_a_common_name_is_found_in_any_case(place: Path) -> None:
    write_parquet(place / "a.parquet", {"TEXT": ["a cat"], "URL": ["https://example.org/a.png"]})
    write_lines(place / "a.jsonl", {"text": "x", "Image": "a.png", "url": "https://example.org/b.png"})
    assert keys(["a.parquet", "a.jsonl"]) == ["https://example.org/a.png", "a.png"]


def test_two_columns_of_bytes_are_not_guessed(place: Path) -> None:
    write_parquet(place / "a.parquet", {"left": [image_file(10)], "right": [image_file(11)]})
    assert "several columns with bytes: 'left', 'right'" in refusal("a.parquet")
    assert next(list_rows("a.parquet", image_column="right")).column == "right"


def test_a_file_that_is_no_parquet_is_named(place: Path) -> None:
    Path("a.parquet").write_bytes(b"PAR1 but no more")
    assert "a.parquet cannot be read as Parquet" in refusal("a.parquet")


# --- data sets ----------------------------------------------------------------------------------------------------


def test_a_saved_data_set_is_listed_with_the_numbers_of_its_rows(place: Path) -> None:
    images = [Image.new("RGB", (10 + number, 3)) for number in range(5)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": images, "label": list(range(5))}, features=features)
    data.select([4, 3, 2, 1]).save_to_disk("saved", num_shards=2)
    rows = list(list_rows("saved"))
    assert [row.key for row in rows] == ["saved#0", "saved#1", "saved#2", "saved#3"]
    assert [(row.kind, row.position, columns(row)["label"]) for row in rows] == [
        ("arrow", 0, 4), ("arrow", 1, 3), ("arrow", 0, 2), ("arrow", 1, 1),
    ]  # fmt: skip
    assert keys("saved", key_column="label") == ["4", "3", "2", "1"]


def test_a_split_of_a_data_set_has_to_be_named_if_there_are_several(place: Path) -> None:
    data = datasets.Dataset.from_dict({"image": ["a.png"]})
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk("two")
    datasets.DatasetDict({"train": data}).save_to_disk("one")
    assert refusal("two") == "two has several splits. Name one: two/train, two/test."
    assert keys("two/train") == keys("one") == ["a.png"]


# --- shards -------------------------------------------------------------------------------------------------------


def test_members_of_a_sample_become_one_row_with_columns(place: Path) -> None:
    sample = {
        "./x/001.jpg": image_file(10),
        "./x/001.json": b'{"caption": "a cat", "size": [1, 2], "words": ["a"], "score": 0.5}',
        "./x/001.txt": b"a cat\n",
        "./x/001.cls": b"3\n",
        "./x/001.npy": b"\0",
        "./._001.jpg": b"",
    }
    content = shard_bytes(sample)
    Path("a.tar").write_bytes(content)
    (row,) = list_rows("a.tar")
    assert (row.key, row.kind, row.path, row.size) == ("x/001", "tar", str(place / "a.tar"), len(image_file(10)))
    assert content[row.position :].startswith(image_file(10))
    assert columns(row) == {"caption": "a cat", "words": ["a"], "score": 0.5, "txt": "a cat", "cls": 3}


def test_several_images_of_a_sample_are_several_rows(place: Path) -> None:
    members = {
        "1.left.png": image_file(10), "1.right.png": image_file(11), "1.json": b'{"a": 1}', "1.left.txt": b"L",
        "img.v2.000.jpg": image_file(12), "img.v2.001.jpg": image_file(13),
    }  # fmt: skip
    Path("a.tar").write_bytes(shard_bytes(members))
    rows = list(list_rows("a.tar"))
    assert [row.key for row in rows] == ["1.left.png", "1.right.png", "img.v2.000.jpg", "img.v2.001.jpg"]
    assert [columns(row) for row in rows] == [{"a": 1, "txt": "L"}, {"a": 1}, {}, {}]


def test_shards_are_named_by_braces_globs_and_folders(place: Path) -> None:
    for number in range(3):
        Path(f"s-{number:02}.tar").write_bytes(shard_bytes({f"{number}.png": image_file(10)}))
    assert keys("s-{00..02}.tar") == keys("s-*.tar") == keys(str(place)) == ["0", "1", "2"]
    assert expand_braces("{8..10}{a,b}") == ["8a", "8b", "9a", "9b", "10a", "10b"]
    assert refusal("s-{00..03}.tar").endswith("'s-03.tar'")


def test_keys_that_repeat_in_each_shard_can_have_its_name(place: Path) -> None:
    for name in ("a", "b"):
        Path(f"{name}.tar").write_bytes(shard_bytes({"0.png": image_file(10)}))
    assert keys(["a.tar", "b.tar"], key_column="#") == ["a.tar#0", "b.tar#0"]
    with pytest.raises(ValueError, match=r"the key '0': .*a.tar, byte 512 and .*b.tar, byte 512"):
        check_unique(lambda: list_rows(["a.tar", "b.tar"]))


def test_a_sample_without_an_image_is_a_row_and_other_files_are_counted(place: Path) -> None:
    Path("a.tar").write_bytes(shard_bytes({"1.json": b"{}", "1.txt": b"", "README.md": b"#", "2.png": image_file(9)}))
    skipped = Counter[str]()
    first, second = list_rows("a.tar", skipped=skipped)
    assert (first.key, first.error) == ("1", "the sample has no image, only json, txt.")
    assert (second.key, skipped) == ("2", {".md": 1})


@pytest.mark.parametrize(("name", "content"), [("1.json", b"{"), ("1.txt", b"\xff\xfe")])
def test_a_column_that_cannot_be_read_is_a_row_with_an_error(name: str, content: bytes, place: Path) -> None:
    Path("a.tar").write_bytes(shard_bytes({"1.png": image_file(9), name: content, "2.png": image_file(9)}))
    first, second = list_rows("a.tar")
    assert (first.kind, second.kind) == ("missing", "tar")
    assert f"{name} cannot be read" in str(first.error)


def test_rows_before_the_cut_of_a_shard_are_listed_and_the_cut_one_is_an_error(place: Path) -> None:
    content = shard_bytes({f"{number}.png": image_file(10) + bytes(2000) for number in range(3)})
    whole = [row.position for row in _rows_of(content)]
    for cut, words in (
        (whole[2] + 100, f"the shard ends {len(image_file(10)) + 1900} bytes before the end of 2.png."),
        (whole[2] - 100, f"a.tar is damaged: there is no valid header at byte {whole[2] - 512}."),
    ):
        *rows, last = _rows_of(content[:cut])
        assert [row.key for row in rows] == ["0", "1"]
        assert (last.kind, last.error) == ("missing", words)
    assert [row.key for row in _rows_of(content[: whole[2] - 512])] == ["0", "1"]  # whole, but without an end mark


def _rows_of(content: bytes) -> list[SourceRow]:
    Path("a.tar").write_bytes(content)
    return list(list_rows("a.tar"))


def test_a_damaged_header_is_not_taken_for_the_end_of_a_shard(place: Path) -> None:
    content = bytearray(shard_bytes({f"{number}.png": image_file(10) for number in range(3)}))
    position = _rows_of(bytes(content))[1].position
    content[position - 512 : position - 412] = b"x" * 100
    first, second = _rows_of(bytes(content))
    assert first.key == "0"
    assert second.error == f"a.tar is damaged: there is no valid header at byte {position - 512}."
    (row,) = _rows_of(b"no tar file at all" * 100)
    assert "a.tar is damaged" in str(row.error)


def test_a_compressed_shard_is_refused(place: Path) -> None:
    Path("a.tar").write_bytes(b"\x1f\x8b compressed")
    assert "a.tar is compressed" in refusal("a.tar")


# --- manifests ----------------------------------------------------------------------------------------------------


def test_lines_of_a_manifest_are_resolved_against_its_folder_and_bad_lines_are_rows(place: Path) -> None:
    (place / "lists").mkdir()
    write_lines(
        place / "lists/a.jsonl",
        "\ufeff" + json.dumps({"image": "x.png", "question": "Why?"}),
        "",
        {"image": "https://example.org/x.png"},
        '{"image": "cut',
        ["a"],
        {"image": None},
        {"image": 3},
        {"image": "data:image/png;base64,AAAA"},
        {"picture": "y.png"},
    )
    rows = list(list_rows("lists/a.jsonl"))
    assert [row.key for row in rows] == [
        "x.png", "https://example.org/x.png", *(f"lists/a.jsonl#{number}" for number in (4, 5, 6, 7, 8, 9)),
    ]  # fmt: skip
    assert rows[0].path == str(place / "lists/x.png")
    assert columns(rows[0]) == {"question": "Why?"}
    assert [str(row.error)[:25] for row in rows[2:]] == [
        "line 4 is not JSON: Inval", "line 5 is not a JSON obje", "its image is empty.", "its image is not a path o",
        "it is a data URI, not a p", "its image is empty.",
    ]  # fmt: skip


def test_columns_of_a_manifest_are_checked_in_its_first_record(place: Path) -> None:
    write_lines(place / "a.jsonl", {"picture": "a.png", "id": 1})
    assert refusal("a.jsonl") == (
        "a.jsonl, line 1: no image column; its columns are 'picture', 'id'. Choose the image column."
    )
    assert refusal("a.jsonl", image_column="img") == (
        "a.jsonl, line 1 has no column 'img'; its columns are 'picture', 'id'."
    )
    assert "has no column 'name'" in refusal("a.jsonl", image_column="picture", key_column="name")
    assert keys("a.jsonl", image_column="picture", key_column="id", image_root="x") == ["1"]


@pytest.mark.parametrize(
    "content", ['[{"image": "a.png"}, {"image": "b.png"}]', '{"image": "a.png"}\n{"image": "b.png"}']
)
def test_a_json_file_can_be_a_list_or_lines(content: str, place: Path) -> None:
    Path("a.json").write_text(content)
    assert keys("a.json") == ["a.png", "b.png"]


def test_images_of_coco_are_found_beside_the_annotations(place: Path) -> None:
    write_images(place / "val2017", "1.png", "2.png")
    (place / "annotations").mkdir()
    document = {"images": [{"id": n, "file_name": f"{n}.png", "width": 9} for n in (1, 2)], "annotations": []}
    Path("annotations/instances_val2017.json").write_text(json.dumps(document))
    rows = list(list_rows("annotations/instances_val2017.json"))
    assert [(row.key, row.path) for row in rows] == [(f"{n}.png", str(place / f"val2017/{n}.png")) for n in (1, 2)]
    assert columns(rows[0]) == {"id": 1, "width": 9, "image_id": 1}
    assert keys("annotations/instances_val2017.json", image_root="other") == ["1.png", "2.png"]
    Path("alone.json").write_text(json.dumps({"images": [{"file_name": "x.png"}]}))
    assert "alone.json: x.png is in none of" in refusal("alone.json")


def test_json_of_another_kind_is_refused(place: Path) -> None:
    Path("a.json").write_text('{"settings": 1}')
    assert "neither a COCO annotation file" in refusal("a.json")
    Path("a.json").write_text("{'a'}")
    assert "a.json is not JSON" in refusal("a.json")


# --- other file systems -------------------------------------------------------------------------------------------


def test_all_kinds_of_sources_are_read_through_fsspec(place: Path, memory: Any) -> None:
    file = write_parquet(place / "a.parquet", {"image": stored(10, 11)})
    files = {
        "/pics/b.png": image_file(10), "/pics/sub/a.png": image_file(11), "/pics/n.txt": b"", "/pics/.h.png": b"",
        "/d/a.parquet": file.read_bytes(), "/s/a-0.tar": shard_bytes({"1.png": image_file(12)}),
        "/m/a.jsonl": b'{"image": "../pics/b.png"}\n',
    }  # fmt: skip
    for name, content in files.items():
        memory.pipe_file(name, content)
    skipped = Counter[str]()
    assert keys("memory://pics", skipped=skipped) == ["memory:///pics/b.png", "memory:///pics/sub/a.png"]
    assert skipped == {".txt": 1}
    assert keys("memory://pics/*.png") == ["memory:///pics/b.png"]
    assert keys("memory://d/a.parquet") == ["memory://d/a.parquet#0", "memory://d/a.parquet#1"]
    assert keys("memory://d") == ["memory:///d/a.parquet#0", "memory:///d/a.parquet#1"]
    assert keys("memory://s/a-{0,0}.tar") == ["1", "1"]
    (row,) = list_rows("memory://m/a.jsonl", image_root="memory://pics")
    assert (row.kind, row.path) == ("file", "memory://pics/b.png")
    with pytest.raises(FileNotFoundError):
        list_rows("memory://lost/a.png")


def test_shards_and_tables_are_read_over_http(place: Path) -> None:
    pytest.importorskip("aiohttp")
    file = write_parquet(place / "a.parquet", {"image": stored(10, 11)})
    files = {
        "/a-0.tar": shard_bytes({"1.png": image_file(12)}), "/a.parquet": file.read_bytes(),
        "/a.jsonl": b'{"image": "pics/b.png"}\n',
    }  # fmt: skip
    with serve(files) as server:
        assert keys(f"{server.url}/a-{{0..0}}.tar") == ["1"]
        assert keys(f"{server.url}/a.parquet") == [f"{server.url}/a.parquet#{number}" for number in (0, 1)]
        assert next(list_rows(f"{server.url}/a.jsonl")).path == f"{server.url}/pics/b.png"
        server.files["/b.jsonl?a=b/c"] = files["/a.jsonl"]
        assert next(list_rows(f"{server.url}/b.jsonl?a=b/c")).path == f"{server.url}/pics/b.png"
        assert "lost.tar" in refusal(f"{server.url}/lost.tar")
    with serve(files, has_ranges=False) as server:
        assert "cannot be read in parts" in refusal(f"{server.url}/a-0.tar")


# --- keys ---------------------------------------------------------------------------------------------------------


def test_two_rows_with_a_key_are_refused_with_both_places(place: Path) -> None:
    rows = [SourceRow(f"{number}", f"/{number}.png", "file") for number in range(1000)]
    assert check_unique(lambda: rows) == 1000
    rows.append(SourceRow("7", "/x.parquet", "parquet", 3))
    with pytest.raises(ValueError, match=r"Two of 1001 rows have the key '7': /7.png and /x.parquet, row 3. Keys must"):
        check_unique(lambda: iter(rows))
    assert check_unique(list) == 0


def test_equal_digests_of_different_keys_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "digest", len)
    assert check_unique(lambda: [SourceRow(key, "/x", "file") for key in ("a", "b", "cc")]) == 3


def test_rows_survive_a_table() -> None:
    rows = [SourceRow("a", "/a", "tar", 2**40, 7, "", '{"x": 1}'), SourceRow("b", "", "missing", error="lost")]
    table = rows_to_table(rows)
    assert table.schema == sources.KEY_SCHEMA
    assert table.schema.names == ["key", "path", "kind", "position", "size", "column", "columns", "error"]
    assert table_to_rows(table) == rows
    assert rows_to_table([]).schema.equals(pa.schema(sources.KEY_SCHEMA))
