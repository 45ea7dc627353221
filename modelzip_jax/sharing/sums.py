"""Sums of what shares an index, in the same order every time.

A scatter adds floats in the order of the index on a CPU. On a GPU it adds them as threads come by, and a
second fit of the same weights would differ in the last bit from the first.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from modelzip_jax.sharing.prefix import between, prefix_sums

__all__ = ["matmul", "segment_sums", "summed_at"]

_FEW = 256
_GROUP = 16
_PLACES = 1 << 21


def matmul(
    a: Float[jax.Array, "rows inner"], b: Float[jax.Array, "inner columns"]
) -> Float[jax.Array, "rows columns"]:
    """The product in full precision, on TPUs, too, and not in TF32."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def segment_sums(
    index: Integer[jax.Array, " n"], values: Float[jax.Array, "n columns"], count: int
) -> Float[jax.Array, "count columns"]:
    """The sum of the values at each index: `(count, columns)`.

    Args:
      index: integers from 0 to `count` - 1, `(n,)`. values: floats `(n, columns)`.

    >>> segment_sums(jnp.array([1, 0, 1]), jnp.array([[1.0], [2.0], [4.0]]), 3)
    Array([[2.],
           [5.],
           [0.]], dtype=float32)
    """

    def scattered(index: jax.Array, values: jax.Array) -> jax.Array:
        start = jnp.zeros((count, values.shape[1]), values.dtype)
        return start.at[index].add(values, mode="promise_in_bounds")

    def ordered(index: jax.Array, values: jax.Array) -> jax.Array:
        return (_compared if count <= _FEW else _sorted)(index, values, count)

    return jax.lax.platform_dependent(index, values, cpu=scattered, default=ordered)


def summed_at(index: Integer[jax.Array, ...], values: jax.Array, count: int) -> jax.Array:
    """What `segment_sums` gives, in the least time: on a GPU in no fixed order beyond 16 numbers.

    80 million float32 on an H200: 0.45 ms for 16 numbers and 1.1 ms for 256, where one scatter takes 21 and 10 ms,
    and 115 ms where four of five weights share an entry.

    Args:
      index: integers from 0 to `count` - 1, of any shape. values: numbers of that shape, or with axes behind it.

    Returns:
      `(count, ...)`, with the axes behind, of the values' dtype.

    >>> summed_at(jnp.array([[1, 0], [1, 1]]), jnp.ones((2, 2), jnp.int32), 2)
    Array([1, 3], dtype=int32)
    """

    def scattered(index: jax.Array, values: jax.Array) -> jax.Array:
        start = jnp.zeros((count, *values.shape[index.ndim :]), values.dtype)
        # XLA:CPU scatters by bytes in up to twice the time; two halves, or lanes, side by side gain nothing.
        return start.at[index.astype(jnp.int32)].add(values, mode="promise_in_bounds")

    def apart(index: jax.Array, values: jax.Array) -> jax.Array:
        return (_compared if count <= _GROUP else _in_lanes)(index, values, count)

    return jax.lax.platform_dependent(index, values, cpu=scattered, default=apart)


@functools.partial(jax.jit, static_argnums=2)
def _compared(index: jax.Array, values: jax.Array, count: int) -> jax.Array:
    """One sum for each number, of the values at it; XLA reads them once for all of a group's."""

    def one(number: jax.Array) -> jax.Array:
        at = (index == number).reshape(index.shape + (1,) * (values.ndim - index.ndim))
        return jnp.sum(jnp.where(at, values, jnp.zeros((), values.dtype)), axis=tuple(range(index.ndim)))

    def of_group(numbers: jax.Array) -> jax.Array:
        return jnp.stack([one(number) for number in numbers])

    group = min(_GROUP, count)
    numbers = jnp.arange(count + -count % group, dtype=index.dtype).reshape(-1, group)
    sums = of_group(numbers[0])[None] if len(numbers) == 1 else jax.lax.map(of_group, numbers)
    return sums.reshape(-1, *values.shape[index.ndim :])[:count]


@functools.partial(jax.jit, static_argnums=2)
def _in_lanes(index: jax.Array, values: jax.Array, count: int) -> jax.Array:
    """By a scatter to many places for each index, so that few threads wait for one another."""
    index, values = index.reshape(-1), values.reshape(index.size, *values.shape[index.ndim :])
    lanes = max(_PLACES // (count * math.prod(values.shape[1:])), 1)
    at = index.astype(jnp.int32) * lanes + jax.lax.iota(jnp.int32, index.size) % lanes
    places = jnp.zeros((count * lanes, *values.shape[1:]), values.dtype)
    places = places.at[at].add(values, mode="promise_in_bounds")
    return places.reshape(count, lanes, *values.shape[1:]).sum(axis=1)


def _sorted(index: jax.Array, values: jax.Array, count: int) -> jax.Array:
    """By differences of the running sums of the values in the order of their index."""
    order = jnp.argsort(index)
    edges = jnp.searchsorted(index[order], jnp.arange(count + 1, dtype=index.dtype)).astype(jnp.int32)
    high, low = prefix_sums(values[order].T)
    return jax.vmap(lambda h, s: between((h, s), edges))(high, low).T
