"""Masks at one bit a weight, packed along the last axis so that leading axes stay shardable."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.by_shape import shape_batches, stack
from modelzip_jax.concrete import host_view, placed, traced_once
from modelzip_jax.tree import PyTree

__all__ = ["count_bits", "host_mask", "pack_mask", "share_of_bits", "share_of_changes", "unpack_mask"]


def pack_mask(mask: jax.Array) -> jax.Array:
    """Boolean `(..., n)` to uint8 `(..., ceil(n / 8))`, little-endian bits; scalars to `(1,)`.

    >>> pack_mask(jnp.array([True, False, True]))
    Array([5], dtype=uint8)
    """
    if (seen := host_view(mask)) is not None:  # Nothing to compile for each shape.
        return placed(np.packbits(np.atleast_1d(seen), axis=-1, bitorder="little"))
    return _packed(mask)


@traced_once()
def _packed(mask: jax.Array) -> jax.Array:
    mask = jnp.atleast_1d(mask)
    length = mask.shape[-1]
    padded = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, -length % 8)])
    grouped = padded.reshape(*mask.shape[:-1], -(-length // 8), 8).astype(jnp.uint8)
    return jnp.sum(grouped << _places(grouped.ndim), axis=-1, dtype=jnp.uint8)


def unpack_mask(bits: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `pack_mask`: a boolean mask of `shape`.

    >>> unpack_mask(jnp.array([5], jnp.uint8), (3,))
    Array([ True, False,  True], dtype=bool)
    """
    if (seen := host_view(bits)) is not None:
        return placed(host_mask(seen, shape))
    return _spread(bits, shape)


@traced_once(1)
def _spread(bits: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    spread = (bits[..., None] >> _places(bits.ndim + 1)) & 1
    length = shape[-1] if shape else 1
    mask = spread.reshape(*bits.shape[:-1], 8 * bits.shape[-1])[..., :length]
    return mask.reshape(shape).astype(bool)


def _places(ndim: int) -> jax.Array:
    """0 to 7 along the last of so many axes."""
    return jnp.arange(8, dtype=jnp.uint8).reshape(*[1] * (ndim - 1), 8)


def count_bits(bits: jax.Array) -> jax.Array:
    """Number of set bits: int32 scalar.

    >>> count_bits(jnp.array([5, 255], jnp.uint8))
    Array(10, dtype=int32)
    """
    return jnp.sum(jax.lax.population_count(bits), dtype=jnp.int32)


def share_of_bits(bits: PyTree, like: PyTree) -> jax.Array:
    """The share of set bits over all masks, float32 scalar; 0 of no bits. Of any number of weights.

    >>> share_of_bits({"w": jnp.array([5], jnp.uint8)}, {"w": jnp.zeros(4)})
    Array(0.5, dtype=float32)
    """
    return _share(jax.tree.map(_ones, bits), like)


def share_of_changes(old: PyTree, new: PyTree, like: PyTree) -> jax.Array:
    """The share of bits in which masks differ, float32 scalar.

    >>> old, new = ({"w": jnp.array([bits], jnp.uint8)} for bits in (5, 6))
    >>> share_of_changes(old, new, {"w": jnp.zeros(4)})
    Array(0.5, dtype=float32)
    """
    before, after = jax.tree.leaves(old), jax.tree.leaves(new)
    batches = [([before[at] for at in batch], [after[at] for at in batch]) for batch in shape_batches(after)]
    return _share([jnp.sum(jax.vmap(_ones)(stack(a) ^ stack(b))) for a, b in batches], like)


def _share(counts: PyTree, like: PyTree) -> jax.Array:
    total = sum(jnp.size(x) for x in jax.tree.leaves(like))
    return sum(jax.tree.leaves(counts), jnp.float32(0.0)) / jnp.float32(max(total, 1))


def _ones(bits: jax.Array) -> jax.Array:
    rows = jnp.sum(jax.lax.population_count(bits), axis=-1, dtype=jnp.int32)
    return jnp.sum(rows.astype(jnp.float32))


def host_mask(bits: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """The same as `unpack_mask`, in NumPy, without compiling anything."""
    length = shape[-1] if shape else 1
    return (
        np.unpackbits(np.asarray(bits), axis=-1, count=length, bitorder="little").astype(bool).reshape(shape)
    )
