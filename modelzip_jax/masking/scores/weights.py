"""Scores of the weights alone."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.masking.scores.score import NOTHING, Score
from modelzip_jax.meshes import spec_of, under_any_mesh
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Context
from modelzip_jax.tree import PyTree

__all__ = ["Magnitude", "Outlier", "Random", "magnitude", "outlier", "random"]


@recordable
@dataclasses.dataclass(frozen=True)
class Magnitude(Score):
    """See `magnitude`."""

    power: int = 1

    def pointwise(self) -> Callable[[jax.Array], jax.Array]:
        return jnp.abs if self.power == 1 else jnp.square

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        return jax.tree.map(self.pointwise(), weights)


def magnitude(power: int = 1) -> Magnitude:
    """|w|: the smallest weights go first (Han et al. 2015; Zhu & Gupta 2017).

    Args:
      power: 1 or 2. It matters for structures, which average scores: L1 (Li et al. 2017, arXiv:1608.08710) or
        L2 norms of filters.

    >>> magnitude()({"w": jnp.array([-2.0, 1.0])})
    {'w': Array([2., 1.], dtype=float32)}
    """
    if power not in (1, 2):
        raise TransformError(f"power must be 1 or 2, not {power!r}")
    return Magnitude(power)


@recordable
@dataclasses.dataclass(frozen=True)
class Random(Score):
    """See `random`."""

    seed: int
    renewed: bool = False

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        turn = jnp.asarray(context.step if self.renewed else 0, jnp.uint32)

        def draw(name: str, w: jax.Array) -> jax.Array:
            # By name, so that a leaf's scores do not depend on what else is pruned.
            start = zlib.crc32(f"{self.seed}/{name}".encode())
            return _shuffled(w, _mixed(turn + jnp.uint32(start)))

        return trees.map_named(draw, weights)


def random(seed: int = 0, renewed: bool = False) -> Random:
    """Random scores: the baseline that every criterion has to beat.

    Made by a hash of each weight's place, which costs less than a random number and is the same on every device and
    mesh. The hash is "lowbias32" (Wellons 2018).

    Args:
      renewed: drawn anew at each refresh, as SET grows; otherwise always the same, so that masks stay.

    >>> random()({"w": jnp.zeros(2)})["w"].shape
    (2,)
    """
    return Random(seed, renewed)


def _mixed(x: jax.Array) -> jax.Array:
    """A hash of uint32, one to one."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _shuffled(like: jax.Array, key: jax.Array) -> jax.Array:
    """Positive floats in random order; seldom are two equal. Of the shape and the sharding of an array."""
    place = jnp.zeros_like(like, jnp.uint32)
    for axis, length in enumerate(place.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, place.shape, axis)
    # Bits of positive floats are in their order; these are of 2^-63 to 2^65, whose sums over a group are finite.
    bits = jnp.uint32(0x20000000) + (_mixed(_mixed(place) ^ key) >> 2)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


@recordable
@dataclasses.dataclass(frozen=True)
class Outlier(Score):
    """See `outlier`."""

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        return jax.tree.map(lambda w: -under_any_mesh(_mean_distance, (w,), spec_of(w)), weights)


def outlier() -> Outlier:
    """Distance-based pruning as surveys word it: the weight farthest from the others goes first.

    The score of w_i is -(1/n) Σ_j |w_i - w_j|, over the weights of its tensor. Over-large weights are set to
    zero first, the opposite of `magnitude`: of use against outliers that widen a quantizer's range. Exact for
    all pairs in one sort.

    >>> outlier()({"w": jnp.array([0.0, 1.0, 5.0])})["w"]
    Array([-2.       , -1.6666667, -3.       ], dtype=float32)
    """
    return Outlier()


def _mean_distance(w: jax.Array) -> jax.Array:
    """(1/n) Σ_j |w_i - w_j| of each weight, from prefix sums of the sorted weights."""
    if w.size == 0:
        return w
    flat = w.reshape(-1).astype(jnp.float32)
    flat = flat - jnp.mean(flat)  # Distances stay; sums of centred values lose fewer digits.
    order = jnp.argsort(flat)
    ranked = flat[order]
    before = jnp.cumsum(ranked) - ranked
    rank = jnp.arange(w.size, dtype=jnp.float32)
    total = jnp.sum(ranked)
    distances = ranked * (2.0 * rank - w.size) + total - 2.0 * before
    return jnp.zeros_like(flat).at[order].set(distances / w.size).reshape(w.shape)
