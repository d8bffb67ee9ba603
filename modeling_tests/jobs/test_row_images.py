"""Images of rows: the right pixels from every kind of place, each read once, and errors that name the row."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
from PIL import Image

from jobs.source_files import image_file, serve, shard_bytes, stored, write_images, write_lines, write_parquet
from transformers_lion.images import ORIENTATION
from transformers_lion.jobs import storage, tables
from transformers_lion.jobs.row_images import RowImages
from transformers_lion.jobs.source_row import SourceRow, missing_row
from transformers_lion.jobs.sources import list_rows


@pytest.fixture
def images() -> Iterator[RowImages]:
    with RowImages() as opened:
        yield opened


def widths(images: RowImages, source: Any, **options: Any) -> list[Any]:
    found = images.open_all(list(list_rows(source, **options)), 4)
    return [str(image) if isinstance(image, Exception) else image.width for image in found]


def test_the_image_of_each_kind_of_row_is_its_own(place: Path, images: RowImages) -> None:
    write_images(place / "pics", "a.png", "b.png")
    assert widths(images, "pics") == [10, 11]
    write_parquet(place / "a.parquet", {"image": stored(20, 21, None, 23)}, rows_per_group=3)
    write_images(place, "None.png")
    assert widths(images, "a.parquet") == [20, 21, 10, 23]
    write_parquet(place / "b.parquet", {"image": [image_file(30), image_file(31)]})
    assert widths(images, "b.parquet") == [30, 31]
    Path("a.tar").write_bytes(shard_bytes({"1.png": image_file(40), "1.txt": b"x", "2.jpg": image_file(41, "JPEG")}))
    assert widths(images, "a.tar") == [40, 41]
    write_lines(place / "a.jsonl", {"image": "pics/b.png"})
    assert widths(images, "a.jsonl") == [11]
    pictures = [Image.new("RGB", (50 + number, 3)) for number in range(3)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": pictures}, features=features).save_to_disk("saved", num_shards=2)
    assert widths(images, "saved") == [50, 51, 52]


def test_images_are_upright_and_keep_their_tones(place: Path, images: RowImages) -> None:
    file = io.BytesIO()
    turned = Image.new("RGB", (5, 3))
    exif = turned.getexif()
    exif[ORIENTATION] = 6
    turned.save(file, "JPEG", exif=exif)
    deep = io.BytesIO()
    Image.fromarray(np.full((2, 4), 30_000, dtype=np.uint16)).save(deep, "PNG")
    Path("a.tar").write_bytes(shard_bytes({"1.jpg": file.getvalue(), "2.png": deep.getvalue()}))
    first, second = (images.open(row) for row in list_rows("a.tar"))
    assert (first.size, first.mode) == ((3, 5), "RGB")
    assert second.getpixel((0, 0)) == (30_000 >> 8,) * 3


def test_an_image_that_cannot_be_read_is_an_error_with_the_key_in_its_place(place: Path, images: RowImages) -> None:
    write_images(place, "a.png")
    Path("text.png").write_bytes(b"hello")
    Path("empty.png").touch()
    write_parquet(place / "a.parquet", {"image": [b"hello", b"", image_file(9)], "id": ["x", "y", "z"]})
    found = widths(images, ["a.png", "text.png", "empty.png", "a.parquet"], key_column="id")
    assert found[1:5] == [
        "text.png cannot be read: it is not an image in a known format.", "empty.png is empty.",
        "x cannot be read: it is not an image in a known format.", "y is empty.",
    ]  # fmt: skip
    assert (found[0], found[5]) == (10, 9)
    lost = images.try_to_open(SourceRow("lost", "/nowhere/a.png", "file"))
    assert isinstance(lost, FileNotFoundError)
    assert lost.filename == "lost"
    with pytest.raises(ValueError, match=r"^gone: it went away\.$"):
        images.open(missing_row("gone", "/a.png", "it went away."))


def test_a_file_that_became_shorter_is_an_error(place: Path, images: RowImages) -> None:
    content = shard_bytes({"1.png": image_file(40)})
    Path("a.tar").write_bytes(content)
    (row,) = list_rows("a.tar")
    Path("a.tar").write_bytes(content[: row.position + 10])
    with pytest.raises(ValueError, match=f"^1 cannot be read: .*a.tar ends {row.size - 10} bytes before the end"):
        images.open(row)


def test_too_many_pixels_are_an_error(place: Path, images: RowImages, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(place, "a.png")
    Path("a.tar").write_bytes(shard_bytes({"1.png": image_file(40)}))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for found in widths(images, ["a.png", "a.tar"]):
        assert "exceeds limit of 20 pixels" in found


def test_rows_in_order_are_read_once_even_from_one_large_row_group(
    place: Path, images: RowImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(place / "a.parquet", {"image": stored(*range(10, 210))}, rows_per_group=150)
    read: list[int] = []
    next_cells = tables.ParquetImages.read_cells

    def count(self: tables.ParquetImages) -> Any:
        cells = next_cells(self)
        read.append(len(cells))
        return cells

    monkeypatch.setattr(tables.ParquetImages, "read_cells", count)
    rows = list(list_rows("a.parquet"))
    found = [image for start in range(0, 200, 20) for image in images.open_all(rows[start : start + 20], 6)]
    assert [image.width for image in found if isinstance(image, Image.Image)] == list(range(10, 210))
    assert sum(read) == 200
    assert max(read) <= tables.ROWS_READ
    assert images.open(rows[0]).width == 10  # from the start again
    assert images.open(rows[199]).width == 209


def test_only_a_few_tables_stay_open(place: Path, images: RowImages, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        write_parquet(place / f"d/{number}.parquet", {"image": stored(10 + number)})
    closed: list[str] = []
    monkeypatch.setattr(tables.ParquetImages, "close", lambda self: closed.append("x"))
    assert widths(images, "d") == list(range(10, 20))
    assert len(closed) == 10 - tables.FILES_KEPT


def test_threads_share_tables_and_shards(place: Path, images: RowImages) -> None:
    write_parquet(place / "a.parquet", {"image": stored(*range(10, 110))}, rows_per_group=30)
    Path("a.tar").write_bytes(shard_bytes({f"{n}.png": image_file(n) for n in range(200, 300)}))
    rows = [*list_rows("a.parquet"), *list_rows("a.tar")]
    mixed = rows[::-3] + rows[1::2] + rows[::7]
    found = images.open_all(mixed, 8)
    expected = {row.key: width for row, width in zip(rows, [*range(10, 110), *range(200, 300)], strict=True)}
    assert [getattr(image, "width", image) for image in found] == [expected[row.key] for row in mixed]


def test_urls_are_downloaded_at_the_same_time(images: RowImages) -> None:
    with serve({f"/{n}.png": image_file(n) for n in range(10, 34)}, together=12) as server:
        found = images.open_all(list(list_rows([f"{server.url}/{n}.png" for n in range(10, 34)])), 12)
    assert [getattr(image, "width", image) for image in found] == list(range(10, 34))


def test_a_download_that_fails_names_the_url_without_its_password(images: RowImages) -> None:
    with serve({}) as server:
        url = server.url.replace("://", "://user:secret@") + "/a.png"
        (error,) = widths(images, url)
        assert error == f"{server.url}/a.png cannot be read: the server answered with HTTP status 404 (Not Found)."
    (error,) = widths(images, f"{server.url}/a.png")
    assert error.startswith(f"{server.url}/a.png cannot be read: ")


def test_images_are_read_through_fsspec(place: Path, images: RowImages) -> None:
    system = fsspec.filesystem("memory")
    system.store.clear()
    file = write_parquet(place / "a.parquet", {"image": stored(20, 21)})
    system.pipe_file("/x/a.png", image_file(10))
    system.pipe_file("/x/a.parquet", file.read_bytes())
    system.pipe_file("/x/a.tar", shard_bytes({"1.png": image_file(30), "2.png": image_file(31)}))
    sources = ["memory://x/a.png", "memory://x/a.parquet", "memory://x/a.tar"]
    assert widths(images, sources) == [10, 20, 21, 30, 31]
    lost = SourceRow("k", "memory://x/lost.png", "file")
    assert str(images.try_to_open(lost)) == "k cannot be read: there is no file memory://x/lost.png."


def test_shards_and_tables_are_read_in_parts_over_http(place: Path, images: RowImages) -> None:
    pytest.importorskip("aiohttp")
    file = write_parquet(place / "a.parquet", {"image": stored(20, 21)})
    content = shard_bytes({"1.png": image_file(30), "2.png": image_file(31)})
    with serve({"/a.tar": content, "/a.parquet": file.read_bytes()}) as server:
        assert widths(images, [f"{server.url}/a.tar", f"{server.url}/a.parquet"]) == [30, 31, 20, 21]
    with serve({"/a.tar": content}, has_ranges=False) as server:
        row = SourceRow("1", f"{server.url}/a.tar", "tar", 512, len(image_file(30)))
        assert "cannot be read in parts" in str(images.try_to_open(row))


def test_a_file_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch, images: RowImages) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/x/a.png", image_file(10))
    monkeypatch.setattr(storage, "MAX_BYTES", 10)
    assert widths(images, "memory://x/a.png") == [
        "memory://x/a.png cannot be read: the file has more than 10 bytes, which is the limit."
    ]


def test_threads_end_when_images_are_closed(place: Path) -> None:
    write_images(place, "a.png")
    with RowImages() as images:
        widths(images, "a.png")
        started = [thread for thread in threading.enumerate() if thread.name.startswith("lion-row-images")]
        assert started
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
