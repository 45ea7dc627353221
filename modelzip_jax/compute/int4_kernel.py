"""A Pallas kernel for products with `Int4Matrix`: codes become numbers in registers, next to the product.

Each program makes a block of the result, over all tiles of rows. Only `BlockSpec`s, products and a loop, so that
Mosaic compiles it for TPUs, Triton for GPUs, and it is interpreted elsewhere. Like Frantar et al. 2024 (MARLIN,
arXiv:2408.11743) it reads four bits a weight; unlike it, it leaves the order of loads to the compiler.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from modelzip_jax.compute.int4_layout import Int4Matrix
from modelzip_jax.errors import TransformError

__all__ = ["check_kernel", "kernel_product"]

_COLUMNS = 128
_ROWS = (16, 64, 128)


def check_kernel(weights: Int4Matrix) -> None:
    """Raises `TransformError` for a layout whose blocks are none of the kernel's."""
    half = weights.codes.shape[1]
    if weights.codes.dtype != jnp.uint8 or half < 16 or half & (half - 1) or weights.shape[1] % _COLUMNS:
        raise TransformError(
            f"the kernel takes two codes to a byte, groups of 32, 64, 128, … rows and columns by {_COLUMNS}, "
            f"not tiles of {weights.rows} rows of a {list(weights.shape)} matrix in {weights.codes.dtype}"
        )


def kernel_product(tiled: jax.Array, weights: Int4Matrix) -> jax.Array:
    """Σ x v scale, without zeros: float32 `(m, n)`.

    Args:
      tiled: x as `(m, tiles, 2, rows / 2)`, the weights' layout. weights: see `check_kernel`.
    """
    check_kernel(weights)
    m = tiled.shape[0]
    rows = next((r for r in _ROWS if m <= r), _ROWS[-1])
    x = jnp.pad(tiled, ((0, -m % rows), (0, 0), (0, 0), (0, 0))).transpose(1, 2, 0, 3)
    ways: tuple[dict[str, Any], ...] = {"interpret": True}, {}, {"compiler_params": _for_triton()}
    cpu, tpu, gpu = (functools.partial(_call, rows=rows, options=options) for options in ways)
    found = lax.platform_dependent(x, weights.codes, weights.scale, cpu=cpu, tpu=tpu, default=gpu)
    return found[:m]


def _for_triton() -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=4, num_stages=3)


def _call(
    x: jax.Array, codes: jax.Array, scale: jax.Array, *, rows: int, options: dict[str, Any]
) -> jax.Array:
    from jax.experimental import pallas as pl  # Takes a second that most programs need not spend.

    tiles, _, m, half = x.shape
    n, columns = codes.shape[2], _COLUMNS
    return pl.pallas_call(
        _kernel,
        out_shape=jax.ShapeDtypeStruct((m, n), jnp.float32),
        grid=(m // rows, n // columns),
        in_specs=[
            pl.BlockSpec((tiles, 2, rows, half), lambda i, j: (0, 0, i, 0)),
            pl.BlockSpec((tiles, half, columns), lambda i, j: (0, 0, j)),
            pl.BlockSpec((scale.shape[0], 1, columns), lambda i, j: (0, 0, j)),
        ],
        out_specs=pl.BlockSpec((rows, columns), lambda i, j: (i, j)),
        **options,
    )(x, codes, scale)


def _kernel(x: Any, codes: Any, scale: Any, out: Any) -> None:
    tiles, grouped = codes.shape[0], scale.shape[0] > 1

    def tile(t: jax.Array, total: jax.Array) -> jax.Array:
        # Mosaic has no shifts of bytes.
        both = codes[t].astype(jnp.int32)
        low, high = (((both & 15) ^ 8) - 8), ((both >> 4) ^ 8) - 8
        dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
        part = dot(x[t, 0], low.astype(x.dtype)) + dot(x[t, 1], high.astype(x.dtype))
        return total + (part * scale[t] if grouped else part)

    total = lax.fori_loop(0, tiles, tile, jnp.zeros(out.shape, jnp.float32))
    out[...] = total if grouped else total * scale[0]
