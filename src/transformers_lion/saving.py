"""How models of this package are saved, copied and pickled, beyond what transformers does by itself."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

COMPILED = "_orig_mod."
"""What `torch.compile` puts into the names of the weights of a part that it wraps."""


SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Where transformers finds weights: in one file, or, only if there is none, in shards that an index lists."""


class PlainNamesMixin:
    """Saves weights under the names of a model of which no part is compiled, and as the only ones in a folder.

    After `model.vision_model = torch.compile(model.vision_model)` the names of the tower's weights hold `_orig_mod`.
    transformers saves them so, and a model that is loaded from the folder starts with a random tower. Put this before
    the transformers base class.

    A copied or pickled model leaves out the hooks with which transformers records hidden states and attentions once
    they have been asked for: they are local functions, which cannot be pickled. The copy installs its own when needed.
    """

    def __getstate__(self) -> dict[str, Any]:
        return _without_capturing_hooks(self, {}).__dict__  # type: ignore[arg-type]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """As `PreTrainedModel.save_pretrained`."""
        names = state_dict or dict(self.named_parameters())  # type: ignore[attr-defined]
        if any(COMPILED in name for name in names):
            weights = self.state_dict() if state_dict is None else state_dict  # type: ignore[attr-defined]
            state_dict = {plain_name(name): weight for name, weight in weights.items()}
        with without_older_weights(Path(save_directory), kwargs.get("variant")):
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)  # type: ignore[misc]


CAPTURING_MODULE = "transformers.utils.output_capturing"
CAPTURING_MARK = "_output_capturing_hooks_installed"


def _without_capturing_hooks(module: nn.Module, twins: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module itself if transformers records nothing in it, else a shallow copy without these hooks and their mark.

    Args:
        module: is not changed, since another thread may be using it.
        twins: those of modules seen before, so that a module in two places stays one.
    """
    if module in twins:
        return twins[module]
    parts = {name: part and _without_capturing_hooks(part, twins) for name, part in module._modules.items()}
    hooks = [(key, hook) for key, hook in module._forward_hooks.items() if not _is_capturing(hook)]
    twin = module
    is_plain = len(hooks) == len(module._forward_hooks) and CAPTURING_MARK not in module.__dict__
    if not is_plain or any(part is not module._modules[name] for name, part in parts.items()):
        twin = object.__new__(type(module))
        twin.__dict__ = {**module.__dict__, "_modules": parts, "_forward_hooks": OrderedDict(hooks)}
        twin.__dict__.pop(CAPTURING_MARK, None)
    twins[module] = twin
    return twin


def _is_capturing(hook: Any) -> bool:
    return getattr(hook, "__module__", None) == CAPTURING_MODULE


def plain_name(name: str) -> str:
    """The name of a weight, without what `torch.compile` put into it."""
    return name.replace(COMPILED, "")


@contextmanager
def without_older_weights(folder: Path, variant: str | None) -> Iterator[None]:
    """Remove the weights of an older model from a folder when the block has written new ones.

    transformers leaves an older `model.safetensors` beside new shards, and that is what would load.
    """
    files = [folder / with_variant(name, variant) for name in (SINGLE, INDEX)]
    before = [identity(file) for file in files]
    yield
    is_new = [identity(file) not in (None, old) for file, old in zip(files, before, strict=True)]
    for file, new in zip(files, is_new, strict=True):
        if any(is_new) and not new:
            file.unlink(missing_ok=True)


def with_variant(name: str, variant: str | None) -> str:
    """What transformers calls a file of weights of a variant, such as `model.fp16.safetensors`."""
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


def identity(file: Path) -> tuple[int, int] | None:
    """What changes when a file is written; `None` if there is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


__all__ = ["PlainNamesMixin", "plain_name"]
