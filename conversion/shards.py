"""Writing safetensors shards one tensor at a time, and reading them back.

The safetensors library writes a file from tensors that are all in memory. A model of 12.7 B parameters does not fit
there, so the files are written here: a header that says where each tensor will stand, and then the tensors' bytes.
Format: https://huggingface.co/docs/safetensors, "Format".
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

INDEX_FILE = "model.safetensors.index.json"
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Slot:
    """What a tensor will be: its shape and dtype, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_numbers(self) -> int:
        """Numbers in the tensor."""
        return torch.Size(self.shape).numel()

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor in a file."""
        return self.num_numbers * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A file of the checkpoint and the tensors in it, in their order."""

    file: str
    slots: Mapping[str, Slot]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(slot.num_bytes for slot in self.slots.values())


def plan_shards(slots: Mapping[str, Slot], max_bytes: int) -> list[Shard]:
    """Divide tensors, in their order, into files of at most `max_bytes` (one tensor may exceed it alone)."""
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
    """Write one file, asking `load` for each tensor when its turn comes.

    Returns:
        The file's sha256.

    Raises:
        ValueError: if a tensor is not what its slot says.
    """
    digest = hashlib.sha256()
    with (folder / shard.file).open("wb") as file:
        for content in contents(shard, load):
            file.write(content)
            digest.update(content)
    return digest.hexdigest()


def contents(shard: Shard, load: Callable[[str, Slot], torch.Tensor]) -> Iterator[bytes | memoryview]:
    """The file's bytes, piece by piece: the header, then each tensor."""
    yield header_of(shard)
    for name, slot in shard.slots.items():
        tensor = load(name, slot)
        if (tuple(tensor.shape), tensor.dtype) != (slot.shape, slot.dtype):
            raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}, not {slot.shape} {slot.dtype}.")
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def header_of(shard: Shard) -> bytes:
    """The file's beginning: the header's length and the header, padded to 8 bytes."""
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
    """Write the index that says in which file each tensor is."""
    shards = list(shards)
    content = {
        "metadata": {
            "total_size": sum(shard.num_bytes for shard in shards),
            "total_parameters": sum(slot.num_numbers for shard in shards for slot in shard.slots.values()),
        },
        "weight_map": {name: shard.file for shard in shards for name in shard.slots},
    }
    (folder / INDEX_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def open_folder(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a converted folder.

    Raises:
        ValueError: if there are no weights, or a shard is missing.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        files = {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    elif (folder / "model.safetensors").is_file():
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            files = dict.fromkeys(file.keys(), folder / "model.safetensors")
    else:
        raise ValueError(f"{folder}: holds no model.safetensors, in one file or in shards.")
    missing = sorted({path.name for path in files.values() if not path.is_file()})
    if missing:
        raise ValueError(f"{folder}: the index names {missing[0]}, which is not there.")
    return files


class FolderReader:
    """Reads the tensors of a converted folder one at a time, memory-mapped."""

    def __init__(self, folder: Path):
        self.files = open_folder(folder)
        self._handles = {path: safe_open(path, framework="pt") for path in set(self.files.values())}

    def __getitem__(self, name: str) -> torch.Tensor:
        """One tensor."""
        return self._handles[self.files[name]].get_tensor(name)
