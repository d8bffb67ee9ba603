"""Reading what a user has: pickles without code, safetensors, sharded folders. Nothing here knows LION's parts."""

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
"""What PyTorch puts before every key of a model that was saved inside of its wrapper for several devices."""

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
"""How PyTorch's errors name what a pickle asks for and may not have."""

ZIP, PICKLE = b"PK", b"\x80"
"""How the two forms of PyTorch's files begin."""


class SourceError(ValueError):
    """A source file that cannot be used; the message names it and says why."""


def check_file(path: Path) -> None:
    """Raise `SourceError` unless there is a file with something in it."""
    if not path.exists():
        raise SourceError(f"{path}: there is no such file.")
    if not path.is_file():
        raise SourceError(f"{path}: is no file{' but a folder' if path.is_dir() else ''}.")
    if not path.stat().st_size:
        raise SourceError(f"{path}: the file is empty.")


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth`/`.bin` file, memory-mapped; a training checkpoint's `"model"` part, without the rest.

    Raises:
        SourceError: if the file is missing, is not a checkpoint, is cut off, or holds anything but plain data.
    """
    check_file(path)
    with path.open("rb") as file:
        head = file.read(9)
    if not head.startswith((ZIP, PICKLE)):
        other = " but a safetensors file; let its name end in .safetensors" if head[8:] == b"{" else ""
        raise SourceError(f"{path}: not a PyTorch checkpoint{other}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about forms that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = FORBIDDEN.search(str(error))
        what = f" ({found.group(1)})" if found else ""
        raise SourceError(f"{path}: refused and not run, it holds more than tensors and plain data{what}.") from error
    except Exception as error:  # a file that is no checkpoint fails in many ways
        raise SourceError(f"{path}: not a readable checkpoint, perhaps cut off ({reason_of(error)}).") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        what = "an empty one" if isinstance(content, Mapping) else type(content).__name__
        raise SourceError(f"{path}: holds no state dict but {what}.")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise SourceError(f"{path}: key {key!r} holds no named tensor but {type(value).__name__}.")
    if all(key.startswith(PARALLEL_PREFIX) for key in content):
        content = {key.removeprefix(PARALLEL_PREFIX): value for key, value in content.items()}
    return dict(content)


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file.

    Raises:
        SourceError: if the file is missing or not a safetensors file.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, RuntimeError) as error:  # RuntimeError: too large to be mapped
        raise SourceError(f"{path}: not a readable safetensors file ({reason_of(error)}).") from error


def load_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one weights file, by its ending."""
    return _load_safetensors(path) if path.suffix == ".safetensors" else _load_pickle(path)


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model folder in Hugging Face form: one file or shards, safetensors before pickles.

    Raises:
        SourceError: if the folder holds no weights, or its shards are not what their index says.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return load_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _load_shards(index)
    raise SourceError(f"{folder}: holds no model.safetensors or pytorch_model.bin, in one file or in shards.")


def _load_shards(index: Path) -> dict[str, torch.Tensor]:
    """The tensors of the shards that an index names.

    What the index names beyond is not missed here: on the Hub, indices name copies that their shards are without.

    Raises:
        SourceError: if a shard is missing, or a tensor is in two of them.
    """
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(set(load_index(index).values())):
        content = load_file(index.with_name(shard))
        twice = sorted(content.keys() & tensors.keys())
        if twice:
            raise SourceError(f"{index.with_name(shard)}: holds {twice[0]}, which another shard holds, too.")
        tensors.update(content)
    return tensors


def load_index(path: Path) -> dict[str, str]:
    """Which shard holds each tensor.

    Raises:
        SourceError: if the file is no index.
    """
    weight_map = load_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
        raise SourceError(f"{path}: has no weight_map of tensors to files beside it, and so is no index.")
    return weight_map


def _is_file_name(name: object) -> bool:
    """Whether this is the name of a file without a folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and name == Path(name).name


def load_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        SourceError: if the file is missing, or is not a JSON object.
    """
    check_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not JSON ({reason_of(error)}).") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path}: holds no JSON object but {type(content).__name__}.")
    return content


def load_config(folder: Path, model_type: str) -> dict:
    """The `config.json` of a model folder.

    Raises:
        SourceError: if there is none, or it is another kind of model's.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: there is no such folder.")
    config = load_json(folder / "config.json")
    if config.get("model_type") != model_type:
        raise SourceError(f"{folder}: holds no model of type {model_type!r} but one of {config.get('model_type')!r}.")
    return config


def check_weight(name: str, tensor: torch.Tensor) -> None:
    """Raise `SourceError` if a tensor is nothing that a weight can be: integers, quantised, sparse, or empty."""
    if tensor.dtype not in WEIGHT_DTYPES:
        allowed = ", ".join(short_name(dtype) for dtype in WEIGHT_DTYPES)
        raise SourceError(f"{name} holds {short_name(tensor.dtype)}, but a weight is one of {allowed}.")
    if tensor.is_meta or tensor.layout != torch.strided:
        what = "without values" if tensor.is_meta else f"of layout {short_name(tensor.layout)}"
        raise SourceError(f"{name} is a tensor {what}, but a weight is a dense one.")
    if not tensor.numel():
        raise SourceError(f"{name} has shape {tuple(tensor.shape)}, and so no values.")


def count_nonfinite(tensor: torch.Tensor) -> int:
    """How many values are NaN or infinite."""
    return tensor.numel() - int(torch.isfinite(tensor).sum())


def short_name(name: torch.dtype | torch.layout) -> str:
    """torch.int32 -> int32."""
    return str(name).removeprefix("torch.")


def reason_of(error: BaseException) -> str:
    """The first sentence of an error's text."""
    line = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
    return re.split(r"(?<=\S)\. (?=[A-Z])", line, maxsplit=1)[0].rstrip(".")


def first_fault(error: BaseException) -> str:
    """What a configuration's check says first, on one line."""
    return " ".join(str(error).split()).split(" Errors: ")[0].rstrip(".")
