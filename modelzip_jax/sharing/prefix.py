"""Running sums of many floats, kept to twice a float's digits, and sums over intervals from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["TwoFloats", "between", "halves_outward", "outward_sums", "prefix_sums"]

TwoFloats = tuple[jax.Array, jax.Array]
"""A number as the sum of a high and a low float."""


def prefix_sums(x: jax.Array) -> TwoFloats:
    """Sums of the first 0, 1, …, n values of each row of `(rows, n)`: pairs `(rows, n + 1)`.

    In blocks of about the square root of n, all of them at once: 512 short steps for a histogram.
    """
    rows, n = x.shape
    block = 1 << (max(n - 1, 1).bit_length() + 1) // 2
    blocks = jnp.pad(x, ((0, 0), (0, -n % block))).reshape(rows, -1, block)
    within = _running((jnp.moveaxis(blocks, 2, 0), jnp.zeros((block, *blocks.shape[:2]), x.dtype)))
    totals = _running((within[0][-1].T, within[1][-1].T))
    before = tuple(jnp.pad(t, ((1, 0), (0, 0)))[None, :-1].mT for t in totals)
    sums = _add(within, before)
    flat = (jnp.moveaxis(s, 0, 2).reshape(rows, -1)[:, :n] for s in sums)
    high, low = (jnp.pad(s, ((0, 0), (1, 0))) for s in flat)
    return high, low


def outward_sums(x: jax.Array, below: jax.Array) -> TwoFloats:
    """Running sums from the middle of each row outward, less what is between: pairs `(rows, n + 1)`.

    Differences of them are those of prefix sums. But a sum has only met values that are no further out, so that
    an outlier takes no digits from the sums of the others, whichever end it is at.

    Args:
      x: `(rows, n)`. below: bool `(n,)`, True up to the middle, False from there on.
    """
    left = jnp.where(below[None], x, 0.0)
    high, low = prefix_sums(jnp.concatenate([x - left, left[:, ::-1]]))
    high, low = (s[: len(x)] - s[len(x) :, ::-1] for s in (high, low))  # One of the two is 0.
    return high, low


def halves_outward(x: jax.Array) -> TwoFloats:
    """`outward_sums` from between the halves of rows of even length, in half the time."""
    middle = x.shape[1] // 2
    high, low = prefix_sums(jnp.concatenate([x[:, middle:], x[:, :middle][:, ::-1]]))
    high, low = (jnp.concatenate([-s[len(x) :, :0:-1], s[: len(x)]], axis=1) for s in (high, low))
    return high, low


def _running(pairs: TwoFloats) -> TwoFloats:
    """Running sums along the first axis."""

    def add(total: TwoFloats, pair: TwoFloats) -> tuple[TwoFloats, TwoFloats]:
        total = _add(total, pair)
        return total, total

    return jax.lax.scan(add, tuple(jnp.zeros_like(p[0]) for p in pairs), pairs)[1]


def _add(a: TwoFloats, b: TwoFloats) -> TwoFloats:
    """The sum of two pairs (Knuth's two-sum, then renormalised)."""
    total = a[0] + b[0]
    part = total - a[0]
    rest = (a[0] - (total - part)) + (b[0] - part) + (a[1] + b[1])
    high = total + rest
    return high, rest - (high - total)


def between(prefix: TwoFloats, edges: jax.Array) -> jax.Array:
    """Sums over the intervals from each edge to the next: `(edges - 1,)`.

    Args:
      prefix: of one row. edges: ascending indices, int32.
    """
    high, low = prefix[0][edges], prefix[1][edges]
    return jnp.diff(high) + jnp.diff(low)
