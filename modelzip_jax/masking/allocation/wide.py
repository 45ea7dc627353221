"""Sums of counts times costs, exact beyond 32 bits: numbers as digits of 16 bits, lowest first.

JAX has 32-bit integers unless told otherwise; FLOPs of a large model need 50 bits and more.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["digits", "fits", "scaled_up", "weighted"]

_DIGITS = 8
_BASE = 1 << 16


def digits(value: int) -> np.ndarray:
    """uint32 `(8,)`, of a number below 2**112: a product with an int32 still fits.

    >>> digits(3 * 65536 + 7)[:3]
    array([7, 3, 0], dtype=uint32)
    """
    if not 0 <= value < 1 << 112:
        raise OverflowError(f"{value} does not fit into 112 bits")
    return np.array([value >> 16 * i & (_BASE - 1) for i in range(_DIGITS)], np.uint32)


def weighted(counts: jax.Array, costs: np.ndarray) -> jax.Array:
    """The sum of counts times costs: uint32 `(8,)`.

    Args:
      counts: int32 `(n,)`, not negative, n below 2**14.
      costs: `digits` of each, `(n, 8)`.

    >>> weighted(jnp.array([2, 3]), np.stack([digits(65535), digits(1)]))[:2]
    Array([1, 2], dtype=uint32)
    """
    counts = counts.astype(jnp.uint32)
    total = jnp.zeros(_DIGITS, jnp.uint32)
    for place, part in enumerate((counts % _BASE, counts // _BASE)):
        product = part[:, None] * costs
        total = total + _shifted(jnp.sum(product % _BASE, axis=0), place)
        total = total + _shifted(jnp.sum(product // _BASE, axis=0), place + 1)
    return _carried(total)


def scaled_up(least: np.ndarray, more: np.ndarray, share: jax.Array) -> jax.Array:
    """`least + more * share`, rounded down to 2**-16 of `more`; both are `digits`, share float32 in [0, 1]."""
    part = jnp.round(share * _BASE).astype(jnp.uint32)  # at most 2**16: times a digit still below 2**32
    # One digit is dropped after the carries: a division by 2**16.
    product = more * part
    wide = jnp.concatenate([product % _BASE, jnp.zeros(1, jnp.uint32)])
    wide = wide.at[1:].add(product // _BASE)
    return _carried(_carried(wide)[1:] + least)


def fits(total: jax.Array, limit: jax.Array) -> jax.Array:
    """Whether the first number is at most the second: a boolean scalar."""
    found = jnp.bool_(True)
    for a, b in zip(total, limit, strict=True):  # the highest digit that differs decides
        found = jnp.where(a == b, found, a < b)
    return found


def _shifted(x: jax.Array, places: int) -> jax.Array:
    return jnp.pad(x, (places, 0))[:_DIGITS]


def _carried(x: jax.Array) -> jax.Array:
    carry, found = jnp.uint32(0), []
    for digit in x:
        digit = digit + carry
        found.append(digit % _BASE)
        carry = digit // _BASE
    return jnp.stack(found)
