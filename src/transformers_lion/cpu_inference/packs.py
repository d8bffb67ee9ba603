"""Weights of linear layers in the order in which a CPU reads them fastest.

A pack replaces the weight: the original tensor can be dropped, and `unpack` gives it back bit for bit.

- `Float32Pack`: float32, reordered by oneDNN. The same numbers, read at the speed of the memory for few rows too.
- `Float16Pack`: float16, read by fbgemm, which computes in float32 with float32 inputs. It halves what is read.
  A weight that is in bfloat16 or float16, or that holds such numbers, fits exactly: it is scaled by a power of two so
  that its largest number is near the top of float16's range, which leaves 32 powers of two below it.

Shape letters: N output features, K input features.
"""

from typing import Any

import torch

MAX_LOST_SHARE = 1e-3
"""Share of a weight's numbers that may be outside of float16's numbers. They are kept beside the pack."""

SMALLEST_HALF = 2.0**-25
"""Half of float16's smallest number: the rounding error of what is close to zero."""

ROWS_HINT = 16
"""Number of rows that oneDNN is told of when it chooses an order; the order serves fewer and more rows."""


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
    """A weight in float32, reordered.

    Args:
        weight: (N, K); of another dtype, it is converted to float32.
        bias: (N,) or `None`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.shape, self.dtype = weight.shape, weight.dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().float().contiguous(), ROWS_HINT)
        self._bias = None if bias is None else bias.detach().float()

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        if not states.numel():
            return states.new_zeros(*states.shape[:-1], self.shape[0])
        return torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")

    def unpack(self) -> torch.Tensor:
        """The original weight."""
        return self._weight.to_dense().to(self.dtype)

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), (self.unpack(), self._bias)  # an order is of this machine


class Float16Pack(WeightPack):
    """A weight in float16, with the numbers that are none of float16's kept for `unpack`.

    Args:
        weight: (N, K).
        bias: (N,) or `None`.
        rounds: allow a weight that has to be rounded; the original is then kept.

    Raises:
        ValueError: if the weight is not finite, or does not fit and may not be rounded.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, rounds: bool = False) -> None:
        self.shape, self.dtype = weight.shape, weight.dtype
        scale = _power_below_limit(weight)
        scaled = weight.detach().float() * scale
        errors = (scaled.half().float() - scaled).abs_()
        lost = errors > 0
        self.num_lost = int(lost.sum())
        is_exact = self.num_lost <= MAX_LOST_SHARE * weight.numel() and float(errors.max()) <= SMALLEST_HALF
        if not is_exact and not rounds:
            raise ValueError(
                f"{self.num_lost} of {weight.numel()} numbers of the weight are not numbers of float16; at most "
                f"{MAX_LOST_SHARE:.1%} may be, and only numbers close to zero."
            )
        self._kept = (lost.flatten().nonzero()[:, 0], weight.detach()[lost]) if is_exact else None
        self._original = None if is_exact else weight.detach()
        self._unscale = 1 / scale
        scaled_bias = None if bias is None else bias.detach().float() * scale
        self._pack = torch.ops.quantized.linear_prepack_fp16(scaled, scaled_bias)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        if not states.numel():
            return states.new_zeros(*states.shape[:-1], self.shape[0])
        return torch.ops.quantized.linear_dynamic_fp16(states, self._pack).mul_(self._unscale)

    def unpack(self) -> torch.Tensor:
        """The original weight."""
        if self._original is not None:
            return self._original
        assert self._kept is not None
        weight = torch.ops.quantized.linear_unpack_fp16(self._pack)[0].mul_(self._unscale).to(self.dtype)
        weight.view(-1)[self._kept[0]] = self._kept[1]
        return weight


def make_pack(weight: torch.Tensor, bias: torch.Tensor | None, form: str) -> WeightPack | None:
    """The fastest pack of a weight that `form` allows.

    Args:
        weight: (N, K).
        bias: (N,) or `None`.
        form: "float32"; "auto" for float16 where that is exact; "float16" to round as well.

    Returns:
        The pack, or `None` if the weight is not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        return None
    if form == "float16" or (form == "auto" and _looks_like_float16(weight)):
        try:
            return Float16Pack(weight, bias, rounds=form == "float16")
        except ValueError:
            pass
    return Float32Pack(weight, bias)


def can_pack() -> dict[str, bool]:
    """Which kinds of packs this build of torch has."""
    return {
        "float32": torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"),
        "float16": "fbgemm" in torch.backends.quantized.supported_engines,
    }


def _power_below_limit(weight: torch.Tensor) -> float:
    """The power of two that brings the largest number to between 2^14 and 2^15; 1 for a weight of zeros."""
    low, high = torch.aminmax(weight.detach())
    largest = max(-float(low), float(high))
    if not largest < float("inf"):
        raise ValueError("The weight has numbers that are not finite.")
    return 2.0 ** (15 - _exponent(largest)) if largest else 1.0


def _exponent(number: float) -> int:
    mantissa_and_exponent: Any = torch.frexp(torch.tensor(number, dtype=torch.float64))
    return max(-30, int(mantissa_and_exponent.exponent))


def _looks_like_float16(weight: torch.Tensor) -> bool:
    """Whether it is worth trying: the first rows, so that float32 weights are not converted in vain."""
    if weight.dtype != torch.float32:
        return True
    scaled = weight.detach()[:2] * _power_below_limit(weight)
    return float((scaled.half().float() != scaled).float().mean()) < 0.01


__all__ = ["Float16Pack", "Float32Pack", "WeightPack", "can_pack", "make_pack"]
