"""Histograms of a layer's weights before and after compression, over the grid that they were rounded to."""

from __future__ import annotations

import dataclasses

import numpy as np

from modelzip_jax.evaluation.stored_grids import stored_grid
from modelzip_jax.packed import PackedArray

__all__ = ["WeightHistogram", "weight_histogram"]

_SAMPLE = 1 << 20
_BINS, _MOST_BINS = 96, 384
_TAIL = 1e-4
"""Share of the weights beyond either end of what is shown: one outlier would make all others one bar."""


@dataclasses.dataclass(frozen=True, eq=False)
class WeightHistogram:
    """Shares of the weights in bins of equal width.

    edges: float64 `(bins + 1,)`, in the weights' unit, or in steps, each weight's own, where `in_steps`. before, after:
    float64 `(bins,)`. levels: float64 `(k,)`, the grid within the edges; None of what has none.
    """

    edges: np.ndarray
    before: np.ndarray
    after: np.ndarray
    levels: np.ndarray | None
    in_steps: bool


def weight_histogram(packed: PackedArray, before: np.ndarray, after: np.ndarray) -> WeightHistogram | None:
    """Of one leaf: `before` and `after` have its shape. None if fewer than two weights are finite in both.

    Of more than a million weights every k-th is taken.

    >>> import modelzip_jax as mz
    >>> w = np.linspace(-3, 3, 64, dtype=np.float32)
    >>> leaf = mz.compress({"w": w}, mz.quantize(3, granularity="tensor")).params["w"]
    >>> weight_histogram(leaf, w, np.asarray(leaf.unpack())).levels
    array([-3., -2., -1.,  0.,  1.,  2.,  3.])
    """
    grid = stored_grid(packed)
    every = max(1, before.size // _SAMPLE)
    x, y = (w.reshape(-1)[::every].astype(np.float64) for w in (before, after))
    if grid is not None and not grid.is_of_values:
        unit, shift = (np.broadcast_to(u, before.shape).flat[::every] for u in (grid.unit, grid.shift))
        x, y = x / unit + shift, y / unit + shift
    here = np.isfinite(x) & np.isfinite(y)
    x, y = x[here], y[here]
    if x.size < 2:
        return None
    both = np.concatenate([x, y])
    low, high = np.quantile(both, [_TAIL, 1 - _TAIL])
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = _edges(float(low), float(high), None if grid is None else grid.levels)
    old, new = (np.histogram(np.clip(w, edges[0], edges[-1]), edges)[0] / w.size for w in (x, y))
    levels = None if grid is None else grid.levels[(grid.levels >= edges[0]) & (grid.levels <= edges[-1])]
    return WeightHistogram(edges, old, new, levels, grid is not None and not grid.is_of_values)


def _edges(low: float, high: float, levels: np.ndarray | None) -> np.ndarray:
    """Of bins, with even grids each level in the middle of one."""
    steps = np.diff(levels) if levels is not None and len(levels) > 1 else np.zeros(0)
    if not steps.size or not np.allclose(steps, steps[0], rtol=1e-3) or (high - low) / steps[0] > _MOST_BINS:
        room = 0.02 * (high - low)
        return np.linspace(low - room, high + room, _BINS + 1)
    assert levels is not None
    step = float(steps[0])
    first, last = np.floor((low - levels[0]) / step), np.ceil((high - levels[0]) / step)
    # An odd number of bins a step, so that one of them has its level in the middle.
    bins = int(max(1, _BINS // (last - first + 1))) // 2 * 2 + 1
    count = int(last - first + 1)
    return levels[0] + step * (first - 0.5 + np.arange(count * bins + 1) / bins)
