"""Linear layers on few rows, as each decoded token is one: there reading the weights takes all the time.

On the CPU and in float32 the matrix product that PyTorch uses for many rows reads weights for a few at a quarter of the
memory's speed. Two remedies, both with the same sums up to rounding:

- *packed* weights, a second copy in the order in which oneDNN reads them;
- for 2 to 8 rows without such a copy, the product from the other side, `(W x^T)^T`.

Linear layers that read the same input are packed as one.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .derived_weights import DerivedWeights, may_derive, plain_weights

MAX_PACKED_ROWS = 64
"""More rows than this keep the processor busy with the weights as they are."""

MAX_FLIPPED_ROWS = 8
"""Up to so many rows the product from the other side is the faster one."""

PACKING_HINT = 16
"""Number of rows that oneDNN is told of when it chooses the order; the order serves fewer and more."""

CAN_PACK = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


class PackedLinears(DerivedWeights[tuple[torch.Tensor, torch.Tensor | None]]):
    """What a few linear layers give for the same input, at once if it has few rows.

    Args:
        enabled: whether a packed copy may be kept.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), (self.enabled,)

    def __call__(self, linears: Sequence[nn.Linear], states: torch.Tensor) -> list[torch.Tensor]:
        """(..., K) -> (..., N) for each layer.

        Args:
            linears: layers of one input width, all with a bias or all without.
            states: their input.
        """
        if not may_derive(linears[0], states):  # first of all: while exporting, nobody may ask for sizes
            return [linear(states) for linear in linears]
        rows = states.numel() // states.shape[-1]
        weights = None
        if rows <= MAX_PACKED_ROWS and may_pack(states):
            weights = plain_weights(linears, states.dtype, states.device)
        if weights is None:
            return [linear(states) for linear in linears]
        if self.enabled and CAN_PACK:
            outputs = packed_linear(states, *self.get(weights, lambda: pack(linears)))
            return (
                [outputs] if len(linears) == 1 else list(outputs.split([linear.out_features for linear in linears], -1))
            )
        if 1 < rows <= MAX_FLIPPED_ROWS:
            return [flipped_linear(linear, states) for linear in linears]
        return [linear(states) for linear in linears]


def may_pack(states: torch.Tensor) -> bool:
    """Whether `states` are of a kind for which packed weights are of use."""
    return states.dtype == torch.float32 and states.device.type == "cpu" and states.numel() > 0


def pack(linears: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The packed weights (opaque) and the bias of `linears`, one below the other."""
    return pack_weights(
        torch.cat([linear.weight for linear in linears]),
        None if linears[0].bias is None else torch.cat([linear.bias for linear in linears]),
    )


def pack_weights(weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(N, K) in the order in which oneDNN reads it (opaque), and a copy of the bias."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACKING_HINT)
    return packed, None if bias is None else bias.detach().clone()


def packed_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(..., K) -> (..., N), with a weight of `pack_weights`."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


def flipped_linear(linear: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """(..., K) -> (..., N), from the other side."""
    flat = states.reshape(-1, states.shape[-1])
    outputs = torch.mm(linear.weight, flat.t()).t()
    if linear.bias is not None:
        outputs = outputs + linear.bias
    return outputs.reshape(*states.shape[:-1], linear.out_features)


__all__ = ["PackedLinears"]
