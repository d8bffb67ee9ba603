"""What trains in float32 on a base of 16 bits.

bfloat16 has three significant digits: a step of 1e-5 on a weight of 0.1 is rounded away, and the weight stays where it
is. So what trains is float32, whatever the frozen rest is, and tensors are cast where they go from one to the other.
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
    """Make what trains float32, and have it work beside a frozen base of 16 bits, with and without autocast.

    Modules that train as a whole get hooks that cast what goes in and what comes out. `make_trainer`, `FsdpCallback`
    and `shard_model` call this; before an optimizer of your own, call it yourself. Twice does no harm.

    Args:
        model: a LION, also within PEFT's model, with its frozen parameters already frozen.
    """
    if not _trained_in_16_bits(model):
        return
    if all(parameter.requires_grad for parameter in model.parameters()):
        model.float()
        return
    logger.info("What trains is float32 from now on, on a base of 16 bits.")
    frozen = [value for value in model.parameters() if not value.requires_grad and value.dtype in SIXTEEN_BITS]
    casts = _Casts(min(frozen, key=torch.numel, default=None))
    for unit in list(_trained_units(model, _unused_parameters(model))):
        unit.float()
        unit.register_forward_pre_hook(casts.before, with_kwargs=True)
        unit.register_forward_hook(casts.behind)
    for parameter in _trained_in_16_bits(model):  # PEFT's own layers, which cast for themselves
        parameter.data = parameter.data.float()


def _trained_in_16_bits(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that would train in float16 or bfloat16."""
    return [value for value in model.parameters() if value.requires_grad and value.dtype in SIXTEEN_BITS]


def _unused_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Parameters of a LION that are frozen because they reach no output: what they lie in trains as a whole."""
    return {
        parameter
        for lion in model.modules()
        if isinstance(lion, LionForConditionalGeneration)
        for name, parameter in lion.named_parameters()
        if reaches_no_output(name, lion.config)
    }


def _trained_units(module: nn.Module, unused: set[nn.Parameter]) -> Iterator[nn.Module]:
    """The largest modules in 16 bits that train as a whole and have a `forward` that is called.

    A module that trains one of its own parameters and freezes others is one too.
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
    """Whether a module is a layer that PEFT put in, such as LoRA's; not one of `modules_to_save`."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ModuleNotFoundError:
        return False
    return isinstance(module, BaseTunerLayer)


class _Casts:
    """Casts what a module gets to the module's own dtype, and what it returns to that of the base.

    Args:
        base: a frozen parameter, whose dtype is the base's, also after `model.float()`; without one, nothing is cast
            back.
    """

    def __init__(self, base: nn.Parameter | None):
        self.base = base

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Cast the arguments. (FSDP may have gathered the module in another dtype than it trains in.)"""
        dtype = next(module.parameters()).dtype
        return _cast(args, dtype), _cast(kwargs, dtype)

    def behind(self, module: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Cast what comes out."""
        return outputs if self.base is None else _cast(outputs, self.base.dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in another dtype, also within lists, dictionaries and outputs of models."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _cast(entry, dtype) for name, entry in value.items()})
    if type(value) is dict:
        return {name: _cast(entry, dtype) for name, entry in value.items()}
    return type(value)(_cast(entry, dtype) for entry in value) if type(value) in (list, tuple) else value


__all__ = ["train_in_float32"]
