"""Sums of what shares an index, in the same order every time.

A scatter adds floats in the order of the index on a CPU. On a GPU it adds them as threads come by, and a
second fit of the same weights would differ in the last bit from the first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from modelzip_jax.sharing.prefix import between, prefix_sums

__all__ = ["matmul", "segment_sums"]

_FEW = 256
_ROWS = 4096


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
        return (_multiplied if count <= _FEW else _sorted)(index, values, count)

    return jax.lax.platform_dependent(index, values, cpu=scattered, default=ordered)


def _multiplied(index: jax.Array, values: jax.Array, count: int) -> jax.Array:
    """By products with the 0/1 matrix of membership, some rows at a time."""
    fill = -len(index) % _ROWS
    rows = jnp.pad(index, (0, fill)).reshape(-1, _ROWS)
    parts = jnp.pad(values, ((0, fill), (0, 0))).reshape(-1, _ROWS, values.shape[1])

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        member = jax.nn.one_hot(part[0], count, dtype=values.dtype, axis=0)
        return total + matmul(member, part[1]), None

    return jax.lax.scan(add, jnp.zeros((count, values.shape[1]), values.dtype), (rows, parts))[0]


def _sorted(index: jax.Array, values: jax.Array, count: int) -> jax.Array:
    """By differences of the running sums of the values in the order of their index."""
    order = jnp.argsort(index)
    edges = jnp.searchsorted(index[order], jnp.arange(count + 1, dtype=index.dtype)).astype(jnp.int32)
    high, low = prefix_sums(values[order].T)
    return jax.vmap(lambda h, s: between((h, s), edges))(high, low).T
