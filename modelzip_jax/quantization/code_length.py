"""A differentiable estimate of how many bits an entropy coder takes for rounded numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["laplace_bits"]


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
