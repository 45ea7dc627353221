"""Ranges that are read off the weights, or given."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.quantization.ranges.range import Fit, Range, limits
from modelzip_jax.recipe import recordable

__all__ = [
    "FixedRange",
    "MinMax",
    "MovingAverage",
    "Percentile",
    "fixed",
    "min_max",
    "moving_average",
    "percentile",
]


@recordable
@dataclasses.dataclass(frozen=True)
class MinMax(Range):
    """See `min_max`."""

    of_extremes = True

    def limits(self, w: jax.Array, fit: Fit) -> tuple[jax.Array, jax.Array]:
        return limits(w, fit.groups)


@recordable
@dataclasses.dataclass(frozen=True)
class MovingAverage(MinMax):
    """See `moving_average`."""

    decay: float  # type: ignore[misc]


@recordable
@dataclasses.dataclass(frozen=True)
class FixedRange(Range):
    """See `fixed`."""

    low: float
    high: float

    def limits(self, w: jax.Array, fit: Fit) -> tuple[jax.Array, jax.Array]:
        shape = fit.groups.steps_shape(w.shape)
        return jnp.full(shape, self.high, w.dtype), jnp.full(shape, -self.low, w.dtype)


@recordable
@dataclasses.dataclass(frozen=True)
class Percentile(Range):
    """See `percentile`."""

    percent: float

    def limits(self, w: jax.Array, fit: Fit) -> tuple[jax.Array, jax.Array]:
        if fit.symmetric:
            reach = self._reach(jnp.abs(w), fit)
            return reach, reach
        return self._reach(jnp.maximum(w, 0), fit), self._reach(jnp.maximum(-w, 0), fit)

    def _reach(self, size: jax.Array, fit: Fit) -> jax.Array:
        """The least magnitude that the share of a group's weights does not exceed."""
        counts = jnp.asarray(fit.groups.counts(size.shape))
        beyond = jnp.floor(counts * (1.0 - self.percent / 100.0) + 1e-6).astype(jnp.int32)
        if not size.size:
            return jnp.zeros(fit.groups.steps_shape(size.shape), size.dtype)
        ordered = -jnp.sort(-fit.groups.blocks(size), axis=1)  # What pads a group, zeros, comes last.
        place = jnp.broadcast_to(
            jnp.minimum(beyond, counts - 1)[:, :, None], (len(ordered), 1, ordered.shape[2])
        )
        return jnp.take_along_axis(ordered, place, axis=1)[:, 0]


def min_max() -> MinMax:
    """Every weight within reach: the default, "max".

    >>> min_max()
    MinMax()
    """
    return MinMax()


def moving_average(decay: float = 0.99) -> MovingAverage:
    """A running mean of what covers every weight, for `discretization="dynamic"`, or of activations, batch by batch.

    step ← decay · step + (1 - decay) · the step that covers the latents, in every optimizer step; of activations the
    same with the largest and the smallest value of each batch of the calibration, from the first one's on.

    Args:
      decay: between 0 and 1.

    Jacob et al. 2018, arXiv:1712.05877, section 3.1.

    >>> moving_average(0.9).decay
    0.9
    """
    if not 0.0 <= decay < 1.0:
        raise TransformError(f"a decay is at least 0 and below 1, not {decay!r}")
    return MovingAverage(float(decay))


def fixed(low: float, high: float) -> FixedRange:
    """The same range for every group: weights beyond are clipped.

    Bounds hold exactly with `symmetric=False`. A symmetric grid has one code more below zero than above, which lies a
    step beyond; scales that are stored as powers of two or as fp8 are rounded.

    With the survey's example, weights within [-0.5, 0.5], nothing is to be divided in training and multiplied at test
    time: codes are w / s and what is computed with is code · s, with one s, the range over the codes, which is stored.

    Args:
      low: at most 0. high: at least 0, and above `low`.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> t = mz.quantize(8, symmetric=False, range=fixed(-0.5, 0.5))
    >>> [round(float(x), 2) for x in mz.decoded({"w": jnp.array([[0.3], [-0.7]])}, t)["w"].ravel()]
    [0.3, -0.5]
    """
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (low, high))
    if not numbers or not (-math.inf < low <= 0.0 <= high < math.inf and low < high):
        raise TransformError(
            f"a range goes from a number of at most 0 to one of at least 0, not {low!r} to {high!r}"
        )
    return FixedRange(float(low), float(high))


def percentile(percent: float = 99.9) -> Percentile:
    """All but the largest weights of each group: what is beyond is clipped.

    Args:
      percent: of a group's weights within reach, above 1 and at most 100. At 99.9 a group of 1,000 clips one.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> w = {"w": jnp.arange(1.0, 11.0)[:, None]}
    >>> float(mz.decoded(w, mz.quantize(8, range=percentile(80.0)))["w"].max())
    8.0
    """
    number = isinstance(percent, int | float) and not isinstance(percent, bool)
    if not number or not 1.0 < percent <= 100.0:
        share = f": {100.0 * percent:g} for a share of {percent:g}" if number and 0.0 < percent <= 1.0 else ""
        raise TransformError(f"a percentile is above 1 and at most 100, not {percent!r}{share}")
    return Percentile(float(percent))
