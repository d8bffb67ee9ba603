"""Which images a command line names."""

import io
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from cli.command_line import lion, refusal
from jobs.source_files import image_file, serve, shard_bytes, stored, write_lines, write_parquet
from transformers_lion.cli.image_sources import find_images, name_file, open_images
from transformers_lion.cli.options import Columns
from transformers_lion.example import example_image
from transformers_lion.images import files as image_files
from transformers_lion.jobs.row_images import RowImages


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "sub/c d.webp", "sub/deep/e.png", ".hidden/f.png", "._g.png", "x[1].png", "h.txt"):
        path = Path("pics", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path, format="PNG")
    Path("empty").mkdir()
    return tmp_path


def give_stdin(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_folders_are_read_to_the_bottom_in_order(tree: Path) -> None:
    found = find_images(["pics"])
    expected = ["pics/a.JPG", "pics/b.png", "pics/x[1].png", "pics/sub/c d.webp", "pics/sub/deep/e.png"]
    assert (found.names, found.errors, found.is_many) == (expected, [], True)


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("pics/*.png", ["pics/b.png", "pics/x[1].png"]),
        ("pics/**/e.png", ["pics/sub/deep/e.png"]),
        ("pics/s*", ["pics/sub/c d.webp", "pics/sub/deep/e.png"]),
        ("pics/x[1].png", ["pics/x[1].png"]),
        ("pics/h.txt", ["pics/h.txt"]),
        ("https://example.org/*.png", ["https://example.org/*.png"]),
    ],
)
def test_an_argument_names_what_is_there_before_it_is_a_pattern(argument: str, names: list[str], tree: Path) -> None:
    found = find_images([argument])
    assert (found.names, found.errors) == (names, [])


@pytest.mark.parametrize("content", [b"pics/b.png\n\npics/sub/c d.webp\n", b"pics/b.png\r\npics/sub/c d.webp",
                                     b"pics/b.png\0pics/sub/c d.webp\0"])  # fmt: skip
