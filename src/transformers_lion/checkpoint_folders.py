"""Folders of checkpoints, looked at without loading their weights: is everything there, and does it fit together?"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .configuration_lion import LionConfig
from .hub_files import check_processor_files, check_tagger_files, need_file, no_such_file
from .modeling_lion import LionForConditionalGeneration
from .ram import RamConfig, RamForImageTagging

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Bytes, as in the safetensors library."""
CLASSES: dict[str, Any] = {
    LionConfig.model_type: (LionConfig, LionForConditionalGeneration),
    RamConfig.model_type: (RamConfig, RamForImageTagging),
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file's header has it: a shape and a dtype in the format's words, such as "BF16"."""

    shape: tuple[int, ...]
    dtype: str


def read_config(folder: Path, model_type: str) -> Any:
    """The configuration of a folder that holds a model of a type.

    Raises:
        OSError: if there is no such folder or no configuration in it.
        ValueError: if it is that of another model, or is not valid.
    """
    if not folder.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(folder)) if folder.exists() else no_such_file(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: there is no model in this folder, which has no config.json.")
    found = read_json(file).get("model_type")
    if found != model_type:
        raise ValueError(f"{file}: this is a model of type {found!r}, not {model_type!r}.")
    try:
        return CLASSES[model_type][0].from_pretrained(folder)
    except Exception as error:  # whatever a validator raises
        raise ValueError(f"{file}: it is not valid: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """An object in a file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is none.
    """
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:  # of JSON and of its encoding
        raise ValueError(f"{file}: this is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object, not {type(content).__name__}.")
    return content


def meta_model(config: Any) -> Any:
    """The model of a configuration, with shapes but no numbers."""
    with torch.device("meta"):
        return CLASSES[config.model_type][1](config)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder's safetensors files.

    Raises:
        OSError: if a file is missing or cannot be read.
        ValueError: if one is broken.
    """
    index = folder / INDEX
    names = {WEIGHTS}
    if not (folder / WEIGHTS).exists() and index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: it names no files.")
        names = {str(name) for name in weight_map.values()}
    return {key: tensor for name in sorted(names) for key, tensor in read_header(folder / name).items()}


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, which has to be as long as its header says.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is broken.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 0 < length <= min(size - 8, LONGEST_HEADER):
                raise ValueError(f"its header would have {length} of its {size} bytes")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {name: StoredTensor(tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end != size:
            raise ValueError(f"it has {size} bytes, but its header speaks of {end}")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file}: this is not a whole safetensors file: {error}.") from error
    return tensors


def check_folder(folder: Path, model_type: str = LionConfig.model_type) -> None:
    """See whether a folder holds a whole checkpoint, before anything slow is begun.

    Args:
        folder: of a LION or of a tagger.
        model_type: which of them.

    Raises:
        OSError: if a file is missing; it names it.
        ValueError: if something is not right; of what transformers would only warn of too, as of missing weights.
    """
    config = read_config(folder, model_type)
    if model_type == LionConfig.model_type:
        need_file(folder / "generation_config.json")
        check_processor_files(folder)
        read_json(folder / "processor_config.json")
    else:
        check_tagger_files(folder)
    has_safetensors = (folder / WEIGHTS).exists() or (folder / INDEX).exists()
    if not has_safetensors and not any(folder.glob("*.bin*")):
        raise no_such_file(folder / WEIGHTS)
    if has_safetensors:
        stored = read_headers(folder)
        if model_type == LionConfig.model_type and getattr(config, "quantization_config", None) is None:
            compare(folder, meta_model(config), stored)  # a tagger's tensors have other names in its file


def compare(folder: Path, model: torch.nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Raise `ValueError` unless stored tensors are a model's."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [
        f"{name} has shape {stored[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in stored and stored[name].shape != shape
    ]
    if problems:
        more = f"; and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise ValueError(f"{folder}: its weights are not those of its config.json: {'; '.join(problems[:2])}{more}.")


__all__ = ["StoredTensor", "check_folder", "compare", "meta_model", "read_config", "read_headers", "read_json"]
