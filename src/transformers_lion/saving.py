"""How models of this package are saved, beyond what transformers does by itself."""

import os
from typing import Any

import torch

COMPILED = "_orig_mod."
"""What `torch.compile` puts into the names of the weights of a part that it wraps."""


class PlainNamesMixin:
    """Saves weights under the names of a model of which no part is compiled.

    After `model.vision_model = torch.compile(model.vision_model)` the names of the tower's weights hold `_orig_mod`.
    transformers saves them so, and a model that is loaded from the folder starts with a random tower. Put this before
    the transformers base class.
    """

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
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)  # type: ignore[misc]


def plain_name(name: str) -> str:
    """The name of a weight, without what `torch.compile` put into it."""
    return name.replace(COMPILED, "")


__all__ = ["PlainNamesMixin", "plain_name"]
