"""Features brought to another number of positions: means over windows, or the nearest position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["nearest_resized", "pool_alike", "pooled_to"]


def pooled_to(x: jax.Array, positions: tuple[int, ...]) -> jax.Array:
    """Means over windows that cover the positions evenly: adaptive average pooling.

    Window i of n over a length m runs from floor(i m / n) to ceil((i + 1) m / n).

    Args:
      x: `(batch, *positions, channels)`. positions: the new ones.

    >>> pooled_to(jnp.arange(6.0).reshape(1, 6, 1), (3,)).reshape(3)
    Array([0.5, 2.5, 4.5], dtype=float32)
    """
    for axis, size in enumerate(positions, 1):
        if x.shape[axis] != size:
            windows = jnp.asarray(_windows(x.shape[axis], size), x.dtype)
            product = jnp.tensordot(x, windows, ([axis], [1]), precision=jax.lax.Precision.HIGHEST)
            x = jnp.moveaxis(product, -1, axis)
    return x


def _windows(length: int, size: int) -> np.ndarray:
    """The matrix of means, `(size, length)`."""
    begin = np.arange(size) * length // size
    end = -(-(np.arange(size) + 1) * length // size)
    place = np.arange(length)
    inside = (place >= begin[:, None]) & (place < end[:, None])
    return inside / (end - begin)[:, None]


def pool_alike(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both at the smaller number of positions along each axis.

    >>> a, b = pool_alike(jnp.ones((2, 8, 8, 3)), jnp.ones((2, 4, 4, 5)))
    >>> a.shape, b.shape
    ((2, 4, 4, 3), (2, 4, 4, 5))
    """
    positions = tuple(map(min, a.shape[1:-1], b.shape[1:-1]))
    return pooled_to(a, positions), pooled_to(b, positions)


def nearest_resized(x: jax.Array, positions: tuple[int, ...]) -> jax.Array:
    """Position i of n is position floor(i m / n) of m.

    >>> nearest_resized(jnp.arange(2.0).reshape(1, 2, 1), (4,)).reshape(4)
    Array([0., 0., 1., 1.], dtype=float32)
    """
    for axis, size in enumerate(positions, 1):
        if x.shape[axis] != size:
            x = jnp.take(x, np.arange(size) * x.shape[axis] // size, axis)
    return x
