"""Packed weights on the device, put there once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.packed import is_packed
from modelzip_jax.packing import Packed
from modelzip_jax.tree import PyTree

__all__ = ["to_device"]


def to_device(packed: PyTree, device: Any = None) -> PyTree:
    """The packed model with every array on a device, packed as it is: nothing is uploaded when it is used.

    What `mz.compress`, `mz.pack` and `mz.load` give holds NumPy arrays, which JAX uploads anew at each call.

    Args:
      packed: a `Packed` model, whose variables are put there too, or a tree of packed arrays.
      device: a `jax.Device`, or a sharding that is fully replicated; JAX's default device if None.

    Returns:
      The same structure; all of its arrays are committed `jax.Array`s.

    Raises:
      TransformError: what is given is not packed, `device` is none, or the sharding splits arrays:
        bit planes are no weights to split.
      LeafError: an array has a dtype that JAX would narrow, such as int64 without `jax_enable_x64`.

    >>> import numpy as np
    >>> import modelzip_jax as mz
    >>> packed = mz.to_device(mz.compress({"w": np.eye(64, dtype=np.float32)}, mz.quantize(4)))
    >>> packed.params["w"].codes.words.committed, packed.nbytes
    (True, 2304)
    """
    held = packed.params if isinstance(packed, Packed) else packed
    for name, leaf in trees.named_leaves(held, is_packed):
        if not is_packed(leaf):
            raise TransformError(
                f"to_device() takes a packed model, as mz.compress, mz.pack and mz.load give it; {name!r} is a "
                f"{type(leaf).__name__}"
            )
    for name, x in trees.named_leaves((held, packed.variables) if isinstance(packed, Packed) else held):
        if hasattr(x, "dtype") and jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
            raise LeafError(
                f"{name!r} is {x.dtype}, which JAX narrows on a device; set jax_enable_x64, or keep that leaf "
                "on the host"
            )
    if device is not None and not isinstance(device, jax.Device | jax.sharding.Sharding):
        raise TransformError(
            "to_device() takes a jax.Device or a replicated sharding, such as jax.devices('cpu')[0], not "
            f"{device!r:.100}"
        )
    if isinstance(device, jax.sharding.Sharding) and not device.is_fully_replicated:
        raise TransformError(
            f"{device} splits arrays; packed ones hold bit planes, whose axes are not the weights': replicate them, "
            "or give each host the part of the model that it computes"
        )
    return jax.device_put(packed, _default() if device is None else device)


def _default() -> jax.Device:
    # Without a device, device_put commits nothing, and computations may move the arrays.
    return next(iter(jnp.zeros(()).devices()))
