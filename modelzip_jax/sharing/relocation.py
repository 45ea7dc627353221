"""Where centroids go that no weight is nearest to."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

__all__ = ["relocate"]


def relocate(
    means: jax.Array,
    mass: jax.Array,
    errors: jax.Array,
    fixed: jax.Array,
    bounds: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Centroids without points divide the intervals of largest error with the centroids there.

    The parts of an interval in n leave about 1 / n² of its error; each empty centroid in turn goes where
    that gains most. The parts are laid out as if the interval's points were spread evenly, and within the bounds.

    Args:
      means, mass, errors: of each centroid's points, `(k,)`: mean, mass and squared error.
      fixed: bool `(k,)`, centroids that stay. bounds: the smallest and the largest point.
    """
    empty = (mass <= 0) & ~fixed
    ranks = jnp.where(empty, jnp.cumsum(empty) - 1, empty.size)
    empties = (
        jnp.zeros(empty.shape, jnp.int32).at[ranks].set(jnp.arange(empty.size, dtype=jnp.int32), mode="drop")
    )

    def place(i: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        parts, target, order = found
        n = parts.astype(errors.dtype)
        gain = errors / jnp.square(n) - errors / jnp.square(n + 1.0)
        best = jnp.argmax(gain)
        slot = empties[i]
        return parts.at[best].add(1), target.at[slot].set(best), order.at[slot].set(parts[best] - 1)

    own = jnp.arange(means.size)
    start = (jnp.ones(means.size, jnp.int32), own, jnp.full(means.size, -1, jnp.int32))
    parts, target, order = jax.lax.fori_loop(0, jnp.sum(empty), place, start)
    size = parts[target]
    order = jnp.where(order < 0, size - 1, order)  # The interval's own centroid takes the last part.
    deviation = jnp.sqrt(errors[target] / jnp.where(mass[target] > 0, mass[target], 1.0))
    # Beside a centroid that stays, in the middle, a quarter lower: none may come to be where it is.
    within = 2.0 * order.astype(means.dtype) + jnp.where(fixed[target], 0.5, 1.0)
    offset = within / size.astype(means.dtype) - 1.0
    moved = jnp.clip(means[target] + math.sqrt(3.0) * deviation * offset, *bounds)
    return jnp.where(fixed | (size == 1) | (deviation == 0), means, moved)
