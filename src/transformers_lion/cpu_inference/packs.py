"""Weights of linear layers in the order in which a CPU reads them fastest.

A pack replaces the weight: the original tensor can be dropped, and `unpack` gives it back bit for bit.

- `Float32Pack`: float32, reordered by oneDNN. The same numbers, read at the speed of the memory for few rows too.
- `Float16Pack`: float16, read by fbgemm, which computes in float32 with float32 inputs. It halves what is read.
  A weight that is in bfloat16 or float16, or that holds such numbers, fits exactly: it is scaled by a power of two so
  that its largest number is near the top of float16's range, which leaves 32 powers of two below it.

Shape letters: N output features, K input features.
"""

import math
from collections.abc import Sequence

import torch

MAX_LOST_SHARE = 1e-3
"""Share of a weight's numbers that may be outside of float16's numbers. They are kept beside the pack."""

SMALLEST_HALF = 2.0**-25
"""Half of float16's smallest number: the rounding error of what is close to zero."""

ROWS_HINT = 16
"""Number of rows that oneDNN is told of when it chooses an order; the order serves fewer and more rows."""


MIN_EXPONENT = -30
"""A weight whose largest number is below this power of two is not scaled further, lest its bias overflow."""

LARGE_TENSOR = 2**23 + 2**20
"""Numbers in float32 that take more than the 32 MB from which on the C library always asks the system for memory."""

CHUNK = 2**18
"""Numbers that are looked at at a time."""


