"""Exports the results of a job: COCO, WebDataset shards with the answers in them, and JSON Lines.

Outputs appear when they are complete. Sources: COCO's data and results formats (cocodataset.org), and WebDataset's
format of shards.
"""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from ..file_utils import naming, replacing
from ..grounding.boxes import box_to_xywh, order_box
from ..images import readable_suffixes
from .output import Output, read_results
from .shards import is_passed_over, split_name
from .source_row import SourceRow, table_to_rows
from .storage import open_binary

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

CocoKind = Literal["detections", "annotations", "captions"]

IMAGE_ID = "image_id"
"""Column of the rows with the ids of COCO images."""

Result = dict[str, Any]


def iterate(results: "str | os.PathLike | Dataset") -> Iterator[Result]:
    """Yield the results of a job in the order of its source.

    Args:
        results: The output folder of a finished job, or a data set of pyarrow with its columns.

    Raises:
        ValueError: If the job is not finished.
    """
    dataset = read_results(os.fspath(results)) if isinstance(results, str | os.PathLike) else results
    for batch in dataset.to_batches():
        yield from batch.to_pylist()


def iterate_with_rows(folder: str | os.PathLike) -> Iterator[tuple[SourceRow, Result]]:
    """Yield the rows of a finished job's source with their results.

    Raises:
        ValueError: If the job is not finished, or the results are not those of the rows.
    """
    keys = Output(Path(folder)).keys
    rows = (row for chunk in range(keys.num_chunks) for row in table_to_rows(keys.read_chunk(chunk)))
    for row, result in zip(rows, iterate(folder), strict=True):
        if row.key != result["key"]:
            raise ValueError(f"{folder} has the result of {result['key']!r} where that of {row.key!r} belongs.")
        yield row, result


# --- JSON Lines -------------------------------------------------------------------------------------------------------


def to_json_lines(results: "str | os.PathLike | Dataset", output: str | os.PathLike) -> int:
    """Write results as JSON Lines, one object per image.

    Args:
        results: See `iterate`.
        output: The file; an existing one is replaced.

    Returns:
        The number of lines.
    """
    count = 0
    with replacing(Path(output)) as new, new.open("w", encoding="utf-8") as file:
        for count, result in enumerate(iterate(results), 1):  # noqa: B007
            file.write(f"{json.dumps(result, ensure_ascii=False)}\n")
    return count


# --- COCO -------------------------------------------------------------------------------------------------------------


@dataclass
class Categories:
    """Ids of categories by phrase.

    Attributes:
        ids: The ids. Phrases that are not in them get the next number, unless they are fixed.
        is_fixed: Whether other phrases are an error.
    """

    ids: dict[str, int] = field(default_factory=dict)
    is_fixed: bool = False

    def find(self, phrase: str) -> int:
        """Return the id of a phrase.

        Raises:
            ValueError: If the phrase has none.
        """
        if self.is_fixed and phrase not in self.ids:
            raise ValueError(f"The phrase {phrase!r} is not one of the categories: {', '.join(map(repr, self.ids))}.")
        return self.ids.setdefault(phrase, len(self.ids) + 1)


