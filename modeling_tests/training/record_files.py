"""Records of training data and the files that they stand in, as small as they can be."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from PIL import Image


def make_image(seed: int = 0, width: int = 12, height: int = 10) -> Image.Image:
    """An image of noise."""
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def png(seed: int = 0, width: int = 12, height: int = 10) -> bytes:
    """The same image as a file."""
    file = io.BytesIO()
    make_image(seed, width, height).save(file, "PNG")
    return file.getvalue()


def good_record(seed: int = 0, name: str = "a", **fields: Any) -> dict[str, Any]:
    """A record of the image `name` + `seed`; fields that are `...` are left out."""
    record = {
        "image": f"{name}{seed}.png",
        "question": f"What is {name}{seed}?",
        "answer": f"Noise {seed}",
        "category": "vqa",
        **fields,
    }
    return {name: value for name, value in record.items() if value is not ...}


def write_images(folder: Path, count: int, name: str = "a") -> None:
    """The files that `good_record` names."""
    for seed in range(count):
        (folder / f"{name}{seed}.png").write_bytes(png(seed))


def write_json(path: Path, records: Sequence[Any]) -> Path:
    """A file of records, as its suffix says."""
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) if lines else json.dumps(records))
    return path


def write_source(folder: Path, count: int, name: str = "a", suffix: str = ".json") -> Path:
    """A file of good records, and their images."""
    write_images(folder, count, name)
    return write_json(folder / f"{name}{suffix}", [good_record(seed, name) for seed in range(count)])


def write_parquet(path: Path, records: Sequence[dict[str, Any]], row_group_size: int = 1000) -> Path:
    """A Parquet file of records."""
    pq.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=row_group_size)
    return path


def write_shard(path: Path, records: Sequence[dict[str, Any]], folder: Path) -> Path:
    """A WebDataset shard of records, with the images that they name."""
    with tarfile.open(path, "w") as tar:
        for index, record in enumerate(records):
            fields = {name: value for name, value in record.items() if name != "image"}
            add_member(tar, f"{index:03d}.json", json.dumps(fields).encode())
            if record.get("image"):
                add_member(tar, f"{index:03d}.png", (folder / record["image"]).read_bytes())
    return path


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar file."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_saved(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """A dataset that `datasets` saved."""
    Dataset.from_list(list(records)).save_to_disk(path)
    return path
