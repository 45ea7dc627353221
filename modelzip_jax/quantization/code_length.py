"""A differentiable estimate of how many bits an entropy coder takes for rounded numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from modelzip_jax.meshes import place_of_each, take_each

__all__ = ["laplace_bits", "level_bits"]


def laplace_bits(u: jax.Array) -> jax.Array:
    """Code length in bits of round(u), had u a Laplace density of scale mean |u|.

    -log2 of the density's integral over [u - 1/2, u + 1/2], in closed form on either side of 1/2.
    """
    size = jnp.abs(u)
    scale = jnp.maximum(jnp.mean(size) if u.size else jnp.ones(()), 1e-2)
    half = 0.5 / scale
    log_sinh = half + jnp.log(-jnp.expm1(-2.0 * half)) - jnp.log(2.0)
    near = jnp.minimum(size, 0.5) / scale
    inner = -jnp.log(jnp.maximum(1.0 - 0.5 * (jnp.exp(near - half) + jnp.exp(-near - half)), 1e-6))
    return jnp.where(size > 0.5, size / scale - log_sinh, inner) / jnp.log(2.0)


def level_bits(u: jax.Array, levels: jax.Array) -> jax.Array:
    """Code length in bits of the level nearest to u, had u a Laplace density of scale mean |u|.

    -log2 of the density at u times the width of the level's cell, no less than 0 and no more than log2 of the number
    of levels and a half: an entropy coder is never much worse than codes of fixed length.

    Args:
      u: weights in units of their scales. levels: `(k,)`, ascending.
    """
    scale = jnp.maximum(jnp.mean(jnp.abs(u)) if u.size else jnp.ones(()), 1e-6)
    middle = levels[:-1] * 0.5 + levels[1:] * 0.5
    ends = 2.0 * (middle[:1] - levels[:1]), 2.0 * (levels[-1:] - middle[-1:])
    widths = jnp.maximum(jnp.concatenate([ends[0], jnp.diff(middle), ends[1]]), 1e-6)
    width = take_each(widths, place_of_each(middle, jax.lax.stop_gradient(u)))
    length = (jnp.abs(u) / scale + jnp.log(2.0 * scale / width)) / jnp.log(2.0)
    return jnp.clip(length, 0.02, jnp.log2(levels.size) + 0.5)
