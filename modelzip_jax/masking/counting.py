"""Counting exactly: how many weights stay, keys in the order of scores, and how many of them are true."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num, UInt32

__all__ = ["DIGITS", "TOP", "count_kept", "order_keys", "totals"]

TOP = 0xFFFFFFFF
"""The largest key."""
DIGITS = 10_000_000
"""A sparsity is read to a part in this many."""


def count_kept(size: int | np.ndarray, sparsity: jax.Array | float) -> jax.Array:
    """How many of `size` weights stay: `size - round(sparsity * size)`, counted in integers.

    The sparsity is read to seven decimals, so that a float32 0.9 means nine tenths of 50 million
    to the last weight; half a weight rounds towards pruning. One stays at least, unless the sparsity is 1: a
    leaf with a sparsity of its own never goes as a whole. Under one threshold for all leaves one of them may.

    Args:
      size: number of weights, below 2**31, or several.
      sparsity: in [0, 1], may be traced.

    Returns:
      int32 of the shape that the two give together.

    >>> int(count_kept(50_000_000, jnp.float32(0.9)))
    5000000
    """
    parts = jnp.round(jnp.asarray(sparsity, jnp.float32) * DIGITS).astype(jnp.uint32)
    whole, rest = (jnp.asarray(x, jnp.uint32) for x in np.divmod(size, DIGITS))
    quotient, remainder = jnp.uint32(0), jnp.uint32(0)
    for place in (1_000_000, 10_000, 100, 1):
        digit = parts // place % 100
        carried = remainder * 100 + rest * digit
        quotient, remainder = quotient * 100 + carried // DIGITS, carried % DIGITS
    pruned = whole * parts + quotient + (remainder >= DIGITS // 2).astype(jnp.uint32)
    kept = jnp.asarray(size, jnp.int32) - pruned.astype(jnp.int32)
    least = (parts < DIGITS) & (jnp.asarray(size, jnp.int32) > 0)
    return jnp.maximum(kept, least.astype(jnp.int32))


def order_keys(scores: Num[jax.Array, "*shape"]) -> UInt32[jax.Array, "*shape"]:
    """uint32 keys in the order of the scores as float32; -0.0 and 0.0 are equal, NaN is largest.

    >>> order_keys(jnp.array([1.0, -1.0, 0.0])).argsort()
    Array([1, 2, 0], dtype=int32)
    """
    scores = scores.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
    # Compared as bits: devices that flush subnormals would take them all for zeros.
    bits = jnp.where(bits == jnp.uint32(1 << 31), jnp.uint32(0), bits)
    keys = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    return jnp.where(jnp.isnan(scores), jnp.uint32(TOP - 1), keys)


def totals(flags: list[jax.Array]) -> list[jax.Array]:
    """The numbers of true flags, int32 `(k,)`, exact, in several arrays `(k, *shape)`.

    By one reduction of several operands, which XLA:CPU vectorizes: it does not vectorize an integer sum alone, so that
    three counts cost a fourth of one. Of sharded arrays it would gather every operand's part sums one by one,
    where a sum alone is one all-reduce.

    >>> totals([jnp.array([[True, False], [True, True]])])
    [Array([1, 2], dtype=int32)]
    """
    if jax.device_count() > 1:
        return [_total(x) for x in flags]
    if len(flags) == 1:
        # Alone, they would be written out as numbers for a library's sum; the others keep XLA from that.
        size = math.prod(flags[0].shape[1:])
        yes, no = totals([flags[0], ~flags[0]])
        return [jnp.maximum(yes, size - no)]
    numbers, zeros = [x.astype(jnp.int32) for x in flags], [jnp.int32(0)] * len(flags)
    return jax.lax.reduce(
        numbers, zeros, lambda a, b: jax.tree.map(jnp.add, a, b), tuple(range(1, flags[0].ndim))
    )


def _total(flags: jax.Array) -> jax.Array:
    """XLA:CPU vectorizes float sums but not integer ones (half the time), and float32 counts are exact
    below 2**24: so leading axes are summed in float where they are shorter, the rest in integers.
    """
    axes = tuple(range(1, flags.ndim))
    if math.prod(flags.shape[1:]) < 1 << 24:
        return jnp.sum(flags, axis=axes, dtype=jnp.float32).astype(jnp.int32)
    if len(axes) < 2 or math.prod(flags.shape[1:-1]) >= 1 << 24:
        return jnp.sum(flags, axis=axes, dtype=jnp.int32)
    columns = jnp.sum(flags, axis=axes[:-1], dtype=jnp.float32)
    return jnp.sum(columns.astype(jnp.int32), axis=-1, dtype=jnp.int32)
