"""The discrete cosine transform in blocks, ordered by frequency."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64

from modelzip_jax.errors import TransformError
from modelzip_jax.wavelets.multilevel import check_axes

__all__ = ["dct", "dct_matrix", "idct"]


@functools.lru_cache(maxsize=16)
def dct_matrix(size: int) -> Float64[np.ndarray, "size size"]:
    """Orthonormal DCT-II, float64 (size, size): row k is frequency k."""
    k, i = np.arange(size)[:, None], np.arange(size)[None]
    rows = np.cos(np.pi * (2 * i + 1) * k / (2 * size)) * np.sqrt(2.0 / size)
    rows[:1] /= np.sqrt(2.0)
    return rows


@functools.partial(jax.jit, static_argnames=("block", "axes"))
def dct(
    x: Float[jax.Array, "*shape"], block: int, axes: int | tuple[int, ...] = -1
) -> Float[jax.Array, "*shape"]:
    """Orthonormal DCT-II of blocks of `block` samples, of the array's shape; linear, differentiable.

    Coefficients of one frequency of all blocks lie together, from the lowest frequency on. A last block
    may be shorter.

    Args:
      x: floating-point array. block: samples in a block. axes: the axis, or axes, of the blocks.

    Raises:
      TransformError: a block below 1. LeafError: an axis that is not there.

    Ahmed, Natarajan & Rao 1974, https://doi.org/10.1109/T-C.1974.223784.

    >>> dct(jnp.array([1.0, 1.0, 2.0, 2.0]), block=2).round(4)
    Array([1.4142, 2.8284, 0.    , 0.    ], dtype=float32)
    """
    return _each(x, block, axes, _forward)


@functools.partial(jax.jit, static_argnames=("block", "axes"))
def idct(
    y: Float[jax.Array, "*shape"], block: int, axes: int | tuple[int, ...] = -1
) -> Float[jax.Array, "*shape"]:
    """The inverse of `dct`, with the same arguments.

    >>> bool(jnp.allclose(idct(dct(jnp.arange(5.0), 2), 2), jnp.arange(5.0), atol=1e-5))
    True
    """
    return _each(y, block, axes, _backward)


def _each(x, block, axes, function):  # type: ignore[no-untyped-def]
    if block < 1:
        raise TransformError(f"a block must have 1 sample or more, not {block}")
    for axis in check_axes(axes, x.ndim):
        if x.size:
            moved = jnp.moveaxis(x, axis, 0)
            columns = moved.reshape(moved.shape[0], x.size // moved.shape[0])
            x = jnp.moveaxis(function(columns, block).reshape(moved.shape), 0, axis)
    return x


def _product(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    return jnp.tensordot(matrix.astype(x.dtype), x, 1, precision=jax.lax.Precision.HIGHEST)


def _forward(x: jax.Array, block: int) -> jax.Array:
    """(n, columns) to (n, columns)."""
    (blocks, rest), columns = divmod(x.shape[0], block), x.shape[1]
    if not blocks:
        return _product(dct_matrix(rest), x)
    body = x[: blocks * block].reshape(blocks, block, columns).swapaxes(0, 1)
    body = _product(dct_matrix(block), body)
    if not rest:
        return body.reshape(x.shape)
    tail = _product(dct_matrix(rest), x[blocks * block :])[:, None]
    mixed = jnp.concatenate([body[:rest], tail], 1).reshape(rest * (blocks + 1), columns)
    return jnp.concatenate([mixed, body[rest:].reshape((block - rest) * blocks, columns)])


def _backward(y: jax.Array, block: int) -> jax.Array:
    (blocks, rest), columns = divmod(y.shape[0], block), y.shape[1]
    if not blocks:
        return _product(dct_matrix(rest).T, y)
    cut = rest * (blocks + 1)
    mixed = y[:cut].reshape(rest, blocks + 1, columns)
    body = jnp.concatenate([mixed[:, :blocks], y[cut:].reshape(block - rest, blocks, columns)])
    body = _product(dct_matrix(block).T, body).swapaxes(0, 1).reshape(blocks * block, columns)
    return jnp.concatenate([body, _product(dct_matrix(rest).T, mixed[:, blocks])]) if rest else body
