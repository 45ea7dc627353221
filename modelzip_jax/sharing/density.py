"""One-dimensional weights as a sorted, weighted set of points, with prefix sums for any interval.

Either every weight is a point (exact, behind a sort), or the weights of one bin of a histogram are.
65,536 bins are much finer than 256 clusters, and their count does not grow with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_views, placed
from modelzip_jax.sampling import spread_places
from modelzip_jax.sharing.bins import BINS, FAR, Binning
from modelzip_jax.sharing.prefix import TwoFloats, halves_outward, outward_sums
from modelzip_jax.sharing.scaling import scaled
from modelzip_jax.sharing.sums import segment_sums

__all__ = ["Density", "Points", "binning", "filled", "histogram", "sort"]

_SAMPLE = 4096


class Points(NamedTuple):
    """Points in ascending order, the mass of each (a count, or the sum of importances), and mass × point."""

    points: jax.Array
    mass: jax.Array
    first: jax.Array


class Density(NamedTuple):
    """Points in ascending order, their mass, `(n,)`, and sums from the centre out to each, `(n + 1,)`.

    The sums of mass, mass × point and mass × point² are pairs `(high, low)` of floats: the
    difference of two single floats would leave little of a small cluster among ten million weights.
    """

    points: jax.Array
    mass: jax.Array
    masses: TwoFloats
    firsts: TwoFloats
    seconds: TwoFloats

    @staticmethod
    def of(points: jax.Array, mass: jax.Array, first: jax.Array, exact: bool) -> Density:
        """With the sums; arguments as in `Points`. exact: sorted values, not bins, whose middle one is central."""
        rows = jnp.stack([mass, first, first * points])
        high, low = outward_sums(rows, points < 0) if exact else halves_outward(rows)
        masses, firsts, seconds = zip(high, low, strict=True)
        return Density(points, mass, masses, firsts, seconds)

    def range(self) -> tuple[jax.Array, jax.Array]:
        """The smallest and the largest point that has any mass; 0 and 0 if none has."""
        low = jnp.min(jnp.where(self.mass > 0, self.points, jnp.inf))
        high = jnp.max(jnp.where(self.mass > 0, self.points, -jnp.inf))
        return tuple(jnp.where(low <= high, x, 0.0) for x in (low, high))  # type: ignore[return-value]


def binning(arrays: Sequence[jax.Array], weights: Sequence[jax.Array | None], length: jax.Array) -> Binning:
    """Chooses the map from samples of the arrays: the scale is 1.5 interquartile ranges.

    The centre is the median where the weights are far from zero, such as gains around one; else it is
    exactly 0, so that clusters of zeros have exact zeros as their centroids. Where more than half of the
    weights are alike, the deviation of the others counts: half of them are nearer. length: the exponent of the unit.
    """
    parts = [_sample(x, w, length) for x, w in zip(arrays, weights, strict=True)]
    values, masses = (jnp.concatenate(column) for column in zip(*parts, strict=True))
    low, median, high = _quantiles(values, masses, jnp.array([0.25, 0.5, 0.75], values.dtype))
    deviation = jnp.abs(values - median)
    others = jnp.where(deviation > 0, masses, 0.0)
    # Not in the branch of a condition: samples of sharded weights are sorted by collectives, and XLA:CPU's devices wait
    # for one another there for ever.
    spread = jnp.where(
        high > low, high - low, _quantiles(deviation, others, jnp.full(1, 0.5, values.dtype))[0]
    )
    found = (high > low) | jnp.any(others > 0)
    spread = jax.lax.cond(
        found, lambda: spread, lambda: _mean_deviation(arrays, weights, Binning(median, spread, length))
    )
    scale = jnp.where(spread > 0, jnp.maximum(1.5 * spread, jnp.finfo(values.dtype).tiny), 1.0)
    return Binning(jnp.where(jnp.abs(median) > scale, median, 0.0), scale, length)


def _quantiles(values: jax.Array, masses: jax.Array, ranks: jax.Array) -> jax.Array:
    order = jnp.argsort(values)
    cumulative = jnp.cumsum(masses[order])
    at = jnp.searchsorted(cumulative, ranks * cumulative[-1])
    return values[order][jnp.clip(at, 0, values.size - 1)]


def _sample(x: jax.Array, w: jax.Array | None, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """4,096 evenly spread values, if there are more, with the mass that each stands for."""
    places = spread_places(x.size, _SAMPLE)
    values = scaled(x.reshape(-1)[places], -length)
    masses = jnp.ones_like(values) if w is None else w.reshape(-1)[places]
    return values, masses * (x.size / max(len(places), 1))


def _mean_deviation(
    arrays: Sequence[jax.Array], weights: Sequence[jax.Array | None], bins: Binning
) -> jax.Array:
    deviation, total = jnp.zeros_like(bins.centre), jnp.zeros_like(bins.centre)
    for x, w in zip(arrays, weights, strict=True):
        mass = jnp.ones_like(x) if w is None else w
        deviation += jnp.sum(mass * jnp.abs(bins.offset(x)))
        total += jnp.sum(mass)
    return deviation / jnp.maximum(total, jnp.finfo(total.dtype).tiny)


def histogram(
    arrays: Sequence[jax.Array], weights: Sequence[jax.Array | None], bins: Binning, top: jax.Array
) -> Points:
    """The arrays together as a point a bin: the mean of what is in it, less the centre.

    The means within bins are those of every eighth value in arrays of a million and more; values that are
    all alike, of which a bin can be full, are found exactly all the same. Where there are values in the tails of the
    map, whose bins are wide, the means are those of all values: an outlier is a point of its own. top: the largest
    magnitude.
    """
    counted = all(w is None for w in weights)
    dtype = bins.scale.dtype
    mass = jnp.zeros(BINS, jnp.int32 if counted else dtype)  # Floats would stop counting at 2**24.
    for x, w in zip(arrays, weights, strict=True):
        place = bins(x.reshape(-1))
        if w is None:
            mass = mass.at[place].add(1, mode="promise_in_bounds")
        else:
            mass += segment_sums(place, w.reshape(-1, 1), BINS)[:, 0]

    def means(stride: int) -> jax.Array:
        # Sums of values instead of offsets would be off by a part in 10,000 after 20,000 equal ones.
        pairs = zip(arrays, weights, strict=True)
        found = sum(_offsets(x, w, bins, stride if x.size >= 1 << 20 else 1) for x, w in pairs)
        return found[:, 1] / jnp.where(found[:, 0] > 0, found[:, 0], 1.0)

    if max(x.size for x in arrays) < 1 << 20:
        offset = means(1)
    else:
        offset = jax.lax.cond(
            top + jnp.abs(bins.centre) < FAR * bins.scale, lambda: means(8), lambda: means(1)
        )
    points = jax.lax.cummax(bins.middle(jnp.arange(BINS)) + offset)
    mass = mass.astype(dtype)
    return Points(points, mass, points * mass)


def _offsets(x: jax.Array, w: jax.Array | None, bins: Binning, stride: int) -> jax.Array:
    """The mass of every so many values in each bin, and that times their distance to its middle: `(BINS, 2)`."""
    x = x.reshape(-1)[::stride]
    place = bins(x)
    offset = bins.offset(x) - bins.middle(place)
    w = jnp.ones_like(x) if w is None else w.reshape(-1)[::stride]
    return segment_sums(place, jnp.stack([w, offset * w], axis=1), BINS)


def sort(arrays: Sequence[jax.Array], weights: Sequence[jax.Array | None], bins: Binning) -> Points:
    """Every value of the arrays together as a point, less the centre."""
    points = bins.offset(jnp.concatenate([x.reshape(-1) for x in arrays]))
    pairs = zip(arrays, weights, strict=True)
    masses = [jnp.ones(x.size, points.dtype) if w is None else w.reshape(-1) for x, w in pairs]
    points, mass = jax.lax.sort((points, jnp.concatenate(masses)), num_keys=1)
    return Points(points, mass, points * mass)


def filled(arrays: Sequence[jax.Array], weights: Sequence[jax.Array | None]) -> tuple[jax.Array, jax.Array]:
    """All values in one array, and their mass, up to the next power of 4 from 1,024 on.

    What fills it has no mass: few sizes are compiled for. Values that can be read on the host are put together there.

    >>> values, mass = filled([jnp.array([1.0, 2.0])], [None])
    >>> len(values), float(mass.sum())
    (1024, 2.0)
    """
    size = sum(x.size for x in arrays)
    fill = (0, (1 << 2 * max(5, -(-(size - 1).bit_length() // 2))) - size)
    seen = host_views(*arrays, *(w for w in weights if w is not None))
    if seen is not None:
        given = iter(seen[len(arrays) :])
        weights = [None if w is None else next(given) for w in weights]  # type: ignore[misc]
        arrays = seen[: len(arrays)]  # type: ignore[assignment]
    xp = jnp if seen is None else np
    dtype = arrays[0].dtype
    masses = [
        xp.ones(x.size, dtype) if w is None else w.reshape(-1).astype(dtype)
        for x, w in zip(arrays, weights, strict=True)
    ]
    values = xp.pad(xp.concatenate([x.reshape(-1) for x in arrays]), fill, mode="edge")
    mass = xp.pad(xp.concatenate(masses), fill)
    return (values, mass) if seen is None else (placed(values), placed(mass))
