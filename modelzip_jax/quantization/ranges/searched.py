"""Ranges that are searched: by the squared error of rounding, or by what it does to the weights' distribution."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from modelzip_jax.given_values import as_whole
from modelzip_jax.quantization.granularity import max_abs
from modelzip_jax.quantization.ranges.range import Fit, Range, limits
from modelzip_jax.recipe import recordable

__all__ = ["Divergence", "LeastSquares", "kl_divergence", "least_squares"]

_BINS = 512
_FIRST = 64


@recordable
@dataclasses.dataclass(frozen=True)
class LeastSquares(Range):
    """See `least_squares`."""

    trials: int = 48

    def choose(self, w: jax.Array, fit: Fit, importance: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        top, bottom = limits(w, fit.groups)
        step, zero = fit.steps(top, bottom)

        def better(
            best: tuple[jax.Array, jax.Array, jax.Array], shrink: jax.Array
        ) -> tuple[tuple[jax.Array, ...], None]:
            trial, place = fit.steps(top * shrink, bottom * shrink)
            off = jnp.square(fit.fake(w, trial, place) - w)
            error = fit.groups.reduce(jnp.sum, off if importance is None else off * importance)
            wins = error < best[2]
            new = (trial, place, error)
            return tuple(jnp.where(wins, a, b) for a, b in zip(new, best, strict=True)), None

        start = (step, zero, jnp.full_like(step, jnp.inf))
        shrinks = jnp.linspace(1.0, 0.25, self.trials, dtype=step.dtype)
        (step, zero, _), _ = jax.lax.scan(better, start, shrinks)
        return step, zero


@recordable
@dataclasses.dataclass(frozen=True)
class Divergence(Range):
    """See `kl_divergence`."""

    def limits(self, w: jax.Array, fit: Fit) -> tuple[jax.Array, jax.Array]:
        top, bottom = limits(w, fit.groups)
        if not w.size:
            return top, bottom
        if fit.symmetric:
            reach = self._reach(jnp.abs(w), fit)
            return reach, reach
        return self._reach(jnp.maximum(w, 0), fit), self._reach(jnp.maximum(-w, 0), fit)

    def _reach(self, size: jax.Array, fit: Fit) -> jax.Array:
        """The limit of least divergence among those at every eighth of 512 bins."""
        largest = fit.groups.reduce(max_abs, size)
        unit = jnp.where(largest > 0, largest, 1.0) / _BINS
        blocks = fit.groups.blocks(size)
        place = jnp.clip((blocks / unit[:, None]).astype(jnp.int32), 0, _BINS - 1)
        counted = (jnp.arange(blocks.shape[1])[None, :] < fit.groups.counts(size.shape)).astype(size.dtype)
        # Zeros say nothing of a range, and a mask or a ReLU makes most of them.
        mass = jnp.broadcast_to(counted[:, :, None], blocks.shape) * (blocks > 0)
        flat = jnp.moveaxis(place, 1, 2).reshape(-1, blocks.shape[1])
        rows = jnp.arange(len(flat))[:, None]
        masses = jnp.moveaxis(mass, 1, 2).reshape(flat.shape)
        counts = jnp.zeros((len(flat), _BINS), size.dtype).at[rows, flat].add(masses)

        def better(best: tuple[jax.Array, jax.Array], last: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
            lost = _divergence(counts, last, max(fit.above, 1))
            wins = lost < best[1]
            return (jnp.where(wins, last, best[0]), jnp.where(wins, lost, best[1])), None

        start = (jnp.full(len(flat), _BINS), jnp.full(len(flat), jnp.inf, size.dtype))
        lasts = jnp.arange(_BINS, _FIRST - 1, -8)
        (last, _), _ = jax.lax.scan(better, start, lasts)
        return (last.reshape(largest.shape) * unit).astype(size.dtype)


def _divergence(counts: jax.Array, last: jax.Array, levels: int) -> jax.Array:
    """KL(P | Q) of each histogram `(rows, bins)` cut at `last`: Q spreads each level's mass over its filled bins."""
    bins = jnp.arange(counts.shape[1])
    inside = bins < last
    cut = jnp.where(inside, counts, 0.0)
    beyond = jnp.sum(jnp.where(inside, 0.0, counts), axis=1, keepdims=True)
    p = cut + jnp.where(bins == last - 1, beyond, 0.0)
    level = jnp.where(inside, bins * levels // last, levels)
    filled = (cut > 0).astype(counts.dtype)
    sums = jnp.zeros((levels + 1, 2, len(counts)), counts.dtype)
    sums = sums.at[level].add(jnp.stack([cut, filled]).transpose(2, 0, 1))
    mean = jnp.where(sums[:, 1] > 0, sums[:, 0] / jnp.maximum(sums[:, 1], 1.0), 0.0)
    q = mean[level].T * filled
    total_p, total_q = jnp.sum(p, 1, keepdims=True), jnp.sum(q, 1, keepdims=True)
    p = p / jnp.maximum(total_p, 1e-30)
    q = jnp.maximum(q / jnp.maximum(total_q, 1e-30), 1e-6)  # Where P has what Q has not, the price is finite.
    return jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30) / q), 0.0), axis=1)


def least_squares(trials: int = 48) -> LeastSquares:
    """The limit of least squared error, weighed by `importance` if there is one: "mse".

    Clips a few outliers for finer steps, where that pays.

    Args:
      trials: how many limits are tried, from covering every weight down to a quarter of that; at least 2.

    Banner et al. 2019, arXiv:1810.05723; Nagel et al. 2021, arXiv:2106.08295, section 3.1.

    >>> least_squares().trials
    48
    """
    return LeastSquares(as_whole(trials, "trials", 2))


def kl_divergence() -> Divergence:
    """The limit at which the rounded magnitudes' distribution diverges least from the weights'.

    Of 512 bins of a group's magnitudes every eighth end is tried as the limit, from 64 on; zeros are left out. Meant
    for tensors and activations: a group of few weights has no distribution.

    Migacz 2017, "8-bit inference with TensorRT"; Nagel et al. 2021, arXiv:2106.08295, section 3.1.

    >>> kl_divergence()
    Divergence()
    """
    return Divergence()
