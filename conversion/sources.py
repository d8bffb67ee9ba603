"""Read the user's files: pickles without running code, safetensors, and sharded folders. Independent of LION."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

PARALLEL_PREFIX = "module."
"""Prefix of all keys of a model that was saved inside PyTorch's data-parallel wrapper."""

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
"""Pattern for the object that a pickle needs and PyTorch refuses, as named in its error messages."""

ZIP, PICKLE = b"PK", b"\x80"
"""First bytes of PyTorch's two file formats."""


class SourceError(ValueError):
    """A source file that cannot be used. The message names it and says why."""


def check_file(path: Path) -> None:
    """Raise `SourceError` unless the path is a file that is not empty."""
    if not path.exists():
        raise SourceError(f"{path}: no such file.")
    if not path.is_file():
        raise SourceError(f"{path}: not a file{' but a folder' if path.is_dir() else ''}.")
    if not path.stat().st_size:
        raise SourceError(f"{path}: the file is empty.")


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a `.pth` or `.bin` file, memory-mapped. Of a training checkpoint, load only the `"model"`
    part.

    Raises:
        SourceError: If the file is missing, truncated, not a checkpoint, or contains anything but plain data.
    """
    check_file(path)
    with path.open("rb") as file:
        head = file.read(9)
    if not head.startswith((ZIP, PICKLE)):
        other = " but a safetensors file; rename it to end in .safetensors" if head[8:] == b"{" else ""
        raise SourceError(f"{path}: not a PyTorch checkpoint{other}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = FORBIDDEN.search(str(error))
        what = f" ({found.group(1)})" if found else ""
        raise SourceError(
            f"{path}: refused and not run, because it contains more than tensors and plain data{what}."
        ) from error
    except Exception as error:  # invalid files fail in many ways
        raise SourceError(f"{path}: not a readable checkpoint, possibly truncated ({reason_of(error)}).") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        what = "an empty one" if isinstance(content, Mapping) else type(content).__name__
        raise SourceError(f"{path}: expected a state dict, not {what}.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise SourceError(f"{path}: key {key!r} must be a named tensor, not {type(value).__name__}.")
    if all(key.startswith(PARALLEL_PREFIX) for key in content):
        content = {key.removeprefix(PARALLEL_PREFIX): value for key, value in content.items()}
    return dict(content)


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a `.safetensors` file.

    Raises:
        SourceError: If the file is missing or not a safetensors file.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: too large to be mapped
        raise SourceError(f"{path}: not a readable safetensors file ({reason_of(error)}).") from error


def load_file(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a weights file, depending on its extension."""
    return _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a Hugging Face model folder: one file or shards, safetensors before pickles.

    Raises:
        SourceError: If the folder has no weights, or its shards do not match their index.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return load_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _load_shards(index)
    raise SourceError(f"{folder}: no model.safetensors or pytorch_model.bin found, neither as one file nor as shards.")


def _load_shards(index: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of the shards that an index names.

    Tensors that are missing from the shards are ignored, because indices on the Hub list aliases that the shards do not
    contain.

    Raises:
        SourceError: If a shard is missing, or two shards contain the same tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(load_index(index).values())):
        content = load_file(index.with_name(shard))
        twice = sorted(content.keys() & tensors.keys())
        if twice:
            raise SourceError(f"{index.with_name(shard)}: contains {twice[0]}, which is also in another shard.")
        tensors.update(content)
    return tensors


def load_index(path: Path) -> dict[str, str]:
    """Load the mapping of tensors to shards.

    Raises:
        SourceError: If the file is not an index.
    """
    weight_map = load_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
        raise SourceError(f"{path}: not an index, because it has no weight_map of tensors to files in the same folder.")
    return weight_map


def _is_file_name(name: object) -> bool:
    """Whether this is the name of a file without a folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and name == Path(name).name


def load_json(path: Path) -> dict:
    """Load a JSON object.

    Raises:
        SourceError: If the file is missing or not a JSON object.
    """
    check_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not valid JSON ({reason_of(error)}).") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path}: expected a JSON object, not {type(content).__name__}.")
    return content


def load_config(folder: Path, model_type: str) -> dict:
    """Load the `config.json` of a model folder.

    Raises:
        SourceError: If there is none, or it belongs to another type of model.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder.")
    config = load_json(folder / "config.json")
    if config.get("model_type") != model_type:
        raise SourceError(f"{folder}: expected a model of type {model_type!r}, not {config.get('model_type')!r}.")
    return config


def check_weight(name: str, tensor: torch.Tensor) -> None:
    """Raise `SourceError` if a tensor cannot be a weight because it is an integer, quantized, sparse or empty "
    "tensor."""
    if tensor.dtype not in WEIGHT_DTYPES:
        allowed = ", ".join(short_name(dtype) for dtype in WEIGHT_DTYPES)
        raise SourceError(f"{name} is {short_name(tensor.dtype)}, but weights must be one of {allowed}.")
    if tensor.is_meta or tensor.layout != torch.strided:
        what = "without values" if tensor.is_meta else f"of layout {short_name(tensor.layout)}"
        raise SourceError(f"{name} is a tensor {what}, but weights must be dense.")
    if not tensor.numel():
        raise SourceError(f"{name} has shape {tuple(tensor.shape)}and is empty.")


def count_nonfinite(tensor: torch.Tensor) -> int:
    """Count the values that are NaN or infinite."""
    return tensor.numel() - int(torch.isfinite(tensor).sum())


def short_name(name: torch.dtype | torch.layout) -> str:
    """Shorten `torch.int32` to `int32`."""
    return str(name).removeprefix("torch.")


def reason_of(error: BaseException) -> str:
    """The first sentence of an error's text."""
    line = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
    return re.split(r"(?<=\S)\. (?=[A-Z])", line, maxsplit=1)[0].rstrip(".")


def first_fault(error: BaseException) -> str:
    """What a configuration's check says first, on one line."""
    return " ".join(str(error).split()).split(" Errors: ")[0].rstrip(".")