class WeightPack:
    """A packed weight: `pack(states)` computes the linear layer, `pack.unpack()` gives the weight back.

    Attributes:
        shape: (N, K).
        dtype: of the original weight.
    """

    shape: torch.Size
    dtype: torch.dtype

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N), in float32."""
        raise NotImplementedError

    def unpack(self) -> torch.Tensor:
        """The original weight (N, K)."""
        raise NotImplementedError


class Float32Pack(WeightPack):
    """Weights in float32, reordered.

    Args:
        weights: (N_i, K) each, to be one below the other; other dtypes are converted to float32.
        bias: (N,) or `None`.
    """

    def __init__(self, weights: Sequence[torch.Tensor], bias: torch.Tensor | None = None) -> None:
        self.shape, self.dtype = _joined_shape(weights), weights[0].dtype
        joined = weights[0] if len(weights) == 1 else torch.cat(list(weights))
        self._weight = torch.ops.mkldnn._reorder_linear_weight(joined.float().contiguous(), ROWS_HINT)
        self._bias = None if bias is None else bias.detach().float().contiguous()  # its strides are not looked at

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        if not states.numel():
            return states.new_zeros(*states.shape[:-1], self.shape[0])
        return torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")

    def unpack(self) -> torch.Tensor:
        """The original weight."""
        return self._weight.to_dense().to(self.dtype)

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ([self.unpack()], self._bias)  # an order is of this machine


class Float16Pack(WeightPack):
    """Weights in float16, with the numbers that are none of float16's kept for `unpack`.

    Args:
        weights: (N_i, K) each, to be one below the other.
        bias: (N,) or `None`.
        rounds: allow weights that have to be rounded; the originals are then kept.

    Raises:
        ValueError: if weights do not fit and may not be rounded.
    """

    def __init__(self, weights: Sequence[torch.Tensor], bias: torch.Tensor | None = None, rounds: bool = False) -> None:
        self.shape, self.dtype = _joined_shape(weights), weights[0].dtype
        scale = _power_below_limit(weights)
        scaled = _scale(weights, scale)
        lost, largest_error = _find_lost(scaled)
        self.num_lost = len(lost)
        is_exact = self.num_lost <= MAX_LOST_SHARE * scaled.numel() and largest_error <= SMALLEST_HALF
        if not is_exact and not rounds:
            raise ValueError(
                f"{self.num_lost} of {scaled.numel()} numbers of the weight are not numbers of float16; at most "
                f"{MAX_LOST_SHARE:.1%} may be, and only numbers close to zero."
            )
        self._unscale = 1 / scale
        self._lost = lost, (scaled.view(-1)[lost] * self._unscale).to(self.dtype)
        self._originals = None if is_exact else list(weights)
        scaled_bias = None if bias is None else bias.detach().float().contiguous() * scale
        self._pack = torch.ops.quantized.linear_prepack_fp16(scaled, scaled_bias)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        if not states.numel():
            return states.new_zeros(*states.shape[:-1], self.shape[0])
        return torch.ops.quantized.linear_dynamic_fp16(states, self._pack).mul_(self._unscale)

    def unpack(self) -> torch.Tensor:
        """The original weight."""
        if self._originals is not None:
            return self._originals[0] if len(self._originals) == 1 else torch.cat(self._originals)
        weight = torch.ops.quantized.linear_unpack_fp16(self._pack)[0].mul_(self._unscale).to(self.dtype)
        weight.view(-1)[self._lost[0]] = self._lost[1]
        return weight


def make_pack(weights: Sequence[torch.Tensor], bias: torch.Tensor | None, form: str) -> WeightPack | None:
    """The fastest pack that `form` allows.

    Args:
        weights: (N_i, K) each, to be one below the other.
        bias: (N,) or `None`.
        form: "float32"; "auto" for float16 where that is exact; "float16" to round as well.

    Returns:
        The pack, or `None` if weights are not finite.
    """
    if not _largest(weights) < float("inf"):
        return None
    if form == "float16" or (form == "auto" and _looks_like_float16(weights[0])):
        try:
            return Float16Pack(weights, bias, rounds=form == "float16")
        except ValueError:
            pass
    return Float32Pack(weights, bias)


def can_pack() -> dict[str, bool]:
    """Which kinds of packs this build of torch has."""
    return {
        "float32": torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"),
        "float16": "fbgemm" in torch.backends.quantized.supported_engines,
    }


def _joined_shape(weights: Sequence[torch.Tensor]) -> torch.Size:
    return torch.Size((sum(len(weight) for weight in weights), weights[0].shape[1]))


def _largest(weights: Sequence[torch.Tensor]) -> float:
    """The largest absolute value; NaN if there is one."""
    bounds = torch.stack([bound.float() for weight in weights for bound in torch.aminmax(weight)])
    return float(bounds.abs().max())


def _power_below_limit(weights: Sequence[torch.Tensor]) -> float:
    """The power of two that brings the largest number to between 2^14 and 2^15; 1 for weights of zeros."""
    largest = _largest(weights)
    return 2.0 ** (15 - max(MIN_EXPONENT, math.frexp(largest)[1])) if largest else 1.0


def _scale(weights: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    """(N, K), the weights one below the other in float32, multiplied."""
    shape = _joined_shape(weights)
    # a tensor of this size goes back to the system when it is freed, which keeps the memory in one piece
    scaled = torch.empty(max(shape.numel(), LARGE_TENSOR))[: shape.numel()].view(shape)
    for rows, weight in zip(scaled.split([len(weight) for weight in weights]), weights, strict=True):
        rows.copy_(weight)
    return scaled.mul_(scale)


def _find_lost(scaled: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Flat indices of the numbers that float16 does not hold, and the largest error."""
    found, largest_error, start = [torch.empty(0, dtype=torch.long)], 0.0, 0
    for part in scaled.view(-1).split(CHUNK):
        errors = part.half().float().sub_(part)
        if errors.any():
            found.append(errors.nonzero()[:, 0] + start)
            largest_error = max(largest_error, float(errors.abs().max()))
        start += len(part)
    return torch.cat(found), largest_error


def _looks_like_float16(weight: torch.Tensor) -> bool:
    """Whether it is worth trying: the first rows, so that float32 weights are not converted in vain."""
    if weight.dtype != torch.float32:
        return True
    scaled = _scale([weight[:2]], _power_below_limit([weight]))
    return len(_find_lost(scaled)[0]) < 0.01 * scaled.numel()


__all__ = ["Float16Pack", "Float32Pack", "WeightPack", "can_pack", "make_pack"]
