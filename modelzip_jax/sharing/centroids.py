"""Where the centroids of a one-dimensional k-means start."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from modelzip_jax.sharing.density import Density

__all__ = ["INITS", "initial"]

INITS = ("companding", "density", "linear", "k-means++")


def initial(density: Density, k: int, init: str, key: jax.Array) -> jax.Array:
    """k centroids in ascending order, `(k,)`, by one of `INITS`; see `kmeans`."""
    if init == "k-means++":
        return _plus_plus(density, k, key)
    if init == "linear":
        return _linear(density, k)
    measure = density.mass if init == "density" else _companded(density)
    cumulative = jnp.cumsum(measure)
    ranks = (jnp.arange(k, dtype=cumulative.dtype) + 0.5) / k * cumulative[-1]
    at = jnp.clip(jnp.searchsorted(cumulative, ranks), 0, cumulative.size - 1)
    return density.points[at]


def _linear(density: Density, k: int) -> jax.Array:
    """Evenly from the smallest to the largest point that has any mass."""
    low, high = density.range()
    return jnp.linspace(low, high, k, dtype=low.dtype)


def _companded(density: Density) -> jax.Array:
    """The optimal density of many centroids is the cube root of the points' (Panter & Dite 1951, eq. 13).

    A point of mass m that has the interval d for itself has the density m / d, and d (m / d)^(1/3) of it.
    """
    p = density.points
    gaps = jnp.diff(p, prepend=p[:1], append=p[-1:])
    width = 0.5 * (gaps[1:] + gaps[:-1])
    return jnp.cbrt(density.mass) * jnp.square(jnp.cbrt(width))  # The square of the width may be 0.


def _plus_plus(density: Density, k: int, key: jax.Array) -> jax.Array:
    """Each next centroid with probability mass × distance² to those before (Arthur & Vassilvitskii 2007)."""

    def pick(nearest: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.log(density.mass) + 2.0 * jnp.log(nearest)
        # Once every point is a centroid all logits are -inf: any point will do, the heaviest then.
        logits = jnp.where(jnp.any(jnp.isfinite(logits)), logits, jnp.log(density.mass))
        chosen = density.points[jax.random.categorical(key, logits)]
        return jnp.minimum(nearest, jnp.abs(density.points - chosen)), chosen

    start = jnp.ones_like(density.points)
    first, chosen = pick(start, jax.random.fold_in(key, k))
    nearest = jnp.abs(density.points - chosen) + 0.0 * first
    _, others = jax.lax.scan(pick, nearest, jax.random.split(key, max(k - 1, 1)))
    return jnp.sort(jnp.append(others[: k - 1], chosen))
