"""Trains parameters in float32 on a frozen base in 16 bits.

bfloat16 has three significant digits: a step of 1e-5 on a weight of 0.1 is lost to rounding. Trainable parameters are
therefore float32, whatever the dtype of the frozen base, and tensors are cast where they pass between the two.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput

from ..modeling_lion import LionForConditionalGeneration
from .stages import reaches_no_output

logger = logging.getLogger(__name__)

SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def train_in_float32(model: nn.Module) -> None:
    """Convert trainable parameters to float32, so that they can be trained on a frozen base in 16 bits.

    Modules with only trainable parameters get hooks that cast their inputs and outputs; this works with and without
    autocast. `make_trainer`, `FsdpCallback` and `shard_model` call this function. Call it yourself before you create
    your own optimizer; calling it twice has no effect.

    Args:
        model: a LION model, frozen as needed; PEFT may wrap it.
    """
    if not _trained_in_16_bits(model):
        return
    if all(parameter.requires_grad for parameter in model.parameters()):
        model.float()
        return
    logger.info("Converting trainable parameters to float32, on a frozen base in 16 bits.")
    frozen = [value for value in model.parameters() if not value.requires_grad and value.dtype in SIXTEEN_BITS]
    casts = _Casts(min(frozen, key=torch.numel, default=None))
    for unit in list(_trained_units(model, _unused_parameters(model))):
        unit.float()
        unit.register_forward_pre_hook(casts.before, with_kwargs=True)
        unit.register_forward_hook(casts.after)
    for parameter in _trained_in_16_bits(model):  # PEFT's layers, which cast their inputs themselves
        parameter.data = parameter.data.float()


def _trained_in_16_bits(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that would train in float16 or bfloat16."""
    return [value for value in model.parameters() if value.requires_grad and value.dtype in SIXTEEN_BITS]


def _unused_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that are frozen because they do not affect the output; their modules count as trained."""
    return {
        parameter
        for lion in model.modules()
        if isinstance(lion, LionForConditionalGeneration)
        for name, parameter in lion.named_parameters()
        if reaches_no_output(name, lion.config)
    }


def _trained_units(module: nn.Module, unused: set[nn.Parameter]) -> Iterator[nn.Module]:
    """Yield the largest modules in 16 bits whose parameters are all trainable and whose `forward` is called.

    A module without children that has both trainable and frozen parameters is included too.
    """
    parameters = list(module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not any(parameter.dtype in SIXTEEN_BITS for parameter in trained) or _is_adapter_layer(module):
        return
    is_whole = all(parameter.requires_grad or parameter in unused for parameter in parameters)
    is_callable = not isinstance(module, nn.ModuleList | nn.ModuleDict | GenerationMixin)
    if is_callable and (is_whole or not any(True for _ in module.children())):
        yield module
        return
    for child in module.children():
        yield from _trained_units(child, unused)


def _is_adapter_layer(module: nn.Module) -> bool:
    """Whether a module is a layer added by PEFT, such as a LoRA layer; those in `modules_to_save` are not."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ModuleNotFoundError:
        return False
    return isinstance(module, BaseTunerLayer)


class _Casts:
    """Hooks that cast a module's inputs to the module's dtype, and its outputs to that of the base.

    Args:
        base: a frozen parameter, which always has the dtype of the base, also after `model.float()`; if `None`, outputs
            are not cast.
    """

    def __init__(self, base: nn.Parameter | None):
        self.base = base

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Cast the arguments. (FSDP may have gathered the module in a different dtype.)"""
        dtype = next(module.parameters()).dtype
        return _cast(args, dtype), _cast(kwargs, dtype)

    def after(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Cast the outputs."""
        return outputs if self.base is None else _cast(outputs, self.base.dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast floating-point tensors, including those in lists, tuples, dictionaries and model outputs."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _cast(entry, dtype) for name, entry in value.items()})
    if type(value) is dict:
        return {name: _cast(entry, dtype) for name, entry in value.items()}
    return type(value)(_cast(entry, dtype) for entry in value) if type(value) in (list, tuple) else value


__all__ = ["train_in_float32"]
