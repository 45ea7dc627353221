"""Products of activations with packed weights: ways to scale, and which one a backend takes.

With x (m, k) and weights (v - z) s in tiles t of rows:

    dequantize    x @ ((v - z) s)                      what XLA fuses of it is XLA's
    after         (x @ v - Σx z) s                     scales of output channels only
    partial       Σ_t (x_t @ v_t - Σx_t z_t) s_t       scales of groups
    kernel        the same in one Pallas kernel        see `int4_kernel`
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from modelzip_jax.compute.int4_kernel import kernel_product
from modelzip_jax.compute.int4_layout import Int4Matrix, check_leaf
from modelzip_jax.errors import TransformError
from modelzip_jax.naming import nearest_name
from modelzip_jax.packed import is_packed

__all__ = ["BEST", "WAYS", "packed_matmul"]

FEW_ROWS = 32
"""Up to which a product is bound by reading the weights."""
BEST: dict[str, dict[bool, tuple[str, str]]] = {
    "cpu": {True: ("after", "dequantize"), False: ("after", "dequantize")},
    "cuda": {True: ("partial", "partial"), False: ("dequantize", "dequantize")},
    "default": {True: ("after", "dequantize"), False: ("after", "dequantize")},
}
"""By platform, and whether there are few rows: the way for scales of channels, and for scales of groups.

Measured by `python -m benchmarks.accelerator --products` on an H200; a TPU's are a guess.
"""


def packed_matmul(x: jax.Array, packed: Any, way: str | None = None) -> jax.Array:
    """x times a packed matrix that stays packed in memory, float activations and weights: for inference.

    Sums are float32, at JAX's matmul precision of the day (`jax.default_matmul_precision`).

    Args:
      x: float `(..., k)`; NumPy's becomes JAX's first, float64 thus float32 without `jax_enable_x64`.
      packed: an `mz.int4_matrix` of (k, n), or any packed matrix, which is unpacked.
      way: one of "dequantize", "after", "partial" and "kernel"; None takes the backend's best that we know of.

    Returns:
      `(..., n)`, of the dtype of `x` in JAX.

    Raises:
      TransformError: shapes that do not fit; an `x` of integers; an unknown way, or one that cannot have these weights.

    >>> import modelzip_jax as mz
    >>> w = jax.random.normal(jax.random.key(0), (64, 8))
    >>> held = mz.int4_matrix(mz.compress(w, mz.quantize(4, granularity="group", group_size=32, axis=-1)).params)
    >>> x = jax.random.normal(jax.random.key(1), (3, 64))
    >>> bool(jnp.allclose(packed_matmul(x, held), x @ held.unpack(), atol=1e-5))
    True
    """
    check_leaf(packed, "packed_matmul()")
    x = jnp.asarray(x) if isinstance(x, np.ndarray) else x
    floats = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    fits = (
        is_packed(packed) and len(packed.shape) == 2 and floats and x.ndim and x.shape[-1] == packed.shape[0]
    )
    if not fits:
        shown = f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else f"a {type(x).__name__}"
        raise TransformError(
            f"packed_matmul() takes floats (..., k) and a packed matrix (k, n), not {shown} and "
            f"{type(packed).__name__}{list(getattr(packed, 'shape', ()))}"
        )
    rows = x.reshape(-1, x.shape[-1])
    return _product(rows, packed, way).astype(x.dtype).reshape(*x.shape[:-1], packed.shape[1])


def _product(x: jax.Array, packed: Any, way: str | None) -> jax.Array:
    if way is not None and way not in WAYS:
        raise TransformError(f"way is {way!r}; {nearest_name(way, tuple(WAYS))}")
    if not isinstance(packed, Int4Matrix):
        if way not in (None, "dequantize"):
            raise TransformError(f"{way!r} is a way of mz.int4_matrix's, not of {type(packed).__name__}")
        return _dot(x, packed.unpack().astype(x.dtype))
    if way is not None:
        return WAYS[way](x, packed)
    grouped, few = packed.scale.shape[0] > 1, x.shape[0] <= FEW_ROWS
    best = {platform: WAYS[ways[few][grouped]] for platform, ways in BEST.items()}
    if len(set(best.values())) == 1:
        return best["default"](x, packed)
    return lax.platform_dependent(x, packed, **best)


_dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


def _dequantized(x: jax.Array, w: Int4Matrix) -> jax.Array:
    return _dot(x, w.unpack().astype(x.dtype))


def _scaled_after(x: jax.Array, w: Int4Matrix) -> jax.Array:
    if w.scale.shape[0] > 1:
        raise TransformError("scales of groups cannot follow the whole sum; use 'partial'")
    sums = _dot(x, w.matrix(w.integers()).astype(x.dtype))
    if w.zero is not None:
        sums = sums - x.astype(jnp.float32).sum(-1, keepdims=True) * w.zero[0]
    return sums * w.scale[0]


def _tiled(x: jax.Array, w: Int4Matrix) -> jax.Array:
    """`(m, tiles, rows)`, zeros behind the end."""
    tiles = w.codes.shape[0]
    return jnp.pad(x, ((0, 0), (0, tiles * w.rows - x.shape[1]))).reshape(-1, tiles, w.rows)


def _less_zeros(sums: jax.Array, tiled: jax.Array, w: Int4Matrix) -> jax.Array:
    if w.zero is None:
        return sums
    zeros = jnp.broadcast_to(w.zero * w.scale, (tiled.shape[1], 1, w.shape[1]))[:, 0]
    return sums - jnp.matmul(tiled.astype(jnp.float32).sum(-1), zeros, precision=lax.Precision.HIGHEST)


def _partial_sums(x: jax.Array, w: Int4Matrix) -> jax.Array:
    tiled = _tiled(x, w)
    parts = jnp.einsum(
        "mtr,trn->tmn", tiled, w.integers().astype(x.dtype), preferred_element_type=jnp.float32
    )
    return _less_zeros((parts * w.scale).sum(0), tiled, w)


def _by_kernel(x: jax.Array, w: Int4Matrix) -> jax.Array:
    tiled = _tiled(x, w)
    # Whether the layout is the kernel's is its own to say.
    even = jnp.pad(tiled, ((0, 0), (0, 0), (0, w.rows % 2)))
    halves = even.reshape(*even.shape[:2], 2, even.shape[2] // 2)
    return _less_zeros(kernel_product(halves, w), tiled, w)


WAYS: dict[str, Callable[[jax.Array, Int4Matrix], jax.Array]] = {
    "dequantize": _dequantized,
    "after": _scaled_after,
    "partial": _partial_sums,
    "kernel": _by_kernel,
}
