"""Checkpoints of what was trained alone: 1.1 GB for LION-FlanT5-XL in float32, instead of 16.5 GB for the whole model.

A folder holds `trainable.safetensors`, the trained tensors under the model's own names, and `trainable.json`:

- `stage`: name of the stage, or null;
- `trained`: shape of each trained tensor;
- `base`: shape and middle number of each other parameter, by which a base is known again in any dtype; null for one
  that is quantized.

Together the two lists name every parameter of the model, but for those that reach no output.
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
"""Relative difference of a number that was rounded to bfloat16 once or twice."""


def save_trainable(
    model: LionForConditionalGeneration, folder: str | os.PathLike, stage: str | int | Stage | None = None
) -> None:
    """Save what requires a gradient, or what a stage trains.

    Args:
        model: on its base.
        folder: made if it does not exist.
        stage: to be noted down, and to select by, whatever requires a gradient at the moment.

    Raises:
        ValueError: if there is nothing to save, or if the model is not the one that the stage trains.
    """
    known = _known_parameters(model)
    if stage is not None:
        stage = get_stage(stage)
        trained = dict(trainable_parameters(model, stage))
    else:
        trained = {name: parameter for name, parameter in known.items() if parameter.requires_grad}
    if not trained:
        raise ValueError("No parameter of the model requires a gradient: apply_stage first, or name the stage here.")
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
    """Put the trained tensors into a model on the base that they were trained on, in the model's dtypes.

    Args:
        model: what is not trained in it stays as it is; after an error, all does.
        folder: of `save_trainable`.

    Returns:
        The name of the stage, if it was noted down. (Nothing is frozen: that is `apply_stage`'s.)

    Raises:
        ValueError: if a tensor is missing, unknown or of another shape; if one that was trained is quantized in the
            model; if the model's base is another one.
    """
    index = json.loads((Path(folder) / INDEX).read_text(encoding="utf-8"))
    tensors = load_file(Path(folder) / TENSORS)
    parameters = dict(model.named_parameters())
    _check_same_names(INDEX, index["trained"], TENSORS, tensors)
    _check_same_names("the checkpoint", [*index["trained"], *index["base"]], "the model", _known_parameters(model))
    for name, tensor in tensors.items():
        _check_same_shape(name, tensor.shape, parameters[name].shape)
        if not is_plain(parameters[name]):
            raise ValueError(f"{name} is quantized in the model, and cannot take what was trained.")
    for name, identity in index["base"].items():
        _check_base(name, identity, _identity_of(parameters[name]))
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    return index["stage"]


def _known_parameters(model: LionForConditionalGeneration) -> dict[str, nn.Parameter]:
    """All parameters that the model's outputs depend on."""
    return {name: value for name, value in model.named_parameters() if not reaches_no_output(name, model.config)}


def is_plain(parameter: torch.Tensor) -> bool:
    """Whether a parameter's numbers are what they stand for, and not a quantizer's codes."""
    return type(parameter) is nn.Parameter and parameter.is_floating_point()


def _identity_of(parameter: nn.Parameter) -> dict[str, Any] | None:
    """Shape and middle number of a parameter; without the number if it is not in memory, `None` if it is quantized."""
    if not is_plain(parameter):
        return None
    middle = None if parameter.is_meta else parameter.detach().flatten()[parameter.numel() // 2].item()
    return {"shape": list(parameter.shape), "middle": middle}


def _check_same_names(one: str, names: Iterable[str], other: str, other_names: Iterable[str]) -> None:
    """Raise `ValueError` with a name that only one of two places has, and their numbers of names."""
    ours, theirs = set(names), set(other_names)
    for where, odd in ((one, ours - theirs), (other, theirs - ours)):
        if odd:
            raise ValueError(
                f"Only {where} has {min(odd)}: {one} lists {len(ours)} tensors, {other} has {len(theirs)}, and "
                f"{len(ours & theirs)} are in both."
            )


def _check_same_shape(name: str, shape: Iterable[int], model_shape: Iterable[int]) -> None:
    """Raise `ValueError` if a tensor has another shape in the model than in the checkpoint."""
    if tuple(shape) != tuple(model_shape):
        raise ValueError(f"{name} is {tuple(shape)} in the checkpoint, but {tuple(model_shape)} in the model.")


def _check_base(name: str, saved: dict[str, Any] | None, found: dict[str, Any] | None) -> None:
    """Raise `ValueError` if a parameter that was not trained is not the one that others were trained on."""
    if saved is None or found is None:
        return
    _check_same_shape(name, saved["shape"], found["shape"])
    if saved["middle"] is None or found["middle"] is None:
        return
    if not math.isclose(saved["middle"], found["middle"], rel_tol=ROUNDING, abs_tol=1e-6):
        raise ValueError(
            f"The model is not on the base of the checkpoint: the middle number of {name} is {found['middle']:.6g}, "
            f"but was {saved['middle']:.6g} when the checkpoint was saved."
        )


__all__ = ["load_trainable", "save_trainable"]
