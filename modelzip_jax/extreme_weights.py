"""Finite weights whose decoded values are none: found before anything is stored.

Sums, products with a step and rounding to half precision leave the floats there are only where weights are near the
largest or the smallest of them. Networks have no such weights, so that few leaves are decoded to be looked at.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view
from modelzip_jax.errors import NonFiniteError
from modelzip_jax.host_unpacking import unpacked
from modelzip_jax.leaf_checks import count_nonfinite
from modelzip_jax.packed import PackedArray

__all__ = ["check_decodes", "largest_magnitude"]

_USUAL = 2.0**-40, 2.0**40
"""Of magnitudes in between, squares and sums of millions of squares are normal float32 numbers."""
_ROOM = 2.0**-10
"""The share of half precision's largest number beyond which a coarse grid or a sum may leave it."""
_HALVES = (np.dtype(np.float16), np.dtype(jnp.bfloat16))


def check_decodes(name: str, packed: PackedArray, weights: Any) -> None:
    """Raises `NonFiniteError` if a leaf of extreme weights decodes to NaN or infinity.

    Args:
      name: of the leaf, for the message. packed: its stored form. weights: what was packed, or nearly.

    >>> import modelzip_jax as mz
    >>> w = jnp.full((8, 8), 65_504.0, jnp.float16)
    >>> mz.compress({"w": w}, mz.quantize(grid=mz.grids.halving()))
    Traceback (most recent call last):
    modelzip_jax.errors.NonFiniteError: leaf 'w' decodes to 64 NaN or infinite values of 64: its weights reach ...
    """
    if not jnp.issubdtype(jnp.result_type(weights), jnp.floating) or not np.size(weights):
        return
    reach = largest_magnitude(weights)
    least, most = _USUAL[0], min(_USUAL[1], float(jnp.finfo(jnp.result_type(weights)).max) * _ROOM)
    if reach == 0 or least <= reach <= most:
        return
    bad = count_nonfinite(unpacked(packed))
    if bad:
        raise NonFiniteError(
            f"leaf {name!r} decodes to {bad} NaN or infinite values of {np.size(weights)}: its weights reach "
            f"{reach:.3g}, too near the ends of {jnp.result_type(weights)} for what is done to them; scale it, or "
            "leave it out with mz.only or mz.partition"
        )


def largest_magnitude(x: Any) -> float:
    """The largest magnitude of an array; NaN if it holds one.

    >>> largest_magnitude(jnp.array([1.0, -3.0])), largest_magnitude(jnp.zeros((0, 2)))
    (3.0, 0.0)
    >>> largest_magnitude(jnp.array([1.0, -3.0], jnp.bfloat16)), largest_magnitude(np.float16([1.0, np.nan]))
    (3.0, nan)
    """
    seen = x if isinstance(x, np.ndarray) else host_view(x)
    if (
        seen is not None and seen.dtype in _HALVES
    ):  # Behind the sign, larger bits are larger numbers: 30 times faster.
        return float(np.max(seen.view(np.uint16) & 0x7FFF, initial=0).astype(np.uint16).view(seen.dtype))
    if seen is not None:  # Nothing to compile for each shape.
        return max(float(seen.max(initial=0)), -float(seen.min(initial=0)))
    with jax.ensure_compile_time_eval():
        return float(_largest(x))


@jax.jit
def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), initial=0)