def to_coco(
    results: "str | os.PathLike | Dataset",
    output: str | os.PathLike,
    kind: CocoKind = "annotations",
    categories: Mapping[str, int] | None = None,
) -> int:
    """Write boxes or captions in COCO's formats. Each phrase that was located is a category.

    Images with an error are left out. Boxes without an area, which COCO's evaluation never matches, are left out too.

    Args:
        results: See `iterate`. The ids of images are those of a COCO source, or the column `image_id` of other sources,
            or else the numbers of the rows from 1.
        output: The file; an existing one is replaced.
        kind: "detections" for a list of boxes with scores, as for COCO's evaluation; "annotations" for images, boxes
            and categories; "captions" for images and captions.
        categories: Ids of the categories by phrase. By default, they are numbered from 1 in the order of their first
            box.

    Returns:
        The number of boxes or captions.

    Raises:
        ValueError: If the job is not finished, the kind is unknown, a phrase is not in `categories`, or only some rows
            have an integer `image_id`.
    """
    known = Categories(dict(categories or {}), categories is not None)
    if kind not in ("detections", "annotations", "captions"):
        raise ValueError(f"kind is {kind!r}, but must be 'detections', 'annotations' or 'captions'.")
    with replacing(Path(output)) as new, new.open("w", encoding="utf-8") as file:
        if kind == "detections":
            return write_list(
                file, (box for image, result in _images(results) for box in boxes_of(image, result, known))
            )
        file.write('{"images": ')
        write_list(file, (_describe_image(image, result) for image, result in _images(results)))
        file.write(', "annotations": ')
        count = write_list(file, _annotations(results, kind, known))
        listed = [{"id": number, "name": name} for name, number in known.ids.items()]
        file.write(f', "categories": {json.dumps(listed, ensure_ascii=False)}}}\n' if kind == "annotations" else "}\n")
    return count


def write_list(file: IO[str], items: Iterable[Any]) -> int:
    """Write a JSON list item by item; return the number of items."""
    count = 0
    file.write("[")
    for count, item in enumerate(items, 1):
        file.write(("\n" if count == 1 else ",\n") + json.dumps(item, ensure_ascii=False))
    file.write("]")
    return count


def _images(results: "str | os.PathLike | Dataset") -> Iterator[tuple[int, Result]]:
    """Yield the id and the result of each image without an error."""
    if not isinstance(results, str | os.PathLike):
        yield from ((number, result) for number, result in enumerate(iterate(results), 1) if result["error"] is None)
        return
    has_ids: bool | None = None
    for number, (row, result) in enumerate(iterate_with_rows(results), 1):
        if result["error"] is not None:
            continue
        value = json.loads(row.columns).get(IMAGE_ID)
        is_id = isinstance(value, int) and not isinstance(value, bool)
        has_ids = is_id if has_ids is None else has_ids
        if is_id != has_ids:
            raise ValueError(f"{IMAGE_ID} of {row.key!r} is {value!r}, but must be an integer in all rows or in none.")
        yield (value if is_id else number), result


def _describe_image(image: int, result: Result) -> dict[str, Any]:
    return {"id": image, "file_name": result["key"], "width": result["width"], "height": result["height"]}


def _annotations(
    results: "str | os.PathLike | Dataset", kind: CocoKind, categories: Categories
) -> Iterator[dict[str, Any]]:
    number = 0
    for image, result in _images(results):
        if kind == "captions":
            found = [] if result["caption"] is None else [{IMAGE_ID: image, "caption": result["caption"]}]
        else:
            found = [
                {**box, "area": box["bbox"][2] * box["bbox"][3], "iscrowd": 0}
                for box in boxes_of(image, result, categories)
            ]
        for entry in found:
            number += 1
            yield {"id": number, **entry}


def boxes_of(image: int, result: Result, categories: Categories) -> Iterator[dict[str, Any]]:
    """Yield the boxes of an image. Without scores, all have 1; a box without a score among others has 0."""
    for located in result["located"] or []:
        scores = located["scores"] or [1.0] * len(located["boxes"])
        for box, score in zip(located["boxes"], scores, strict=True):
            x, y, width, height = box_to_xywh(order_box(tuple(box)))
            if width > 0 and height > 0:
                yield {
                    IMAGE_ID: image,
                    "category_id": categories.find(located["phrase"]),
                    "bbox": [x, y, width, height],
                    "score": 0.0 if score is None else score,
                }


# --- WebDataset -------------------------------------------------------------------------------------------------------


