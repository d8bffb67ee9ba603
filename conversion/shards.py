"""Write safetensors shards one tensor at a time, and read them back.

The safetensors library writes files from tensors that are all in memory, which is not possible for a model of 12.7 B
parameters. This module writes the header, which defines the position of each tensor, and then one tensor after the
other. Format: https://huggingface.co/docs/safetensors, "Format".
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sources import SourceError, check_file, load_index

INDEX_FILE = "model.safetensors.index.json"
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Slot:
    """Shape and dtype of a tensor to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_numbers(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in a file."""
        return self.num_numbers * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A file of the checkpoint and its tensors, in order."""

    file: str
    slots: Mapping[str, Slot]

    @property
    def num_bytes(self) -> int:
        """Total size of the tensors, without the header."""
        return sum(slot.num_bytes for slot in self.slots.values())


def plan_shards(slots: Mapping[str, Slot], max_bytes: int) -> list[Shard]:
    """Split tensors, in order, into files of at most `max_bytes`. A larger tensor gets its own file."""
    groups: list[dict[str, Slot]] = [{}]
    size = 0
    for name, slot in slots.items():
        if groups[-1] and size + slot.num_bytes > max_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = slot
        size += slot.num_bytes
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    return [
        Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", group) for number, group in enumerate(groups, 1)
    ]


def write_shard(folder: Path, shard: Shard, load: Callable[[str, Slot], torch.Tensor]) -> str:
    """Write one file, calling `load` for one tensor at a time.

    Returns:
        The SHA-256 of the file.

    Raises:
        ValueError: If a tensor does not match its slot.
    """
    digest = hashlib.sha256()
    with (folder / shard.file).open("wb") as file:
        for content in contents(shard, load):
            file.write(content)
            digest.update(content)
    return digest.hexdigest()


def contents(shard: Shard, load: Callable[[str, Slot], torch.Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the content of the file: the header, then each tensor."""
    yield header_of(shard)
    for name, slot in shard.slots.items():
        tensor = load(name, slot)
        if (tuple(tensor.shape), tensor.dtype) != (slot.shape, slot.dtype):
            raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}, not {slot.shape} {slot.dtype}.")
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def header_of(shard: Shard) -> bytes:
    """Return the start of the file: the length of the header and the header, padded to a multiple of 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, slot in shard.slots.items():
        end = offset + slot.num_bytes
        header[name] = {"dtype": DTYPE_NAMES[slot.dtype], "shape": slot.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_index(folder: Path, shards: Iterable[Shard]) -> None:
    """Write the index that maps tensors to files."""
    shards = list(shards)
    content = {
        "metadata": {
            "total_size": sum(shard.num_bytes for shard in shards),
            "total_parameters": sum(slot.num_numbers for shard in shards for slot in shard.slots.values()),
        },
        "weight_map": {name: shard.file for shard in shards for name in shard.slots},
    }
    (folder / INDEX_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


class FolderReader:
    """Reads the tensors of a folder of safetensors files one at a time, memory-mapped.

    Attributes:
        files: File of each tensor.
        shapes: Shape of each tensor.
        dtypes: Dtype of each tensor as named by safetensors, such as "BF16".

    Raises:
        SourceError: If a file is missing or broken, or does not match the index.
    """

    def __init__(self, folder: Path):
        index, single = folder / INDEX_FILE, folder / "model.safetensors"
        weight_map = load_index(index) if index.is_file() else {}
        if weight_map and single.is_file():  # transformers would load the first, other tools the second
            raise SourceError(f"{folder}: contains both {single.name} and shards; delete the outdated ones.")
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._path: Path | None = None
        self._file: Any = None
        for path in sorted({folder / file for file in weight_map.values()} or {single}):
            self._read_header(path, weight_map)
        lost = sorted(weight_map.keys() - self.files.keys())
        if lost:
            raise SourceError(
                f"{folder / weight_map[lost[0]]}: does not contain {lost[0]}, although the index says so."
            )

    def _read_header(self, path: Path, weight_map: Mapping[str, str]) -> None:
        check_file(path)
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if weight_map and weight_map.get(name) != path.name:
                        raise SourceError(f"{path}: contains {name}, which the index does not assign to this file.")
                    part = file.get_slice(name)
                    self.files[name], self.shapes[name] = path, tuple(part.get_shape())
                    self.dtypes[name] = part.get_dtype()
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{path}: not a readable safetensors file, possibly truncated ({error}).") from error

    def __getitem__(self, name: str) -> torch.Tensor:
        path = self.files[name]
        if self._path != path:  # one file at a time: there may be more shards than a process may open
            self._path, self._file = path, safe_open(path, framework="pt")
        return self._file.get_tensor(name)
