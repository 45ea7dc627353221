"""Vector quantization: leaves as blocks of consecutive weights, and k-means of blocks."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from modelzip_jax.sharing.scaling import exponent, largest, scaled, unit
from modelzip_jax.sharing.sums import matmul

__all__ = ["assign_blocks", "count_blocks", "from_blocks", "to_blocks", "vector_kmeans"]

_ROWS = 4096
"""Blocks whose distances to all centroids are in memory at once."""


def count_blocks(shape: tuple[int, ...], block: int) -> int:
    """Blocks of a leaf."""
    return -(-math.prod(shape) // max(block, 1))


def to_blocks(w: Float[jax.Array, "*shape"], block: int, axis: int) -> Float[jax.Array, "blocks block"]:
    """The leaf as `(blocks, block)`: weights that follow each other along `axis`, the last block padded by 0.

    >>> to_blocks(jnp.arange(6.0).reshape(2, 3), 2, axis=0)
    Array([[0., 3.],
           [1., 4.],
           [2., 5.]], dtype=float32)
    """
    flat = (jnp.moveaxis(w, axis, -1) if w.ndim > 1 else w).reshape(-1)
    return jnp.pad(flat, (0, -flat.size % block)).reshape(-1, block)


def from_blocks(blocks: jax.Array, axis: int, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `to_blocks`."""
    flat = blocks.reshape(-1)[: math.prod(shape)]
    if len(shape) < 2:
        return flat.reshape(shape)
    rest = list(shape)
    length = rest.pop(axis % len(shape))
    return jnp.moveaxis(flat.reshape(*rest, length), -1, axis)


def _in_rows(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, -len(x) % _ROWS), (0, 0))).reshape(-1, _ROWS, x.shape[1])


def _nearest(x: jax.Array, w: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Index of the nearest centroid and the weighted squared distance to it, for rows of `(rows, block)`."""
    distance = matmul(w, jnp.square(centroids).T) - 2.0 * matmul(w * x, centroids.T)
    own = jnp.sum(w * jnp.square(x), axis=1)
    return jnp.argmin(distance, axis=1), jnp.maximum(jnp.min(distance, axis=1) + own, 0.0)


def _in_units(
    x: jax.Array, centroids: jax.Array | None, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Blocks, centroids and weights where their products neither overflow nor vanish; the blocks' exponent.

    None of them has a gradient: they choose.
    """
    centroids = x[:0] if centroids is None else centroids.astype(x.dtype)
    w = jnp.ones_like(x) if weights is None else weights.astype(x.dtype)
    x, centroids, w = jax.lax.stop_gradient((x, centroids, w))
    e = unit([x, centroids])
    return scaled(x, -e), scaled(centroids, -e), scaled(w, -exponent(largest([w]))), e


@jax.jit
def assign_blocks(
    x: Float[jax.Array, "n block"],
    centroids: Float[jax.Array, "k block"],
    weights: Float[jax.Array, "n block"] | None = None,
) -> UInt8[jax.Array, " n"]:
    """The nearest centroid of each block.

    Args:
      x: `(n, block)`. centroids: `(k, block)`, k at most 256. weights: importance, as `x`, or None.

    Returns:
      Codes, uint8 `(n,)`.

    >>> assign_blocks(jnp.array([[0.0, 1.0], [5.0, 5.0]]), jnp.array([[4.0, 4.0], [0.0, 0.0]]))
    Array([1, 0], dtype=uint8)
    """
    x, centroids, w, _ = _in_units(x, centroids, weights)
    parts = _in_rows(x), _in_rows(w)
    codes = jax.lax.map(lambda part: _nearest(part[0], part[1], centroids)[0].astype(jnp.uint8), parts)
    return codes.reshape(-1)[: len(x)]


@functools.partial(jax.jit, static_argnums=(1, 3))
def vector_kmeans(
    x: Float[jax.Array, "n block"],
    k: int,
    weights: Float[jax.Array, "n block"] | None = None,
    iterations: int = 20,
    key: jax.Array | None = None,
) -> Float[jax.Array, "k block"]:
    """Centroids of blocks of weights, `(k, block)`, by Lloyd's iteration from randomly drawn blocks.

    A centroid without blocks moves beside one of largest error. Weights (importance of each value, or a 0/1
    mask) count in distances and in means, value by value.

    Args:
      x: `(n, block)` floats, n at least 1. k: centroids. weights: as `x`, or None. iterations: of Lloyd.
      key: of the draw; `jax.random.key(0)` if None.

    Gersho & Gray 1992; of networks Gong et al. 2014, arXiv:1412.6115.

    >>> vector_kmeans(jnp.array([[0.0, 1.0], [0.0, 3.0], [8.0, 8.0]]), 2).sum(axis=0)
    Array([ 8., 10.], dtype=float32)
    """
    x, _, w, e = _in_units(x, None, weights)
    rows = _in_rows(x), _in_rows(w)
    # A stratified draw: one block from each of k stretches, distinct while n is at least k.
    key = jax.random.key(0) if key is None else key
    at = (jnp.arange(k, dtype=jnp.float32) + jax.random.uniform(key, (k,), jnp.float32)) * (len(x) / k)
    start = x[jnp.clip(at.astype(jnp.int32), 0, len(x) - 1)]

    def add(sums: tuple[jax.Array, ...], part: tuple[jax.Array, ...], centroids: jax.Array):  # type: ignore[no-untyped-def]
        x, w = part
        codes, errors = _nearest(x, w, centroids)
        member = jax.nn.one_hot(codes, k, dtype=x.dtype, axis=0)
        mass, first, error = sums
        return (mass + matmul(member, w), first + matmul(member, w * x), error + matmul(member, errors)), None

    def step(_: int, centroids: jax.Array) -> jax.Array:
        zero = jnp.zeros_like(centroids)
        sums = (zero, zero, jnp.zeros(k, x.dtype))
        (mass, first, error), _ = jax.lax.scan(lambda s, p: add(s, p, centroids), sums, rows)
        means = jnp.where(mass > 0, first / jnp.where(mass > 0, mass, 1.0), centroids)
        return _relocate(means, mass, error)

    return scaled(jax.lax.fori_loop(0, iterations, step, start), e)


def _relocate(means: jax.Array, mass: jax.Array, error: jax.Array) -> jax.Array:
    """The i-th centroid without blocks goes beside the one of i-th largest error, if that has any."""
    total = jnp.sum(mass, axis=1)
    empty = total <= 0
    target = jnp.argsort(-error)[jnp.clip(jnp.cumsum(empty) - 1, 0, len(means) - 1)]
    away = jnp.sqrt(error[target] / jnp.where(total[target] > 0, total[target], 1.0))
    move = empty & (error[target] > 0)
    return jnp.where(move[:, None], means[target] + away[:, None], means)
