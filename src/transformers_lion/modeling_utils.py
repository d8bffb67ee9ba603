"""What the pretrained models of this package share, beyond what transformers' `PreTrainedModel` does by itself."""

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
"""What `torch.compile` inserts into the names of the weights of a part that it wraps."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Where transformers finds weights: in one file, or, only if there is none, in shards that an index lists."""

CAPTURING_MODULE = "transformers.utils.output_capturing"
"""Module of the hooks with which transformers records hidden states and attentions."""

CAPTURING_MARK = "_output_capturing_hooks_installed"
"""Attribute that transformers sets on a model once it has installed these hooks."""


class BasePreTrainedModel(PreTrainedModel):
    """Base class of the package's pretrained models. It differs from transformers' in four ways.

    - Saving: weights are saved under the names of a model without compiled parts, and older weights in the folder are
      removed. After `model.vision_model = torch.compile(model.vision_model)` the names of the vision tower's weights
      contain `_orig_mod`. transformers saves them so, and a model loaded from the folder starts with a random tower.
    - Copying and pickling: the hooks with which transformers records hidden states and attentions, once they have been
      requested, are left out: they are local functions, which cannot be pickled. A copy installs its own when it needs
      them.
    - Restoring: training, saving and loading weights, and moving to another device or dtype, undo
      `cpu_inference.optimize_for_inference`, which has exchanged parts of the model for faster ones.
    - Initialisation: `_init_weights` sees every module. For classes defined outside of transformers, it skips modules
      without parameters of their own, to protect loaded weights that an `_init_weights` would write to directly. T5's
      attention and the aggregator's zero-initialised sub-layers are such modules, and the `_init_weights` of this
      package use `transformers.initialization`, which leaves loaded weights alone.
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

    def train(self, mode: bool = True) -> Any:
        """As for all modules; training restores an optimized model first."""
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
        """As for all modules; an optimized model is restored first."""
        self.leave_inference_form()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As for all modules; an optimized model is restored first."""
        self.leave_inference_form()
        return super().load_state_dict(*args, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As `PreTrainedModel.resize_token_embeddings`; an optimized model is restored first."""
        self.leave_inference_form()
        return super().resize_token_embeddings(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """As `PreTrainedModel.save_pretrained`; an optimized model is restored first."""
        self.leave_inference_form()
        names = state_dict or dict(self.named_parameters())
        if any(COMPILED in name for name in names):
            weights = self.state_dict() if state_dict is None else state_dict
            state_dict = {_plain_name(name): weight for name, weight in weights.items()}
        with _without_older_weights(Path(save_directory), kwargs.get("variant")):
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)


def _without_capturing_hooks(module: nn.Module, twins: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module itself if transformers records nothing in it, else a shallow copy without these hooks and their mark.

    Args:
        module: is not changed, since another thread may be using it.
        twins: those of modules seen before, so that a module in two places stays one.
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
    """The name of a weight, without what `torch.compile` put into it."""
    return name.replace(COMPILED, "")


@contextmanager
def _without_older_weights(folder: Path, variant: str | None) -> Iterator[None]:
    """Remove the weights of an older model from a folder when the block has written new ones.

    transformers leaves an older `model.safetensors` beside new shards, and that is what would load.
    """
    files = [folder / _with_variant(name, variant) for name in (SINGLE, INDEX)]
    before = [_identity(file) for file in files]
    yield
    is_new = [_identity(file) not in (None, old) for file, old in zip(files, before, strict=True)]
    for file, new in zip(files, is_new, strict=True):
        if any(is_new) and not new:
            file.unlink(missing_ok=True)


def _with_variant(name: str, variant: str | None) -> str:
    """What transformers calls a file of weights of a variant, such as `model.fp16.safetensors`."""
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


def _identity(file: Path) -> tuple[int, int] | None:
    """What changes when a file is written; `None` if there is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def check_finite(model: nn.Module, name: str) -> None:
    """Look at all weights once.

    Args:
        model: whose weights are at hand; those on the meta device are passed over, as are integers.
        name: of the checkpoint, for the error.

    Raises:
        ValueError: if some are infinite or NaN.
    """
    broken = [
        key
        for key, tensor in model.named_parameters()
        if tensor.is_floating_point() and not tensor.is_meta and tensor.numel() and not _is_finite(tensor.detach())
    ]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ValueError(f"{name}: weights are not finite, in {broken[0]}{more}: this checkpoint is broken.")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite, without a mask of the tensor's size."""
    low, high = torch.aminmax(tensor)  # NaN goes through
    return bool(torch.isfinite(low) & torch.isfinite(high))


__all__ = ["BasePreTrainedModel", "check_finite"]
