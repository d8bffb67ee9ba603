"""Reading what a user has: pickles without code, safetensors, sharded folders. Nothing here knows LION's parts."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

PARALLEL_PREFIX = "module."
"""What PyTorch puts before every key of a model that was saved inside of its wrapper for several devices."""


class SourceError(ValueError):
    """A source file that cannot be used; the message names it and says why."""


def load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth`/`.bin` file, memory-mapped; a training checkpoint's `"model"` part, without the rest.

    Raises:
        SourceError: if the file is missing, is not a checkpoint, is cut off, or holds anything but plain data.
    """
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path}: refused, it holds more than tensors and plain data ({_first_line(error)})."
        ) from error
    except Exception as error:  # a file that is no checkpoint fails in many ways
        raise SourceError(f"{path}: not a readable checkpoint, perhaps cut off ({_first_line(error)}).") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise SourceError(f"{path}: holds no state dict but {type(content).__name__}.")
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise SourceError(f"{path}: key {key!r} holds no tensor but {type(value).__name__}.")
    if all(key.startswith(PARALLEL_PREFIX) for key in content):
        content = {key.removeprefix(PARALLEL_PREFIX): value for key, value in content.items()}
    return dict(content)


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file.

    Raises:
        SourceError: if the file is missing or not a safetensors file.
    """
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: too large to be mapped
        raise SourceError(f"{path}: not a readable safetensors file ({_first_line(error)}).") from error


def load_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one weights file, by its ending."""
    return load_safetensors(path) if path.suffix == ".safetensors" else load_pickle(path)


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model folder in Hugging Face form: one file or shards, safetensors before pickles.

    Raises:
        SourceError: if the folder holds no weights, or a shard of its index is missing.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return load_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            weight_map = load_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise SourceError(f"{index}: names no shards.")
            shards = sorted(set(weight_map.values()))
            return {key: tensor for shard in shards for key, tensor in load_file(folder / shard).items()}
    raise SourceError(f"{folder}: holds no model.safetensors or pytorch_model.bin, in one file or in shards.")


def load_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        SourceError: if the file is missing, or is not a JSON object.
    """
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file.")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise SourceError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path}: holds no JSON object but {type(content).__name__}.")
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
