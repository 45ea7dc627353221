"""Packed arrays unpacked where they lie, so that reading a file compiles nothing for each shape."""

from __future__ import annotations

import jax
import numpy as np

from modelzip_jax.concrete import host_views, placed
from modelzip_jax.packed import PackedArray

__all__ = ["unpacked", "unpacked_on_host"]


def unpacked_on_host(packed: PackedArray) -> jax.Array | None:
    """What `packed.unpack()` gives, bit for bit; None under jit, on other devices, or of a kind that cannot.

    >>> from modelzip_jax.packed import Bits
    >>> unpacked_on_host(Bits.pack([3, 0, 2], bits=2))
    Array([3, 0, 2], dtype=uint8)
    """
    if host_views(*jax.tree.leaves(packed)) is None:
        return None
    with np.errstate(over="ignore"):  # as XLA rounds to half precision
        values = packed.unpack_host()
    return None if values is None else placed(values)


def unpacked(packed: PackedArray) -> jax.Array:
    """`packed.unpack()`, on the host where that can be."""
    here = unpacked_on_host(packed)
    return packed.unpack() if here is None else here
