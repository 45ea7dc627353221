"""Which groups of weights stay when their cost together is bounded: one threshold over score ÷ cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.masking.allocation.wide import digits, fits, scaled_up, weighted
from modelzip_jax.masking.counting import order_keys
from modelzip_jax.masking.threshold import keep_largest, keep_largest_each

__all__ = ["within"]

_HIGHEST = 0xFFFFFFFF


def within(
    arrays: list[jax.Array],
    progress: jax.Array,
    *,
    score: Callable[[jax.Array], jax.Array],
    costs: tuple[int, ...],
    limit: int,
) -> list[jax.Array]:
    """Masks of the elements that stay, so that `limit` is never exceeded.

    Elements are kept by score ÷ cost (times cost where the score is negative, so that what is dear always ranks
    lower), equal ones in order of array, then C-order index; NaN ranks highest. What the threshold leaves of the
    limit goes to the next best elements of each array, dearest arrays first, until none fits. Elements that cost
    nothing stay.

    Args:
      arrays: float arrays of any shapes, one a leaf; fewer than 2**31 elements each.
      progress: float32 scalar in [0, 1]: at 0 everything stays, at 1 the limit holds; linear in between.
      score: a pointwise function of an array.
      costs: of an element of each array; integers of 0 or more.
      limit: what all kept elements may cost together.
    """
    total = sum(x.size * c for x, c in zip(arrays, costs, strict=True))
    if total <= limit:
        return [jnp.ones(x.shape, bool) for x in arrays]
    if len(set(costs)) == 1 and total // costs[0] < 1 << 31:
        size, least = total // costs[0], limit // costs[0]
        return _largest(arrays, least, size - least, progress, score)
    bound = scaled_up(digits(limit), digits(total - limit), 1.0 - progress)
    return _dearest(arrays, bound, score, costs)


@functools.partial(jax.jit, static_argnames="score")
def _largest(
    arrays: list[jax.Array],
    least: int,
    more: int,
    progress: jax.Array,
    score: Callable[[jax.Array], jax.Array],
) -> list[jax.Array]:
    """The best `least` of all arrays together, and before the end of the way a share of `more`."""
    rest = jnp.float32(more) * (1.0 - progress)
    rest = jnp.where(progress > 0.0, jnp.minimum(rest.astype(jnp.int32), more), more)
    return keep_largest(arrays, least + rest, score)[0]


@functools.partial(jax.jit, static_argnames=("score", "costs"))
def _dearest(
    arrays: list[jax.Array],
    bound: jax.Array,
    score: Callable[[jax.Array], jax.Array],
    costs: tuple[int, ...],
) -> list[jax.Array]:
    """The best by score ÷ cost that the bound, in digits, can pay."""
    counts = _counts(arrays, bound, score, costs)
    return keep_largest_each([[x] for x in arrays], counts, score).masks


def _counts(
    arrays: list[jax.Array],
    bound: jax.Array,
    score: Callable[[jax.Array], jax.Array],
    costs: tuple[int, ...],
) -> jax.Array:
    """How many of each array stay: int32 `(len(arrays),)`."""
    cost_digits = np.stack([digits(c) for c in costs])
    sizes = np.array([x.size for x in arrays], np.int32)
    mean = float(np.mean([float(c) for c in costs if c]))

    def affordable(counts: jax.Array) -> jax.Array:
        return fits(weighted(counts, cost_digits), bound)

    def above(threshold: jax.Array) -> jax.Array:
        found = [
            jnp.sum(_rank(score(x), c / mean) >= threshold, dtype=jnp.int32) if c else jnp.int32(x.size)
            for x, c in zip(arrays, costs, strict=True)
        ]
        return jnp.stack(found)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = low + (high - low) // 2
        enough = affordable(above(middle))
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # All together cost too much, and no rank reaches the highest threshold.
    _, threshold = jax.lax.fori_loop(0, 32, halve, (jnp.uint32(0), jnp.uint32(_HIGHEST)))
    counts = above(threshold)
    counts = _filled(counts, above(threshold - 1), range(len(costs)), affordable)
    dearest = sorted(range(len(costs)), key=lambda i: -costs[i])
    return _filled(counts, jnp.asarray(sizes), dearest, affordable)


def _rank(scores: jax.Array, cost: float) -> jax.Array:
    return order_keys(jnp.where(scores < 0, scores * cost, scores / cost))


def _filled(
    counts: jax.Array, most: jax.Array, order: Sequence[int], affordable: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The counts, each in turn raised as far as can be paid, to at most `most`."""

    def fill(counts: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bracket
            middle = high - (high - low) // 2
            enough = affordable(counts.at[i].set(middle))
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

        start = counts[i], jnp.maximum(counts[i], most[i])
        best, _ = jax.lax.fori_loop(0, 31, halve, start)
        return counts.at[i].set(best), None

    return jax.lax.scan(fill, counts, jnp.asarray(order, jnp.int32))[0]
