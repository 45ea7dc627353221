"""One-dimensional weights as a sorted, weighted set of points, with prefix sums for any interval.

Either every weight is a point (exact, behind a sort), or the weights of one bin of a histogram are.
65,536 bins are much finer than 256 clusters, and their count does not grow with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["BINS", "Binning", "Density", "Points", "binning", "histogram", "sort"]

BINS = 1 << 16
_SAMPLE = 4096

Pair = tuple[jax.Array, jax.Array]


class Points(NamedTuple):
    """Points in ascending order, the mass of each (a count, or the sum of importances), and mass × point."""

    points: jax.Array
    mass: jax.Array
    first: jax.Array


class Density(NamedTuple):
    """Points in ascending order, their mass, `(n,)`, and sums over the first 0, 1, …, n of them, `(n + 1,)`.

    The prefix sums of mass, mass × point and mass × point² are pairs `(high, low)` of floats: the
    difference of two single floats would leave little of a small cluster among ten million weights.
    """

    points: jax.Array
    mass: jax.Array
    masses: Pair
    firsts: Pair
    seconds: Pair

    @staticmethod
    def of(points: jax.Array, mass: jax.Array, first: jax.Array) -> Density:
        """With the sums; arguments as in `Points`."""
        high, low = _prefix(jnp.stack([mass, first, first * points]))
        masses, firsts, seconds = zip(high, low, strict=True)
        return Density(points, mass, masses, firsts, seconds)


class Binning(NamedTuple):
    """The companding map of weights to bins, x ↦ y / (|y| + scale) with y = x - centre.

    It covers the whole real line, so that no outlier spoils the resolution where the weights are. The
    centre is in the middle of a bin. centre, scale: scalars.
    """

    centre: jax.Array
    scale: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """The bin of each value: int32, 0 to `BINS` - 1, ascending with the value."""
        y = x - self.centre
        place = (y / (jnp.abs(y) + self.scale) + 1.0) * (BINS / 2) + 0.5
        return jnp.clip(place.astype(jnp.int32), 0, BINS - 1)

    def middle(self, place: jax.Array) -> jax.Array:
        """The value, less the centre, in the middle of a bin."""
        u = jnp.maximum(place, 0.5).astype(self.scale.dtype) / (BINS / 2) - 1.0
        return self.scale * u / (1.0 - jnp.abs(u))


def binning(arrays: Sequence[jax.Array], weights: Sequence[jax.Array | None]) -> Binning:
    """Chooses the map from samples of the arrays: the scale is 1.5 interquartile ranges.

    The centre is the median where the weights are far from zero, such as gains around one; else it is
    exactly 0, so that clusters of zeros have exact zeros as their centroids.
    """
    parts = [_sample(x, w) for x, w in zip(arrays, weights, strict=True)]
    values, masses = (jnp.concatenate(column) for column in zip(*parts, strict=True))
    order = jnp.argsort(values)
    values, cumulative = values[order], jnp.cumsum(masses[order])
    ranks = jnp.array([0.25, 0.5, 0.75], cumulative.dtype) * cumulative[-1]
    at = jnp.clip(jnp.searchsorted(cumulative, ranks), 0, values.size - 1)
    low, median, high = values[at]
    spread = jnp.where(high > low, high - low, _mean_deviation(arrays, weights, median))
    scale = jnp.where(spread > 0, jnp.maximum(1.5 * spread, jnp.finfo(values.dtype).tiny), 1.0)
    return Binning(jnp.where(jnp.abs(median) > scale, median, 0.0), scale)


def _sample(x: jax.Array, w: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Some 4,096 evenly spread values with the mass that each stands for."""
    stride = max(x.size // _SAMPLE, 1)
    values = x.reshape(-1)[::stride]
    masses = jnp.ones_like(values) if w is None else w.reshape(-1)[::stride].astype(values.dtype)
    return values, masses * stride


def _mean_deviation(
    arrays: Sequence[jax.Array], weights: Sequence[jax.Array | None], centre: jax.Array
) -> jax.Array:
    deviation, total = jnp.zeros_like(centre), jnp.zeros_like(centre)
    for x, w in zip(arrays, weights, strict=True):
        mass = jnp.ones_like(x) if w is None else w.astype(x.dtype)
        deviation += jnp.sum(mass * jnp.abs(x - centre))
        total += jnp.sum(mass)
    return deviation / jnp.maximum(total, jnp.finfo(centre.dtype).tiny)


def histogram(arrays: Sequence[jax.Array], weights: Sequence[jax.Array | None], bins: Binning) -> Points:
    """The arrays together as a point a bin: the mean of what is in it, less the centre.

    The means within bins are those of every eighth value in arrays of a million and more; values that are
    all alike, of which a bin can be full, are found exactly all the same.
    """
    dtype = bins.scale.dtype
    counted = all(w is None for w in weights)
    mass = jnp.zeros(BINS, jnp.int32 if counted else dtype)  # Floats would stop counting at 2**24.
    sampled, first = jnp.zeros(BINS, dtype), jnp.zeros(BINS, dtype)
    for x, w in zip(arrays, weights, strict=True):
        x = x.reshape(-1)
        w = jnp.ones(x.shape, mass.dtype) if w is None else w.reshape(-1).astype(dtype)
        mass = mass.at[bins(x)].add(w, mode="promise_in_bounds")
        stride = 8 if x.size >= 1 << 20 else 1
        x, w = x[::stride], w[::stride].astype(dtype)
        place = bins(x)
        # Sums of values instead of offsets would be off by a part in 10,000 after 20,000 equal ones.
        offset = (x - bins.centre - bins.middle(place)) * w
        sampled = sampled.at[place].add(w, mode="promise_in_bounds")
        first = first.at[place].add(offset, mode="promise_in_bounds")
    means = bins.middle(jnp.arange(BINS)) + first / jnp.where(sampled > 0, sampled, 1.0)
    points, mass = jax.lax.cummax(means), mass.astype(dtype)
    return Points(points, mass, points * mass)


def sort(arrays: Sequence[jax.Array], weights: Sequence[jax.Array | None], bins: Binning) -> Points:
    """Every value of the arrays together as a point, less the centre.

    Points without mass fill the next power of 4 from 1,024 on, so that few sizes are compiled for.
    """
    points = jnp.concatenate([x.reshape(-1) for x in arrays])
    pairs = zip(arrays, weights, strict=True)
    masses = [jnp.ones(x.size, points.dtype) if w is None else w.reshape(-1) for x, w in pairs]
    mass = jnp.concatenate(masses).astype(points.dtype)
    fill = (0, (1 << 2 * max(5, -(-(points.size - 1).bit_length() // 2))) - points.size)
    points = jnp.pad(points, fill, mode="edge") - bins.centre
    points, mass = jax.lax.sort((points, jnp.pad(mass, fill)), num_keys=1)
    return Points(points, mass, points * mass)


def _prefix(x: jax.Array) -> Pair:
    """Sums of the first 0, 1, …, n values of each row of `(rows, n)`: pairs `(rows, n + 1)`.

    In blocks of about the square root of n, all of them at once: 512 short steps for a histogram.
    """
    rows, n = x.shape
    block = 1 << (max(n - 1, 1).bit_length() + 1) // 2
    blocks = jnp.pad(x, ((0, 0), (0, -n % block))).reshape(rows, -1, block)
    within = _running((jnp.moveaxis(blocks, 2, 0), jnp.zeros((block, *blocks.shape[:2]), x.dtype)))
    totals = _running((within[0][-1].T, within[1][-1].T))
    before = tuple(jnp.pad(t, ((1, 0), (0, 0)))[:-1].T for t in totals)
    sums = _add(within, before)
    flat = (jnp.moveaxis(s, 0, 2).reshape(rows, -1)[:, :n] for s in sums)
    high, low = (jnp.pad(s, ((0, 0), (1, 0))) for s in flat)
    return high, low


def _running(pairs: Pair) -> Pair:
    """Running sums along the first axis."""

    def add(total: Pair, pair: Pair) -> tuple[Pair, Pair]:
        total = _add(total, pair)
        return total, total

    return jax.lax.scan(add, tuple(jnp.zeros_like(p[0]) for p in pairs), pairs)[1]


def _add(a: Pair, b: Pair) -> Pair:
    """The sum of two pairs (Knuth's two-sum, then renormalised)."""
    total = a[0] + b[0]
    part = total - a[0]
    rest = (a[0] - (total - part)) + (b[0] - part) + (a[1] + b[1])
    high = total + rest
    return high, rest - (high - total)


def between(prefix: Pair, edges: jax.Array) -> jax.Array:
    """Sums over the intervals of points from each edge to the next: `(edges - 1,)`.

    Args:
      prefix: of a `Density`. edges: ascending indices into the points, int32.
    """
    high, low = prefix[0][edges], prefix[1][edges]
    return jnp.diff(high) + jnp.diff(low)
