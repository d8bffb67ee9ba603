"""Exports of finished results: COCO that its own tools read, shards with answers beside the images, JSON Lines."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO

from cli.command_line import lion, refusal
from jobs.source_files import image_file, shard_bytes, write_images, write_lines
from transformers_lion.jobs.exports import to_coco, to_json_lines, to_webdataset
from transformers_lion.jobs.output import KEYS, Output, write_keys
from transformers_lion.jobs.schema import to_table
from transformers_lion.jobs.source_row import SourceRow
from transformers_lion.jobs.sources import list_rows

BOX, SCORED = [10.0, 20.0, 30.5, 60.0], [0.0, 0.0, 5.0, 5.0]


def located(phrase: str, *boxes: list[float], scores: list[float | None] | None = None) -> dict[str, Any]:
    return {"phrase": phrase, "boxes": list(boxes), "fractions": list(boxes), "scores": scores}


def finish(rows: Sequence[SourceRow], results: Sequence[dict[str, Any]]) -> Path:
    """Write the output folder of a job in which each row has a result."""
    output = Output(Path("out"))
    output.parts.mkdir(parents=True)
    write_keys(output.folder / KEYS, rows)
    table = to_table({"key": row.key, "width": 100, "height": 80, **x} for row, x in zip(rows, results, strict=True))
    for chunk in range(output.keys.num_chunks):
        size = output.keys.chunk_rows
        file = io.BytesIO()
        pq.write_table(table.slice(chunk * size, size), file)
        output.write_part(chunk, file.getvalue())
    output.finish("parquet")
    return output.folder


def read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


# --- COCO ---------------------------------------------------------------------------------------------------------


def finished_boxes(**fields: Any) -> Path:
    write_lines(Path("a.jsonl"), *({"image": f"{name}.png", **fields} for name in "abc"))
    results = [
        {"located": [located("dog", BOX, SCORED, scores=[0.5, None]), located("cat", BOX)], "caption": "a dog"},
        {"error": "it is broken.", "width": None, "height": None},
        {"located": [located("dog", [5, 5, 5, 9], [30.5, 60, 10, 20]), located("bird")], "caption": "\u2764"},
    ]
    return finish(list(list_rows("a.jsonl")), results)


def test_annotations_are_read_by_cocos_own_tools(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert to_coco(finished_boxes(), "coco.json") == 4
    coco = COCO("coco.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a.png", "c.png"]
    assert {entry["name"]: entry["id"] for entry in coco.loadCats(coco.getCatIds())} == {"dog": 1, "cat": 2}
    boxes = coco.loadAnns(coco.getAnnIds(imgIds=1, catIds=1))
    assert [entry["bbox"] for entry in boxes] == [[10.0, 20.0, 20.5, 40.0], [0.0, 0.0, 5.0, 5.0]]
    assert [entry["score"] for entry in boxes] == [0.5, 0.0]
    assert boxes[0]["area"] == 820
    (mirrored,) = coco.loadAnns(coco.getAnnIds(imgIds=3))
    assert (mirrored["bbox"], mirrored["score"]) == ([10.0, 20.0, 20.5, 40.0], 1.0)


def test_detections_are_results_for_cocos_evaluation(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished_boxes()
    to_coco(folder, "coco.json")
    assert to_coco(folder, "found.json", kind="detections", categories={"cat": 2, "dog": 1}) == 4
    assert len(COCO("coco.json").loadRes("found.json").getAnnIds()) == 4
    with pytest.raises(ValueError, match="'dog' is not one of the categories: 'cat'"):
        to_coco(folder, "other.json", kind="detections", categories={"cat": 2})
    assert not Path("other.json").exists()


def test_captions_are_annotations(place: Path) -> None:
    assert to_coco(finished_boxes(), "captions.json", kind="captions") == 2
    document = read("captions.json")
    assert document["annotations"] == [
        {"id": 1, "image_id": 1, "caption": "a dog"}, {"id": 2, "image_id": 3, "caption": "\u2764"},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="kind is 'boxes', but must be 'detections', 'annotations' or 'captions'"):
        to_coco("out", "x.json", kind="boxes")  # type: ignore[arg-type]


def test_ids_of_images_are_those_of_the_source(place: Path) -> None:
    write_images(place, "a.png", "b.png")
    Path("coco.json").write_text(
        json.dumps({"images": [{"id": 70, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}]})
    )
    folder = finish(list(list_rows("coco.json")), [{"located": [located("dog", BOX)]}, {"located": []}])
    to_coco(folder, "found.json", kind="detections")
    assert [entry["image_id"] for entry in read("found.json")] == [70]


def test_ids_of_only_some_images_are_refused(place: Path) -> None:
    write_lines(Path("a.jsonl"), {"image": "a.png", "image_id": 3}, {"image": "b.png", "image_id": "x"})
    folder = finish(list(list_rows("a.jsonl")), [{}, {}])
    with pytest.raises(ValueError, match=r"image_id of 'b.png' is 'x', but must be an integer in all rows or in none"):
        to_coco(folder, "found.json")
    assert not list(Path().glob("found.json*"))


def test_a_table_of_another_pipeline_is_exported_too(place: Path) -> None:
    table = to_table([{"key": "a", "width": 100, "height": 80, "located": [located("dog", BOX)]}])
    pq.write_table(table, "mine.parquet")
    assert to_coco(pa.dataset.dataset("mine.parquet"), "found.json") == 1


# --- WebDataset ---------------------------------------------------------------------------------------------------


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]


def test_answers_stand_beside_the_images_of_their_sample(place: Path) -> None:
    first = {
        "./x/1.png": image_file(10), "./x/1.txt": b"one", "2.left.png": image_file(11), "2.right.png": image_file(12),
    }  # fmt: skip
    second = {"3.png": b"broken", "4.json": b"{}", "5.png": image_file(13)}
    Path("a-0.tar").write_bytes(shard_bytes(first))
    Path("a-1.tar").write_bytes(shard_bytes(second))
    rows = list(list_rows("a-{0..1}.tar"))
    results = [{"caption": f"caption {row.key}", "answers": []} for row in rows]
    results[3] = {"error": "3 cannot be read.", "width": None, "height": None}
    assert to_webdataset(finish(rows, results), "copies") == 5
    found = members_of(Path("copies/a-0.tar"))
    assert list(found) == ["./x/1.png", "./x/1.txt", "./x/1.json", *list(first)[2:], "2.left.json", "2.right.json"]
    assert {name: found[name] for name in first} == first
    assert json.loads(found["./x/1.json"]) == {
        "key": "x/1", "caption": "caption x/1", "answers": [], "width": 100, "height": 80,
    }  # fmt: skip
    assert json.loads(found["2.right.json"])["caption"] == "caption 2.right.png"
    found = members_of(Path("copies/a-1.tar"))
    assert list(found) == ["3.png", "3.json", "4.json", "5.png", "5.json"]
    assert json.loads(found["3.json"]) == {"key": "3", "error": "3 cannot be read."}
    assert [row.key for row in list_rows("copies")] == [row.key for row in rows]


def test_a_member_of_that_name_is_not_replaced(place: Path) -> None:
    Path("a.tar").write_bytes(shard_bytes({"1.png": image_file(10), "1.json": b'{"a": 1}'}))
    folder = finish(list(list_rows("a.tar")), [{"caption": "x"}])
    with pytest.raises(ValueError, match=r"There already is a member 1.json. Choose another extension"):
        to_webdataset(folder, "copies")
    assert not list(Path().glob("copies*"))
    to_webdataset(folder, "copies", member="lion.json")
    assert list(members_of(Path("copies/a.tar"))) == ["1.png", "1.json", "1.lion.json"]
    with pytest.raises(FileExistsError):
        to_webdataset(folder, "copies")


def test_a_cut_shard_is_copied_up_to_the_cut(place: Path) -> None:
    content = shard_bytes({f"{number}.png": image_file(10) + bytes(2000) for number in range(3)})
    Path("a.tar").write_bytes(content[: len(content) // 2])
    rows = list(list_rows("a.tar"))
    count = len([row for row in rows if row.kind == "tar"])
    assert to_webdataset(finish(rows, [{"caption": "x"}] * len(rows)), "copies") == count
    assert [name for name in members_of(Path("copies/a.tar")) if name.endswith("png")] == [
        f"{number}.png" for number in range(count)
    ]


def test_results_of_files_are_not_put_into_shards(place: Path) -> None:
    write_images(place / "pics", "a.png")
    folder = finish(list(list_rows("pics")), [{}])
    with pytest.raises(ValueError, match=r"a.png is not a WebDataset shard"):
        to_webdataset(folder, "copies")


# --- JSON Lines, and what is not finished -------------------------------------------------------------------------


def test_json_lines_have_all_columns_in_order(place: Path) -> None:
    assert to_json_lines(finished_boxes(), "all.jsonl") == 3
    lines = [json.loads(line) for line in Path("all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["key"] for line in lines] == ["a.png", "b.png", "c.png"]
    assert lines[0]["located"][0]["boxes"] == [BOX, SCORED]
    assert lines[1]["error"] == "it is broken."


def test_the_command_writes_each_format_to_something_new(place: Path) -> None:
    Path("a.tar").write_bytes(shard_bytes({"1.png": image_file(10)}))
    results = [{"caption": "x", "located": [located("dog", BOX)]}]
    folder = finish(list(list_rows("a.tar")), results)
    for name, said in (
        ("jsonl", "1 rows."), ("coco", "1 boxes."), ("coco-detections", "1 boxes."), ("coco-captions", "1 captions."),
        ("webdataset", "1 images with results."),
    ):  # fmt: skip
        ran = lion("export-results", folder, "--format", name, "--output", name)
        assert (ran.code, ran.lines, ran.errors) == (0, [], [f"{name}: {said}"])
        assert refusal("export-results", folder, "-f", name, "-o", name) == f"{name}: File exists."
    assert read("coco-detections")[0]["bbox"] == [10.0, 20.0, 20.5, 40.0]
    assert read("coco-captions")["annotations"][0]["caption"] == "x"
    assert list(members_of(Path("webdataset/a.tar"))) == ["1.png", "1.json"]
    assert lion("export-results", folder, "-f", "webdataset", "-o", "named", "--member", "lion.json").code == 0
    assert list(members_of(Path("named/a.tar"))) == ["1.png", "1.lion.json"]


def test_results_that_are_not_finished_are_refused(place: Path) -> None:
    folder = finished_boxes()
    (folder / "_DONE").unlink()
    for export in (to_coco, to_json_lines, to_webdataset):
        with pytest.raises(ValueError, match="out is not complete"):
            export(folder, "target")
    assert not list(Path().glob("target*"))
