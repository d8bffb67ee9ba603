"""Linear layers with packed weights, and embeddings whose weights stay in 16 bits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .packs import WeightPack
from .wrapping import Replacement

RESTORE = "Call restore_for_training on the model that optimize_for_inference was called on."


class PackedLinear(nn.Module):
    """Replaces an `nn.Linear`. It computes in float32 and has no gradients.

    Args:
        linear: Original layer. Its weight may be dropped.
        pack: Packed weight of the layer, which may also contain the rows of other layers with the same input.
        start: First row of this layer in the pack.
    """

    weight = None  # T5's layers only convert their input if there is a weight

    def __init__(self, linear: nn.Linear, pack: WeightPack, start: int = 0) -> None:
        super().__init__()
        self.pack = pack
        self.bias = linear.bias  # the pack also contains it
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.rows = slice(start, start + linear.out_features)
        self._linear = (linear,)  # a tuple, so that it is not registered as a submodule

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        outputs = self.pack(states.float())
        return outputs if self.out_features == self.pack.shape[0] else outputs[..., self.rows]

    def restore(self, weight: torch.Tensor) -> nn.Linear:
        """Return the original layer with its weight.

        Args:
            weight: Unpacked weight of the whole pack.
        """
        linear = self._linear[0]
        linear.weight.data = weight if self.out_features == len(weight) else weight[self.rows].clone()
        return linear

    def train(self, mode: bool = True) -> "PackedLinear":
        """Set eval mode.

        Raises:
            RuntimeError: If `mode` is `True`.
        """
        if mode:
            raise RuntimeError(f"A packed layer cannot be trained. {RESTORE}")
        return super().train(mode)

    def extra_repr(self) -> str:
        """Return the description for `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {type(self.pack).__name__}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        moved = fn(torch.zeros(1))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise RuntimeError(
                f"A model with packed weights must stay on the CPU in float32 and cannot be moved to {moved.device} in "
                f"{moved.dtype}. {RESTORE}"
            )
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(f"A part of a model with packed weights has no state dict. {RESTORE}")

    def _load_from_state_dict(self, *args: Any) -> None:
        raise RuntimeError(f"A part of a model with packed weights cannot load a state dict. {RESTORE}")


class HalfEmbedding(Replacement):
    """Replaces an `nn.Embedding` in bfloat16 or float16. It converts only the embeddings that a call needs."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) -> (..., D), in float32."""
        return self.original(ids).float()


__all__ = ["HalfEmbedding", "PackedLinear"]
