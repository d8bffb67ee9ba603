"""Weights that are numbers: a broken download or a diverged training leaves NaN, of which no answer can be made."""

import torch
from torch import nn


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
        if tensor.is_floating_point() and not tensor.is_meta and tensor.numel() and not is_finite(tensor.detach())
    ]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ValueError(f"{name}: weights are not finite, in {broken[0]}{more}: this checkpoint is broken.")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite, without a mask of the tensor's size."""
    low, high = torch.aminmax(tensor)  # NaN goes through
    return bool(torch.isfinite(low) & torch.isfinite(high))


__all__ = ["check_finite"]
