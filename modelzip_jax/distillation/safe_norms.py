"""Norms and what is divided by them, with derivatives at zero: there a norm's is 0 instead of NaN.

What is NaN or infinite gives NaN: comparisons ask what is zero, which NaN is not, and never what is above it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["ROUNDING", "centred", "pearson", "safe_norm", "unit_vectors"]

_SMALLEST = 1e-18
"""Of the largest magnitude in a vector: the squares of what is smaller are no float32 any more."""
ROUNDING = 1e-6
"""Of the largest magnitude: a mean of many float32 numbers, or a difference of two that were rounded, is not nearer."""


def safe_norm(x: jax.Array, axis: int = -1) -> jax.Array:
    """The Euclidean norm along an axis, which is kept; its gradient at 0 is 0.

    >>> jax.grad(lambda x: safe_norm(x)[0])(jnp.zeros(2))
    Array([0., 0.], dtype=float32)
    """
    square = jnp.sum(jnp.square(x), axis, keepdims=True)
    none = square == 0
    return jnp.where(none, 0.0, jnp.sqrt(jnp.where(none, 1.0, square)))


def unit_vectors(x: jax.Array, axis: int = -1) -> jax.Array:
    """The vectors along an axis, divided by their norms; zeros stay zeros, and have zero gradients.

    What is divided first by the largest magnitude, a constant that cancels, neither overflows nor vanishes in squares.

    >>> unit_vectors(jnp.array([[3e30, 4e30], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis, keepdims=True))
    none = top <= _SMALLEST
    x = jnp.where(none, 0.0, x) / jnp.where(none, 1.0, top)
    norm = safe_norm(x, axis)
    return x / jnp.where(norm == 0, 1.0, norm)


def centred(x: jax.Array, axis: int = -1, counted: jax.Array | None = None) -> jax.Array:
    """What stands along an axis less its mean; zeros where that is no more than float32's rounding.

    Args:
      counted: bool, like x: entries that are left out become 0. None counts all.

    >>> centred(jnp.array([[1.0, 2.0, 3.0], [0.1, 0.1, 0.1]]))
    Array([[-1.,  0.,  1.],
           [ 0.,  0.,  0.]], dtype=float32)
    """
    if counted is not None:
        x = jnp.where(counted, x, 0.0)
    away = x - jnp.mean(x, axis, keepdims=True, where=counted)
    if counted is not None:
        away = jnp.where(counted, away, 0.0)
    rounding = ROUNDING * jnp.max(jnp.abs(x), axis, keepdims=True)
    return jnp.where(jnp.max(jnp.abs(away), axis, keepdims=True) <= rounding, 0.0, away)


def pearson(x: jax.Array, y: jax.Array, axis: int = -1, counted: jax.Array | None = None) -> jax.Array:
    """Pearson's correlation of what stands along an axis; 0, with gradients of 0, where either does not vary.

    Args:
      counted: bool, like x and y: the pairs that are not left out. None counts all.

    >>> pearson(jnp.array([1.0, 2.0, 3.0]), jnp.array([5.0, 3.0, 1.0])).round(5)
    Array(-1., dtype=float32)
    """
    a, b = (unit_vectors(centred(v, axis, counted), axis) for v in (x, y))
    return jnp.sum(a * b, axis)
