"""Linear layers whose weights are packed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .packs import WeightPack

RESTORE = "Call restore_for_training on the model that optimize_for_inference was called on."


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear`; it computes in float32 and has no gradients.

    Args:
        linear: the layer. Its weight may be dropped.
        pack: its packed weight, alone or with those of other layers with the same input, one below the other.
        start: this layer's first row in the pack.
    """

    weight = None  # what T5's layers ask before they convert their input

    def __init__(self, linear: nn.Linear, pack: WeightPack, start: int = 0) -> None:
        super().__init__()
        self.pack = pack
        self.bias = linear.bias  # it is in the pack as well
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.rows = slice(start, start + linear.out_features)
        self._linear = (linear,)  # not as a part of this module

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        outputs = self.pack(states.float())
        return outputs if self.out_features == self.pack.shape[0] else outputs[..., self.rows]

    def restore(self, weight: torch.Tensor) -> nn.Linear:
        """The layer with its weight.

        Args:
            weight: all rows of the unpacked pack.
        """
        linear = self._linear[0]
        linear.weight.data = weight if self.out_features == len(weight) else weight[self.rows].clone()
        return linear

    def train(self, mode: bool = True) -> "PackedLinear":
        """As of all modules.

        Raises:
            RuntimeError: if it is to be trained.
        """
        if mode:
            raise RuntimeError(f"A packed layer cannot be trained. {RESTORE}")
        return super().train(mode)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {type(self.pack).__name__}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        moved = fn(torch.zeros(1))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise RuntimeError(
                f"A model with packed weights stays on the CPU and in float32, but {moved.device} and {moved.dtype} "
                f"were asked for. {RESTORE}"
            )
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(f"A part of a model with packed weights has no state dict. {RESTORE}")

    def _load_from_state_dict(self, *args: Any) -> None:
        raise RuntimeError(f"A part of a model with packed weights loads no state dict. {RESTORE}")


__all__ = ["PackedLinear"]
