"""Masks at one bit a weight, packed along the last axis so that leading axes stay shardable."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view, placed

__all__ = ["count_bits", "pack_mask", "unpack_mask", "unpack_mask_on_host"]


def pack_mask(mask: jax.Array) -> jax.Array:
    """Boolean `(..., n)` to uint8 `(..., ceil(n / 8))`, little-endian bits; scalars to `(1,)`.

    >>> pack_mask(jnp.array([True, False, True]))
    Array([5], dtype=uint8)
    """
    if (seen := host_view(mask)) is not None:  # nothing to compile for each shape
        return placed(np.packbits(np.atleast_1d(seen), axis=-1, bitorder="little"))
    mask = jnp.atleast_1d(mask)
    length = mask.shape[-1]
    padded = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, -length % 8)])
    grouped = padded.reshape(*mask.shape[:-1], -(-length // 8), 8).astype(jnp.uint8)
    return jnp.sum(grouped << jnp.arange(8, dtype=jnp.uint8), axis=-1, dtype=jnp.uint8)


def unpack_mask(bits: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `pack_mask`: a boolean mask of `shape`.

    >>> unpack_mask(jnp.array([5], jnp.uint8), (3,))
    Array([ True, False,  True], dtype=bool)
    """
    if (seen := host_view(bits)) is not None:
        return placed(unpack_mask_on_host(seen, shape))
    place = jnp.arange(8, dtype=jnp.uint8)
    spread = (bits[..., None] >> place) & 1
    length = shape[-1] if shape else 1
    mask = spread.reshape(*bits.shape[:-1], 8 * bits.shape[-1])[..., :length]
    return mask.reshape(shape).astype(bool)


def unpack_mask_on_host(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`unpack_mask` of what can be read on the host."""
    length = shape[-1] if shape else 1
    return np.unpackbits(bits, axis=-1, count=length, bitorder="little").reshape(shape).view(bool)


def count_bits(bits: jax.Array) -> jax.Array:
    """Number of set bits: int32 scalar.

    >>> count_bits(jnp.array([5, 255], jnp.uint8))
    Array(10, dtype=int32)
    """
    return jnp.sum(jax.lax.population_count(bits), dtype=jnp.int32)
