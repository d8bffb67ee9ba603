"""Base class of the package's pretrained models, which extends transformers' `PreTrainedModel`."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

COMPILED = "_orig_mod."
"""Prefix that `torch.compile` inserts into the names of weights."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Files from which transformers loads weights: a single file, or if there is none, the index of the shards."""

CAPTURING_MODULE = "transformers.utils.output_capturing"
"""Module of the hooks that transformers uses to record hidden states and attentions."""

CAPTURING_MARK = "_output_capturing_hooks_installed"
"""Attribute that transformers sets on a model after installing these hooks."""


class BasePreTrainedModel(PreTrainedModel):
    """Base class of the package's pretrained models. It differs from transformers' in four ways.

    - Saving: weights are saved under the names of a model without compiled parts, and older weights in the folder are
      removed. After `model.vision_model = torch.compile(model.vision_model)`, the names of the vision tower's weights
      contain `_orig_mod`. transformers would save these names, and the vision tower of a model loaded from the folder
      would have random weights.
    - Copying and pickling: the hooks that transformers installs to record hidden states and attentions are removed,
      because they are local functions, which cannot be pickled. The copy installs its own hooks when needed.
    - Restoring: training, saving and loading weights, and moving to another device or dtype undo
      `cpu_inference.optimize_for_inference`, which replaces parts of the model with faster ones.
    - Initialization: `_init_weights` is called for every module. For classes defined outside of transformers, it is
      normally not called for modules without direct parameters, because it might overwrite loaded weights. T5's
      attention and the aggregator's zero-initialized sub-layers are such modules. The `_init_weights` of this package
      use `transformers.initialization`, which does not overwrite loaded weights.
    """

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        super()._initialize_weights(module)

    def __getstate__(self) -> dict[str, Any]:
        return vars(_without_capturing_hooks(self, {}))

    def leave_inference_form(self) -> None:
        """Undo `cpu_inference.optimize_for_inference`, if it was called on this model."""
        form = self.__dict__.pop("_inference_form", None)
        if form is not None:
            form.undo(self)

    def iterate_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the names and tensors of the state dict, with the original values and dtypes.

        Unlike `state_dict`, this does not restore an optimized model: packed weights are unpacked one at a time.
        """
        form = self.__dict__.get("_inference_form")
        yield from self.state_dict(keep_vars=True).items() if form is None else form.iterate_weights(self)

    def list_packs(self) -> list[Any]:
        """Return the packed weights of an optimized model. Their values never change."""
        form = self.__dict__.get("_inference_form")
        return [] if form is None else form.list_packs(self)

    def train(self, mode: bool = True) -> Any:
        """Set the training mode. Training restores an optimized model first."""
        if mode:
            self.leave_inference_form()
        return super().train(mode)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Part of `to`, `half` and `cuda`. Restores an optimized model, which stays on the CPU and in float32."""
        if "_inference_form" in self.__dict__:
            moved = fn(torch.zeros(1))
            if (moved.device.type, moved.dtype) != ("cpu", torch.float32):
                self.leave_inference_form()
        return super()._apply(fn, recurse)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict. An optimized model is restored first."""
        self.leave_inference_form()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict. An optimized model is restored first."""
        self.leave_inference_form()
        return super().load_state_dict(*args, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the token embeddings. An optimized model is restored first."""
        self.leave_inference_form()
        return super().resize_token_embeddings(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the model. An optimized model is restored first."""
        self.leave_inference_form()
        names = state_dict or dict(self.named_parameters())
        if any(COMPILED in name for name in names):
            weights = self.state_dict() if state_dict is None else state_dict
            state_dict = {_plain_name(name): weight for name, weight in weights.items()}
        with _without_older_weights(Path(save_directory), kwargs.get("variant")):
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)


def _without_capturing_hooks(module: nn.Module, twins: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return the module if it has no recording hooks, otherwise a shallow copy without them.

    Args:
        module: Module, which is not changed because another thread may be using it.
        twins: Results for modules already visited, so that shared modules stay shared.
    """
    if module in twins:
        return twins[module]
    parts = {
        name: None if part is None else _without_capturing_hooks(part, twins) for name, part in module._modules.items()
    }
    hooks = [(key, hook) for key, hook in module._forward_hooks.items() if not _is_capturing(hook)]
    twin = module
    is_plain = len(hooks) == len(module._forward_hooks) and CAPTURING_MARK not in vars(module)
    if not is_plain or any(part is not module._modules[name] for name, part in parts.items()):
        twin = object.__new__(type(module))
        vars(twin).update({**vars(module), "_modules": parts, "_forward_hooks": OrderedDict(hooks)})
        vars(twin).pop(CAPTURING_MARK, None)
    twins[module] = twin
    return twin


def _is_capturing(hook: Any) -> bool:
    return getattr(hook, "__module__", None) == CAPTURING_MODULE


def _plain_name(name: str) -> str:
    """Remove the prefixes of `torch.compile` from the name of a weight."""
    return name.replace(COMPILED, "")


@contextmanager
def _without_older_weights(folder: Path, variant: str | None) -> Iterator[None]:
    """Remove the weights of an older model after the block has written new ones.

    transformers keeps an older `model.safetensors` next to new shards, and would load the older file.
    """
    files = [folder / _with_variant(name, variant) for name in (SINGLE, INDEX)]
    before = [_identity(file) for file in files]
    yield
    is_new = [_identity(file) not in (None, old) for file, old in zip(files, before, strict=True)]
    for file, new in zip(files, is_new, strict=True):
        if any(is_new) and not new:
            file.unlink(missing_ok=True)


def _with_variant(name: str, variant: str | None) -> str:
    """Return the file name of weights with a variant, such as `model.fp16.safetensors`."""
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


def _identity(file: Path) -> tuple[int, int] | None:
    """Return a value that changes when a file is written, or `None` if it does not exist."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def check_finite(model: nn.Module, name: str) -> None:
    """Check that all weights are finite.

    Args:
        model: Model to check. Integer weights and weights on the meta device are skipped.
        name: Name of the checkpoint for the error message.

    Raises:
        ValueError: If a weight contains infinite values or NaN.
    """
    broken = [
        key
        for key, tensor in model.named_parameters()
        if tensor.is_floating_point() and not tensor.is_meta and tensor.numel() and not _is_finite(tensor.detach())
    ]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ValueError(f"{name}: this checkpoint is damaged: {broken[0]}{more} contains infinite values or NaN.")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, without allocating a mask of the tensor's size."""
    low, high = torch.aminmax(tensor)  # both are NaN if any value is
    return bool(torch.isfinite(low) & torch.isfinite(high))


__all__ = ["BasePreTrainedModel", "check_finite"]
