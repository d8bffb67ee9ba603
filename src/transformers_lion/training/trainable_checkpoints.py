"""Checkpoints of only the trained parameters: 1.1 GB for LION-FlanT5-XL in float32, instead of 16.5 GB for the model.

A folder contains `trainable.safetensors`, with the trained tensors under their names in the model, and
`trainable.json`:

- `stage`: name of the stage, or null;
- `trained`: shape of each trained tensor;
- `base`: shape and middle number of every other parameter, which identify the base model in any dtype; null for a
  quantized parameter.

Together, `trained` and `base` list all parameters of the model except those that do not affect the output.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..modeling_lion import LionForConditionalGeneration
from .stages import Stage, get_stage, reaches_no_output, trainable_parameters

TENSORS = "trainable.safetensors"
INDEX = "trainable.json"

ROUNDING = 2**-7
"""Relative difference that rounding to bfloat16 once or twice may cause."""


def save_trainable(
    model: LionForConditionalGeneration, folder: str | os.PathLike, stage: str | int | Stage | None = None
) -> None:
    """Save the parameters that require a gradient, or those that a stage trains.

    Args:
        model: the whole model.
        folder: the folder to save to; created if necessary.
        stage: the stage to record. If set, the parameters that this stage trains are saved, regardless of which
            currently require a gradient.

    Raises:
        ValueError: if there is nothing to save, or the model does not fit the stage.
    """
    known = _known_parameters(model)
    if stage is not None:
        stage = get_stage(stage)
        trained = dict(trainable_parameters(model, stage))
    else:
        trained = {name: parameter for name, parameter in known.items() if parameter.requires_grad}
    if not trained:
        raise ValueError("No parameter of the model requires a gradient: call apply_stage first, or pass stage=.")
    index = {
        "stage": None if stage is None else stage.name,
        "trained": {name: list(parameter.shape) for name, parameter in trained.items()},
        "base": {name: _identity_of(parameter) for name, parameter in known.items() if name not in trained},
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trained.items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps(index, indent=0) + "\n", encoding="utf-8")


def load_trainable(model: LionForConditionalGeneration, folder: str | os.PathLike) -> str | None:
    """Load trained parameters into a model that has the same base, in the dtypes of the model.

    Args:
        model: the model; its other parameters are unchanged. If loading fails, all parameters are.
        folder: a folder written by `save_trainable`.

    Returns:
        The name of the stage, if it was recorded. (To freeze parameters, call `apply_stage`.)

    Raises:
        ValueError: if a tensor is missing, unexpected or has the wrong shape; if a trained parameter is quantized in
            the model; or if the model has a different base.
    """
    index = json.loads((Path(folder) / INDEX).read_text(encoding="utf-8"))
    tensors = load_file(Path(folder) / TENSORS)
    parameters = dict(model.named_parameters())
    _check_same_names(INDEX, index["trained"], TENSORS, tensors)
    _check_same_names("the checkpoint", [*index["trained"], *index["base"]], "the model", _known_parameters(model))
    for name, tensor in tensors.items():
        _check_same_shape(name, tensor.shape, parameters[name].shape)
        if not is_plain(parameters[name]):
            raise ValueError(f"{name} is quantized in the model, so its trained value cannot be loaded.")
    for name, identity in index["base"].items():
        _check_base(name, identity, _identity_of(parameters[name]))
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    return index["stage"]


def _known_parameters(model: LionForConditionalGeneration) -> dict[str, nn.Parameter]:
    """Return all parameters that the model's outputs depend on."""
    return {name: value for name, value in model.named_parameters() if not reaches_no_output(name, model.config)}


def is_plain(parameter: torch.Tensor) -> bool:
    """Whether a parameter is an ordinary floating-point tensor, and not quantized."""
    return type(parameter) is nn.Parameter and parameter.is_floating_point()


def _identity_of(parameter: nn.Parameter) -> dict[str, Any] | None:
    """Return the shape and middle number of a parameter; `None` if it is quantized. Meta tensors have no number."""
    if not is_plain(parameter):
        return None
    middle = None if parameter.is_meta else parameter.detach().flatten()[parameter.numel() // 2].item()
    return {"shape": list(parameter.shape), "middle": middle}


def _check_same_names(one: str, names: Iterable[str], other: str, other_names: Iterable[str]) -> None:
    """Raise `ValueError` if two sets of names differ; the message has their sizes and a name that only one has."""
    ours, theirs = set(names), set(other_names)
    for where, odd in ((one, ours - theirs), (other, theirs - ours)):
        if odd:
            raise ValueError(
                f"Only {where} has {min(odd)}: {one} lists {len(ours)} tensors, {other} has {len(theirs)}, and "
                f"{len(ours & theirs)} are in both."
            )


def _check_same_shape(name: str, shape: Iterable[int], model_shape: Iterable[int]) -> None:
    """Raise `ValueError` if the shape of a tensor differs between checkpoint and model."""
    if tuple(shape) != tuple(model_shape):
        raise ValueError(f"{name} is {tuple(shape)} in the checkpoint, but {tuple(model_shape)} in the model.")


def _check_base(name: str, saved: dict[str, Any] | None, found: dict[str, Any] | None) -> None:
    """Raise `ValueError` if an untrained parameter differs from the one in the checkpoint's base."""
    if saved is None or found is None:
        return
    _check_same_shape(name, saved["shape"], found["shape"])
    if saved["middle"] is None or found["middle"] is None:
        return
    if not math.isclose(saved["middle"], found["middle"], rel_tol=ROUNDING, abs_tol=1e-6):
        raise ValueError(
            f"The model's base is not that of the checkpoint: the middle number of {name} is {found['middle']:.6g}, "
            f"but was {saved['middle']:.6g} when the checkpoint was saved."
        )


__all__ = ["load_trainable", "save_trainable"]
