"""Resize Swin's relative position biases to another window size, like RAM's reference code.

Source: `interpolate_relative_pos_embed` of the reference, after BEiT. The old offsets are placed at growing distances,
so that a larger window spans the same range of biases. A cubic spline (not-a-knot) interpolates between them. Outside
the old range, the border value is used.
"""

import math

import numpy as np
import torch

SPLINE_DEGREE = 3
RATIO_LOW, RATIO_HIGH, RATIO_TOLERANCE = 1.01, 1.5, 1e-6
"""Search interval and tolerance of the bisection for the growth ratio."""


def resize_bias_table(table: torch.Tensor, window_size: int) -> torch.Tensor:
    """Resize a table to another window size.

    Args:
        table: Table of shape ((2w - 1)^2, heads) for windows of size w.
        window_size: New window size.

    Returns:
        The table for the new window size, or the same object if it already has that size.
    """
    old, new = math.isqrt(table.shape[0]), 2 * window_size - 1
    if old == new:
        return table
    weights = _spline_weights(_growing_offsets(old // 2, new // 2), np.arange(-(new // 2), new // 2 + 1, dtype=float))
    biases = table.double().numpy().reshape(old, old, -1)
    resized = np.einsum("io,jp,oph->ijh", weights, weights, biases)
    return torch.from_numpy(resized.reshape(new * new, -1)).to(table.dtype)


def _growing_offsets(old: int, new: int) -> np.ndarray:
    """Return 2 * `old` + 1 positions, symmetric around 0, whose steps grow so that the last one is about `new`."""
    low, high, ratio = RATIO_LOW, RATIO_HIGH, RATIO_LOW
    while high - low > RATIO_TOLERANCE:
        ratio = (low + high) / 2
        if (1 - ratio**old) / (1 - ratio) > new:
            high = ratio
        else:
            low = ratio
    positive = np.cumsum(ratio ** np.arange(old))
    return np.concatenate([-positive[::-1], [0.0], positive])


def _spline_weights(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the weights (points, nodes) that interpolate values at `nodes` with a spline at `points`."""
    if len(nodes) == 1:
        return np.ones((len(points), 1))
    degree = min(SPLINE_DEGREE, len(nodes) - 1)
    skipped = (degree + 1) // 2  # not-a-knot: the nodes next to the ends are not knots
    inner = nodes[skipped : len(nodes) - skipped] if degree == SPLINE_DEGREE else nodes[:0]
    knots = np.concatenate([[nodes[0]] * (degree + 1), inner, [nodes[-1]] * (degree + 1)])
    clipped = points.clip(nodes[0], nodes[-1])
    return _basis(knots, degree, clipped) @ np.linalg.inv(_basis(knots, degree, nodes))


def _basis(knots: np.ndarray, degree: int, points: np.ndarray) -> np.ndarray:
    """Evaluate the B-splines of `degree` on `knots` as (points, functions), with the Cox-de Boor recursion."""
    intervals = len(knots) - 1
    last = np.flatnonzero(knots[:-1] < knots[1:])[-1]
    index = np.minimum(np.searchsorted(knots, points, side="right") - 1, last)
    values = (index[:, None] == np.arange(intervals)).astype(float)
    for order in range(1, degree + 1):
        lower = np.zeros((len(points), intervals - order))
        for k in range(intervals - order):
            left, right = knots[k + order] - knots[k], knots[k + order + 1] - knots[k + 1]
            if left > 0:
                lower[:, k] += (points - knots[k]) / left * values[:, k]
            if right > 0:
                lower[:, k] += (knots[k + order + 1] - points) / right * values[:, k + 1]
        values = lower
    return values
