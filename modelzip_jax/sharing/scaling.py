"""Powers of two that bring weights of any scale to where squares neither overflow nor vanish.

Multiplying by a power of two rounds nothing, so that what is computed in such units is what would be computed at
scale 1. Float32 squares numbers from 2**-63 to 2**63. The largest magnitude comes just below 2**`TOP`: a billion
squares of it can be summed, and weights 1e31 times smaller, beside an outlier, still have squares. What XLA flushes
to zero, the numbers below 2**-126, counts as zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

__all__ = ["TOP", "exponent", "largest", "power", "root_mean_square", "scaled", "unit"]

TOP = 40


def largest(arrays: Sequence[jax.Array]) -> jax.Array:
    """The largest magnitude in the arrays, a scalar; 0 of none."""
    tops = [jnp.max(jnp.abs(x), initial=0.0) for x in arrays]
    return jnp.max(jnp.stack(tops)) if tops else jnp.float32(0.0)


def exponent(top: jax.Array) -> jax.Array:
    """The e of 2**(e - 1) <= top < 2**e, int32; 0 of 0.

    >>> exponent(jnp.array([0.5, 1.0, 3.0, 0.0]))
    Array([0, 1, 2, 0], dtype=int32)
    """
    return jnp.where(top > 0, jnp.frexp(top)[1], 0).astype(jnp.int32)


def power(e: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """2**e exactly, by the bits of a normal float; what is beyond those becomes the nearest.

    >>> power(jnp.int32(-126), jnp.float32) == 2.0**-126
    Array(True, dtype=bool)
    """
    info = jnp.finfo(dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    bits = (jnp.clip(e, info.minexp, info.maxexp - 1) - (info.minexp - 1)).astype(integer) << info.nmant
    return jax.lax.bitcast_convert_type(bits, dtype)


def scaled(x: jax.Array, e: jax.Array) -> jax.Array:
    """x 2**e, in two products: for subnormal and for huge `x`, 2**e is no float."""
    half = e // 2
    return x * power(half, x.dtype) * power(e - half, x.dtype)


def unit(arrays: Sequence[jax.Array]) -> jax.Array:
    """The exponent of the unit in which the largest of the arrays is just below 2**`TOP`, int32."""
    return exponent(largest(arrays)) - TOP


def root_mean_square(x: jax.Array) -> jax.Array:
    """Of all elements, at any scale.

    >>> root_mean_square(jnp.full(3, 2.0**-100)) == 2.0**-100
    Array(True, dtype=bool)
    """
    e = unit([x])
    return scaled(jnp.sqrt(jnp.mean(jnp.square(scaled(x, -e)))), e)
