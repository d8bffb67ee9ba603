"""Forms of weights that inference uses instead of the weights, computed once and kept beside them.

A form depends on weights alone, never on a call, and is never saved, copied or pickled. It is used only where nothing
can tell the difference but the clock: in eval mode, without gradients, on plain modules that nothing was wrapped around
(LoRA, hooks, quantization, sharding and offloading are such wrappers), and not while a graph is traced or compiled.
Everywhere else callers take their plain path.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

Form = TypeVar("Form")

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
"""Integers that the numbers of a checksum are read as, the widest first."""

PLAIN_MODULES = (nn.Linear, nn.Embedding)
"""What a form may be derived from; a subclass or a wrapper computes something else."""


class DerivedWeights(Generic[Form]):
    """One form of a few modules' weights.

    Each use looks whether the weights are still the same tensors at the same places and unwritten since. Writing
    through `.data` leaves no such trace: `drop_if_stale`, at the beginning of a forward or of a generation, looks at
    the numbers. Threads may use it at once: an entry is never changed, only replaced.
    """

    def __init__(self) -> None:
        self._entry: tuple[tuple[weakref.ref, ...], list[tuple[int, int]], list[int], Form] | None = None

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept."""
        return self._entry is None

    def drop(self) -> None:
        """Keep nothing."""
        self._entry = None

    def drop_if_stale(self) -> None:
        """Keep nothing that the weights' present numbers do not give."""
        entry = self._entry
        if entry is None:
            return
        weights = [reference() for reference in entry[0]]
        present = [weight for weight in weights if weight is not None and is_plain_weight(weight)]
        if len(present) < len(weights) or stamps(present) != entry[1] or checksums(present) != entry[2]:
            self.drop()

    def get(self, weights: Sequence[torch.Tensor], compute: Callable[[], Form]) -> Form:
        """The form of `weights`, by `compute` if it is not at hand."""
        entry = self._entry
        if (
            entry is not None
            and entry[1] == stamps(weights)
            and all(reference() is weight for reference, weight in zip(entry[0], weights, strict=True))
        ):
            return entry[3]
        with torch.no_grad():
            form = compute()
        self._entry = tuple(weakref.ref(weight) for weight in weights), stamps(weights), checksums(weights), form
        return form


def may_derive(module: nn.Module, states: torch.Tensor) -> bool:
    """Whether derived forms may stand in for the weights of `module`, given what it is called with."""
    return not (
        module.training
        or torch.is_grad_enabled()
        or type(states) is not torch.Tensor
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled(states.device.type)
    )


def plain_weights(modules: Sequence[nn.Module], dtype: torch.dtype, device: torch.device) -> list[torch.Tensor] | None:
    """The weights of `modules`, biases included; `None` if not all are plain, of this dtype and on this device."""
    weights: list[torch.Tensor] = []
    for module in modules:
        if type(module) not in PLAIN_MODULES or is_wrapped(module):
            return None
        parameters = module._parameters
        weights.append(parameters["weight"])  # type: ignore[arg-type]
        if parameters.get("bias") is not None:
            weights.append(parameters["bias"])  # type: ignore[arg-type]
    if all(is_plain_weight(weight) and weight.dtype == dtype and weight.device == device for weight in weights):
        return weights
    return None


def is_wrapped(module: nn.Module) -> bool:
    """Whether calling `module` does more than its class says."""
    return bool("forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks)


def is_plain_weight(weight: torch.Tensor | None) -> bool:
    """Whether it is a parameter that holds its numbers itself."""
    return type(weight) is nn.Parameter and not weight.is_meta and not weight.is_inference()


def stamps(weights: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """Where each tensor is, and how often it was written."""
    return [(weight.data_ptr(), weight._version) for weight in weights]


def checksums(weights: Sequence[torch.Tensor]) -> list[int]:
    """A number for the contents of each tensor, read as integers: one changed bit changes it."""
    return torch.stack([checksum(weight).cpu() for weight in weights]).tolist()


def checksum(weight: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor's bytes, eight at a time.

    A tensor may lie in the middle of a larger one, as in an optimizer's flat buffer, and not begin at a multiple of
    eight bytes. Then narrower integers are read.
    """
    raw = weight.detach().contiguous().view(-1).view(torch.uint8)
    integer = next(kind for kind in INTEGERS if raw.storage_offset() % kind.itemsize == 0)
    whole = raw.numel() // integer.itemsize * integer.itemsize
    return raw[:whole].view(integer).sum(dtype=torch.int64) + raw[whole:].sum(dtype=torch.int64)


def derived_forms(module: nn.Module) -> list[DerivedWeights]:
    """All forms that `module` and its submodules keep."""
    return [
        value
        for submodule in module.modules()
        for value in submodule.__dict__.values()
        if isinstance(value, DerivedWeights)
    ]


__all__ = ["DerivedWeights", "derived_forms", "may_derive", "plain_weights"]