def test_lists_on_stdin(content: bytes, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(content, monkeypatch)
    assert find_images(["-"]).names == ["pics/b.png", "pics/sub/c d.webp"]


def test_zero_bytes_allow_names_of_several_lines(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy("pics/b.png", "two\nlines.png")
    give_stdin(b"two\nlines.png\0", monkeypatch)
    assert find_images(["-"]).names == ["two\nlines.png"]


def test_an_empty_list_is_an_error(tree: Path) -> None:
    assert refusal("caption", "-", stdin="") == "stdin names no images."
    assert refusal("caption", "-", stdin="\n \n") == "stdin names no images."


def test_what_names_nothing_is_reported_and_the_rest_found(tree: Path) -> None:
    found = find_images(["lost.png", "empty", "*.gif", "pics/b.png"])
    assert found.names == ["pics/b.png"]
    assert [str(error) for error in found.errors] == [
        "[Errno 2] No such file or directory: 'lost.png'",
        "empty: there are no images, Parquet files or shards in this folder.",
        "[Errno 2] No such file or directory: '*.gif'",
    ]
    ran = lion("caption", "lost.png", "empty")
    assert ran.code == 1
    assert ran.errors == [
        "error: lost.png: No such file or directory.",
        "error: empty: there are no images, Parquet files or shards in this folder.",
    ]


def test_a_name_that_is_too_long_is_no_file(tree: Path) -> None:
    assert len(find_images(["a" * 5000]).errors) == 1


def write(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


BAD_FILES: dict[str, tuple[Any, str]] = {
    "text": (lambda: write("bad.png", b"hello"), "bad.png cannot be read: it is not an image"),
    "nothing": (lambda: write("empty.png", b""), "empty.png is empty"),
    "a piece": (
        lambda: write("cut.png", png(example_image().resize((100, 100)))[:2000]),
        "cut.png cannot be read: .*(truncated|broken)",
    ),
    "a link to nowhere": (lambda: os.symlink("nowhere", "link.png") or "link.png", "No such file.*link.png"),
    "a pipe": (lambda: os.mkfifo("pipe.png") or "pipe.png", "pipe.png is not a file"),
    "a server that is not there": (lambda: "http://127.0.0.1:9/x.png", "^http://127.0.0.1:9/x.png cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_no_image_is_named_with_the_reason(make: Any, words: str, tree: Path) -> None:
    with pytest.raises((ValueError, OSError), match=words):
        RowImages().open(name_file(make()))


def test_images_are_opened_so_many_at_a_time(tree: Path) -> None:
    write("bad.png", b"hello")
    names = ["pics/b.png", "pics/b.png", "bad.png", "pics/a.JPG", "pics/b.png", "pics/h.txt"]
    errors: list[Exception] = []
    chunks = list(open_images(list(map(name_file, names)), 2, errors.append))
    assert [[name for name, _ in chunk] for chunk in chunks] == [
        ["pics/b.png", "pics/b.png", "pics/a.JPG", "pics/b.png"], ["pics/h.txt"],
    ]  # fmt: skip
    assert len(errors) == 1


def test_files_that_are_passed_over_in_folders_are_counted_by_kind(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.HEIC", "sub/b.heic", "sub/c.jxl", "notes", ".hidden.heic"):
        Path("pics", name).write_bytes(b"\0" * 40)
    monkeypatch.setattr(image_files, "register_plug_ins", tuple)
    found = find_images(["pics"])
    assert len(found.names) == 5
    assert found.errors == []
    assert found.note == (
        "5 files were skipped because their suffixes are not those of images: 2 .heic, 1 .txt, 1 without a suffix, "
        "1 .jxl. To read .heic, .jxl: pip install pillow-heif pillow-jxl-plugin."
    )
    monkeypatch.setattr(image_files, "register_plug_ins", lambda: ("pillow-heif",))
    assert find_images(["pics"]).names[:2] == ["pics/a.HEIC", "pics/a.JPG"]
    assert find_images(["pics/b.png"]).note == ""


def test_a_note_names_what_was_passed_over_and_the_others_are_done(tree: Path) -> None:
    Path("pics/a.heic").write_bytes(b"\0" * 40)
    ran = lion("tag", "pics")
    assert ran.code == 0
    assert len(ran.lines) == 5
    assert ran.errors[0].startswith("note: 2 files were skipped")
    Path("empty/a.heic").write_bytes(b"\0" * 40)
    ran = lion("tag", "empty")
    assert ran.code == 1
    assert ran.errors[0] == "error: empty: there are no images, Parquet files or shards in this folder."
    assert "1 .heic" in ran.errors[1]


# --- manifests, tables and shards -------------------------------------------------------------------------------------


def test_rows_of_manifests_tables_and_shards_are_named_by_their_keys(tree: Path) -> None:
    write_lines(Path("a.jsonl"), {"image": "pics/b.png", "id": 7}, {"image": "lost.png", "id": 8})
    write_parquet(Path("a.parquet"), {"image": stored(10, 11)})
    write_parquet(Path("tables/b.parquet"), {"image": stored(12)})
    Path("a.tar").write_bytes(shard_bytes({"1.png": image_file(13)}))
    arguments = ["a.jsonl", "a.parquet", "tables", "a.tar"]
    found = find_images(arguments)
    assert found.names == ["pics/b.png", "lost.png", "a.parquet#0", "a.parquet#1", "tables/b.parquet#0", "1"]
    assert (found.errors, found.note) == ([], "")
    errors: list[Exception] = []
    (opened,) = open_images(found.rows, 10, errors.append)
    assert [image.width for _, image in opened] == [4, 10, 11, 12, 13]
    assert [getattr(error, "filename", None) for error in errors] == ["lost.png"]
    assert find_images(["a.jsonl"], Columns(key_column="id")).names == ["7", "8"]
    assert find_images(["a.jsonl"]).is_many


def test_a_source_that_cannot_be_listed_is_reported_and_the_rest_found(tree: Path) -> None:
    write_lines(Path("a.jsonl"), {"picture": "pics/b.png"})
    found = find_images(["a.jsonl", "a-{0,1}.tar", "pics/b.png"])
    assert found.names == ["pics/b.png"]
    assert [str(error) for error in found.errors] == [
        "a.jsonl, line 1: no image column; its columns are 'picture'. Choose the image column.",
        "[Errno 2] No such file or directory: 'a-0.tar'",
    ]
    assert find_images(["a.jsonl"], Columns(image_column="picture")).names == ["pics/b.png"]


def test_urls_are_downloaded_ahead_and_in_order() -> None:
    with serve({f"/{n}.png": image_file(n) for n in range(10, 34)}, together=12) as server:
        rows = [name_file(f"{server.url}/{n}.png") for n in range(10, 34)]
        batches = list(open_images(rows, 4, lambda error: pytest.fail(str(error))))
    assert [image.width for batch in batches for _, image in batch] == list(range(10, 34))
    assert list(map(len, batches)) == [4] * 6
