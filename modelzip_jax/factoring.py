"""The factor of an inverse that optimal brain surgery and error feedback go by."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["damped", "inverse_factor"]


def damped(gram: jax.Array, damping: jax.Array | float) -> jax.Array:
    """H = G + λI, λ being a share of the mean of G's diagonal, or of 1 where inputs were all zero.

    >>> damped(jnp.diag(jnp.array([1.0, 3.0])), 0.5)
    Array([[2., 0.],
           [0., 4.]], dtype=float32)
    """
    mean = jnp.mean(jnp.diagonal(gram))
    return gram + damping * jnp.where(mean > 0, mean, 1.0) * jnp.eye(len(gram), dtype=gram.dtype)


def inverse_factor(h: jax.Array) -> jax.Array:
    """U, upper triangular, with H⁻¹ = UᵀU, of a positive definite matrix; NaN of another.

    Row c of U is that of the inverse of H without the inputs before c, over the root of its first element: once
    input c is fixed at an error e, those after it make up for it best by -e / U_cc · U_c.

    >>> h = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> u = inverse_factor(h)
    >>> bool(jnp.allclose(u.T @ u @ h, jnp.eye(2), atol=1e-6))
    True
    """
    # H = R Rᵀ with R upper triangular, by Cholesky backwards; U = R⁻¹. H⁻¹ itself is never formed.
    upper = jnp.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(upper, jnp.eye(len(h), dtype=h.dtype), lower=False)
