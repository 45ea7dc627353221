"""Grids whose levels are made of a leaf's weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from modelzip_jax.quantization.grids.grid import Grid
from modelzip_jax.recipe import recordable
from modelzip_jax.sharing.lloyd import kmeans

__all__ = ["Quantile", "WeightedEntropy", "quantile", "weighted_entropy"]

_BINS = 2048
_SWEEPS = 16


@recordable
@dataclasses.dataclass(frozen=True)
class Quantile(Grid):
    """See `quantile`."""

    follows_weights = True

    def fitted(self, u: jax.Array, importance: jax.Array | None, bits: int) -> jax.Array:
        if not u.size:
            return _spaced(bits)
        return kmeans(u, 1 << bits, weights=importance, init="density", iterations=0).centroids.astype(
            jnp.float32
        )


@recordable
@dataclasses.dataclass(frozen=True)
class WeightedEntropy(Grid):
    """See `weighted_entropy`."""

    follows_weights = True

    def fitted(self, u: jax.Array, importance: jax.Array | None, bits: int) -> jax.Array:
        if not u.size:
            return _spaced(bits)
        return _weighted_levels(u, jnp.square(u) if importance is None else importance, 1 << bits)


def quantile() -> Quantile:
    """As many weights a level: 2^b quantiles of the leaf's weights, in units of their groups' scales.

    With `importance` (of `mz.compress` and `mz.wrap`), as much importance a level.

    Dettmers et al. 2022, arXiv:2110.02861, section 2.1.

    >>> import modelzip_jax as mz
    >>> w = {"w": jnp.linspace(0.0, 1.0, 101)[:, None] ** 3}
    >>> [round(float(x), 2) for x in mz.compress(w, mz.quantize(2, grid=quantile())).params["w"].levels]
    [0.0, 0.05, 0.25, 0.68]
    """
    return Quantile()


def weighted_entropy() -> WeightedEntropy:
    """*Weighted discretization*: levels placed by importance and entropy, neither near zero nor far out only.

    Weights are parted into 2^b intervals that maximise the weighted entropy -Σ I_n P_n log P_n, P_n being the share of
    the weights in one and I_n their mean importance; a level is the mean of an interval's weights by importance, as
    in k-means. Importance is that of the context, `mz.compress(..., importance=)`, or else the weight's square.

    Park et al. 2017, CVPR, "Weighted-entropy-based quantization for deep neural networks", eq. 1-3.

    >>> import modelzip_jax as mz
    >>> w = {"w": jnp.linspace(-1.0, 1.0, 101)[:, None]}
    >>> mz.compress(w, mz.quantize(2, grid=weighted_entropy())).params["w"].levels.shape
    (4,)
    """
    return WeightedEntropy()


def _spaced(bits: int) -> jax.Array:
    return jnp.linspace(-1.0, 1.0, 1 << bits, dtype=jnp.float32)


def _weighted_levels(u: jax.Array, importance: jax.Array, k: int) -> jax.Array:
    """Levels `(k,)` by coordinate ascent on the inner boundaries of k intervals, over a histogram of [-1, 1]."""
    u, importance = u.reshape(-1).astype(jnp.float32), importance.reshape(-1).astype(jnp.float32)
    place = jnp.clip(((u + 1.0) * (_BINS / 2)).astype(jnp.int32), 0, _BINS - 1)
    held = jnp.stack([jnp.ones_like(u), importance, importance * u], axis=1)
    sums = jnp.zeros((_BINS, 3)).at[place].add(held)
    below = jnp.concatenate([jnp.zeros((1, 3)), jnp.cumsum(sums, axis=0)])
    count, mass = below[:, 0] / u.size, below[:, 1]

    def gain(share: jax.Array, importance: jax.Array) -> jax.Array:
        return -importance * jnp.log(jnp.maximum(share, 1e-12))

    def move(edges: jax.Array, n: jax.Array) -> tuple[jax.Array, None]:
        left, right = edges[n - 1], edges[n + 1]
        value = gain(count - count[left], mass - mass[left]) + gain(count[right] - count, mass[right] - mass)
        inside = (jnp.arange(_BINS + 1) >= left) & (jnp.arange(_BINS + 1) <= right)
        return edges.at[n].set(jnp.argmax(jnp.where(inside, value, -jnp.inf)).astype(edges.dtype)), None

    # At first as much importance an interval.
    aims = jnp.linspace(0.0, 1.0, k + 1) * mass[-1]
    edges = jnp.searchsorted(mass, aims).astype(jnp.int32).at[0].set(0).at[k].set(_BINS)
    order = jnp.tile(jnp.arange(1, k), _SWEEPS)
    edges, _ = jax.lax.scan(move, edges, order)
    total = jnp.diff(below[edges, 1])
    middle = (edges[1:] + edges[:-1]) / _BINS - 1.0
    mean = jnp.where(total > 0, jnp.diff(below[edges, 2]) / jnp.where(total > 0, total, 1.0), middle)
    return jnp.sort(jnp.clip(mean, -1.0, 1.0))