def to_webdataset(folder: str | os.PathLike, output: str | os.PathLike, member: str = "json") -> int:
    """Copy the shards of a job's source, with the results of each image in a JSON member beside it.

    The member is named like the sample, such as `000123.json`; if a sample has several images, like the image. Results
    that are null are left out. Images without a result, for example because of `--limit`, are copied as they are. A
    shard that is cut is copied up to the cut.

    Args:
        folder: The output folder of a finished job.
        output: The folder for the copies, which must not exist.
        member: Extension of the member.

    Returns:
        The number of results that were written.

    Raises:
        ValueError: If the job is not finished, its source has no shards, two shards have the same name, or a sample has
            such a member already.
        FileExistsError: If the folder exists.
    """
    target = Path(output)
    if target.exists():
        raise FileExistsError(17, os.strerror(17), str(target))
    new = target.with_name(f"{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        count = _copy_shards(folder, new, member)
        new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return count


def _copy_shards(folder: str | os.PathLike, output: Path, member: str) -> int:
    count, names = 0, dict[str, str]()
    for path, pairs in groupby(iterate_with_rows(folder), key=lambda pair: pair[0].path):
        results = {row.position: result for row, result in pairs if row.kind in ("tar", "missing")}
        if not path.endswith(".tar"):
            raise ValueError(f"{path} is not a WebDataset shard, so that the results cannot be put into it.")
        name = path.rpartition("/")[2]
        if name in names:
            raise ValueError(f"The shards {names[name]} and {path} have the same name.")
        names[name] = path
        with open_binary(path) as source, naming(output / name), (output / name).open("wb") as file:
            count += copy_shard(source, file, results, member)
    return count


def copy_shard(source: IO[bytes], target: IO[bytes], results: Mapping[int, Result], member: str) -> int:
    """Copy a shard and add results.

    Args:
        source: The shard.
        target: The copy.
        results: Results by the byte offset of the image in the shard.
        member: Extension of the members with results.

    Returns:
        The number of results that were written.

    Raises:
        ValueError: If a sample has such a member already.
    """
    count = 0
    with tarfile.open(fileobj=target, mode="w") as copy:
        for _, infos in groupby(_whole_members(source), key=lambda info: split_name(_name(info))[0]):
            sample = []
            for info in infos:
                sample.append(info)
                source.seek(info.offset_data)
                copy.addfile(info, source if info.isfile() else None)
            for name, result in answers_of(sample, results, member):
                content = json.dumps({key: value for key, value in result.items() if value is not None}).encode()
                added = tarfile.TarInfo(name)
                added.size = len(content)
                copy.addfile(added, io.BytesIO(content))
                count += 1
            copy.members = []  # type: ignore[attr-defined]
    return count


def _whole_members(source: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a shard up to one that is cut or damaged."""
    total = source.seek(0, os.SEEK_END)
    source.seek(0)
    try:
        with tarfile.open(fileobj=source, mode="r:") as archive:
            while (info := archive.next()) is not None and info.offset_data + info.size <= total:
                archive.members = []  # type: ignore[attr-defined]
                yield info
    except tarfile.TarError:
        return


def _name(info: tarfile.TarInfo) -> str:
    return info.name.removeprefix("./")


def answers_of(
    sample: list[tarfile.TarInfo], results: Mapping[int, Result], member: str
) -> Iterator[tuple[str, Result]]:
    """Yield the name and content of the members to add to a sample."""
    suffixes = readable_suffixes()
    names = {info.name for info in sample}
    images = [
        info for info in sample
        if info.isfile() and not is_passed_over(info.name) and os.path.splitext(info.name)[1].lower() in suffixes
    ]  # fmt: skip
    for info in images:
        if info.offset_data not in results:
            continue
        folder, slash, file = info.name.rpartition("/")
        stem = file.partition(".")[0] if len(images) == 1 else file.rpartition(".")[0]
        name = f"{folder}{slash}{stem}.{member}"
        if name in names:
            raise ValueError(
                f"There already is a member {name}. Choose another extension for the results, such as lion.json."
            )
        yield name, results[info.offset_data]


__all__ = ["to_coco", "to_json_lines", "to_webdataset"]
