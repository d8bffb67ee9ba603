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
        pack: the packed weight, of this layer alone or of several layers with the same input, one below the other.
        bias: this layer's; it is in the pack already, and is kept for what looks at it.
        start, stop: this layer's rows of the pack; by default all.
    """

    weight = None  # what T5's layers ask before they convert their input

    def __init__(self, pack: WeightPack, bias: nn.Parameter | None = None, start: int = 0, stop: int | None = None):
        super().__init__()
        self.pack = pack
        self.bias = bias
        self.rows = slice(start, pack.shape[0] if stop is None else stop)
        self.in_features = pack.shape[1]
        self.out_features = self.rows.stop - start

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        outputs = self.pack(states.float())
        return outputs if self.out_features == self.pack.shape[0] else outputs[..., self.rows]

    def unpack(self) -> torch.Tensor:
        """The original weight, (N, K)."""
        weight = self.pack.unpack()
        return weight if self.out_features == self.pack.shape[0] else weight[self.rows].clone()

    def train(self, mode: bool = True) -> "PackedLinear":
        if mode:
            raise RuntimeError(f"A packed layer cannot be trained. {RESTORE}")
        return super().train(mode)

    def extra_repr(self) -> str:
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
