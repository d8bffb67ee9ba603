"""Packs the weights of linear layers into the memory layout that a CPU reads fastest.

A pack replaces the weight. The original tensor can be dropped, and `unpack` restores it bit for bit.

- `Float32Pack`: float32, reordered by oneDNN. The values are the same, but are read at full memory bandwidth even for
  few input rows.
- `Float16Pack`: float16, read by FBGEMM, which computes in float32 with float32 inputs. It halves memory traffic. A
  weight in bfloat16 or float16, or with values of that precision, is stored exactly: it is scaled by a power of two so
  that its largest value is near the top of float16's range, which leaves 32 powers of two below it.

Shape letters: N output features, K input features.
"""

import math
from collections.abc import Sequence

import torch

MAX_LOST_SHARE = 1e-3
"""Maximum share of a weight's values that float16 cannot represent. They are stored separately."""

SMALLEST_HALF = 2.0**-25
"""Half of the smallest float16 value, which is the maximum rounding error close to zero."""

ROWS_HINT = 16
"""Number of input rows for which oneDNN chooses the layout. The layout works for any number of rows."""

MIN_EXPONENT = -30
"""Minimum exponent of a weight's largest value for scaling. Larger scales could make the bias overflow."""

LARGE_TENSOR = 2**23 + 2**20
"""Number of float32 values above 32 MB, for which the C library always requests memory from the system."""

CHUNK = 2**18
"""Number of values to check at a time."""


class WeightPack:
    """A packed weight. `pack(states)` computes the linear layer, and `pack.unpack()` returns the original weight.

    Attributes:
        shape: Shape of the weight, (N, K).
        dtype: Dtype of the original weight.
    """

    shape: torch.Size
    dtype: torch.dtype

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N), in float32."""
        raise NotImplementedError

    def unpack(self) -> torch.Tensor:
        """Return the original weight (N, K)."""
        raise NotImplementedError


class Float32Pack(WeightPack):
    """Reordered weights in float32.

    Args:
        weights: Weights to concatenate, each (N_i, K). Other dtypes are converted to float32.
        bias: Bias (N,) or `None`.
    """

    def __init__(self, weights: Sequence[torch.Tensor], bias: torch.Tensor | None = None) -> None:
        self.shape, self.dtype = _joined_shape(weights), weights[0].dtype
        joined = weights[0] if len(weights) == 1 else torch.cat(list(weights))
        self._weight = torch.ops.mkldnn._reorder_linear_weight(joined.float().contiguous(), ROWS_HINT)
        self._bias = None if bias is None else bias.detach().float().contiguous()  # oneDNN ignores its strides

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        if not states.numel():
            return states.new_zeros(*states.shape[:-1], self.shape[0])
        return torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")

    def unpack(self) -> torch.Tensor:
        """Return the original weight (N, K)."""
        return self._weight.to_dense().to(self.dtype)

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ([self.unpack()], self._bias)  # the layout depends on the machine


class Float16Pack(WeightPack):
    """Weights in float16. Values that float16 cannot represent are stored separately for `unpack`.

    Args:
        weights: Weights to concatenate, each (N_i, K).
        bias: Bias (N,) or `None`.
        rounds: Whether to allow rounding. The original weights are then kept.

    Raises:
        ValueError: If the weights would have to be rounded without `rounds`.
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
                f"float16 cannot represent {self.num_lost} of the weight's {scaled.numel()} values; at most "
                f"{MAX_LOST_SHARE:.1%} are allowed, and only values close to zero."
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
        """Return the original weight (N, K)."""
        if self._originals is not None:
            return self._originals[0] if len(self._originals) == 1 else torch.cat(self._originals)
        weight = torch.ops.quantized.linear_unpack_fp16(self._pack)[0].mul_(self._unscale).to(self.dtype)
        weight.view(-1)[self._lost[0]] = self._lost[1]
        return weight


def make_pack(weights: Sequence[torch.Tensor], bias: torch.Tensor | None, form: str) -> WeightPack | None:
    """Create the fastest pack that `form` allows.

    Args:
        weights: Weights to concatenate, each (N_i, K).
        bias: Bias (N,) or `None`.
        form: "float32"; "auto" for float16 if it is exact, otherwise float32; or "float16", rounding if necessary.

    Returns:
        The pack, or `None` if the weights are not finite.
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
    """Return which packs this build of torch supports."""
    return {
        "float32": torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"),
        "float16": "fbgemm" in torch.backends.quantized.supported_engines,
    }


def _joined_shape(weights: Sequence[torch.Tensor]) -> torch.Size:
    return torch.Size((sum(len(weight) for weight in weights), weights[0].shape[1]))


def _largest(weights: Sequence[torch.Tensor]) -> float:
    """Return the largest absolute value, or NaN if any value is NaN."""
    bounds = torch.stack([bound.float() for weight in weights for bound in torch.aminmax(weight)])
    return float(bounds.abs().max())


def _power_below_limit(weights: Sequence[torch.Tensor]) -> float:
    """Return the power of two that scales the largest value to between 2^14 and 2^15, or 1 if all values are zero."""
    largest = _largest(weights)
    return 2.0 ** (15 - max(MIN_EXPONENT, math.frexp(largest)[1])) if largest else 1.0


def _scale(weights: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    """Concatenate weights to (N, K) in float32, and multiply them by `scale`."""
    shape = _joined_shape(weights)
    # tensors of this size are returned to the system when freed, which avoids memory fragmentation
    scaled = torch.empty(max(shape.numel(), LARGE_TENSOR))[: shape.numel()].view(shape)
    for rows, weight in zip(scaled.split([len(weight) for weight in weights]), weights, strict=True):
        rows.copy_(weight)
    return scaled.mul_(scale)


def _find_lost(scaled: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the flat indices of the values that float16 cannot represent, and the largest rounding error."""
    found, largest_error, start = [torch.empty(0, dtype=torch.long)], 0.0, 0
    for part in scaled.view(-1).split(CHUNK):
        errors = part.half().float().sub_(part)
        if errors.any():
            found.append(errors.nonzero()[:, 0] + start)
            largest_error = max(largest_error, float(errors.abs().max()))
        start += len(part)
    return torch.cat(found), largest_error


def _looks_like_float16(weight: torch.Tensor) -> bool:
    """Check the first rows of a weight, to avoid converting float32 weights unnecessarily."""
    if weight.dtype != torch.float32:
        return True
    scaled = _scale([weight[:2]], _power_below_limit([weight]))
    return len(_find_lost(scaled)[0]) < 0.01 * scaled.numel()


__all__ = ["Float16Pack", "Float32Pack", "WeightPack", "can_pack", "make_pack"]
