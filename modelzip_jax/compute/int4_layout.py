"""Weights of up to four bits as matrix products read them: two to a byte, in tiles of rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.packed import PackedArray, static
from modelzip_jax.packing import Packed
from modelzip_jax.quantization.quantized import Quantized

__all__ = ["Int4Matrix", "check_leaf", "int4_matrix"]

_TILES = (128, 64, 32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Int4Matrix(PackedArray):
    """`(v - zero) scale` with integers v from -8 to 7, a matrix of `shape` (k, n); in memory only.

    The rows come in tiles of `rows`, the last one filled up; where scales are of groups, a tile is a group.

    codes: uint8 `(tiles, ceil(rows / 2), n)`: row r of a tile in the lower four bits, row r + ceil(rows / 2) in the
    upper ones; or, as XLA's own type, int4 `(tiles, rows, n)`, rows even. scale: float32 `(tiles, 1, n)`, or
    `(1, 1, n)` for all. zero: of the shape of `scale`, or None where it is 0. dtype: of the unpacked weights.

    >>> import modelzip_jax as mz
    >>> packed = mz.compress(np.ones((96, 8), np.float32), mz.quantize(4, axis=-1)).params
    >>> held = mz.int4_matrix(packed)
    >>> held.codes.shape, held.nbytes, bool((held.unpack() == packed.unpack()).all())
    ((3, 16, 8), 416, True)
    """

    codes: jax.Array
    scale: jax.Array
    zero: jax.Array | None
    rows: int = static()
    shape: tuple[int, int] = static()
    dtype: str = static()

    def integers(self) -> jax.Array:
        """v: int8 `(tiles, rows, n)`, or int4 if that is what is held."""
        if self.codes.dtype != jnp.uint8:
            return self.codes[:, : self.rows]
        # Shifts of signed integers carry the sign.
        low = jax.lax.shift_right_arithmetic(jax.lax.shift_left(_signed(self.codes), _four), _four)
        high = jax.lax.shift_right_arithmetic(_signed(self.codes), _four)
        return jnp.concatenate([low, high], 1)[:, : self.rows]

    def matrix(self, tiles: jax.Array) -> jax.Array:
        """`(tiles, rows, n)` as `(k, n)`."""
        return tiles.reshape(-1, self.shape[1])[: self.shape[0]]

    def unpack(self) -> jax.Array:
        v = self.integers().astype(jnp.float32)
        return self.matrix((v if self.zero is None else v - self.zero) * self.scale).astype(self.dtype)


_four = np.int8(4)


def _signed(codes: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(codes, jnp.int8)


def int4_matrix(packed: Any, native: bool = False) -> Int4Matrix:
    """A quantized matrix in the layout of `mz.packed_matmul`: four bits a weight, and scales.

    Args:
      packed: a leaf of `mz.quantize`, of at most 4 bits, (k, n): k is summed over, as in Flax's kernels; with scales
        per tensor, output channel (axis -1) or groups within one.
      native: whether codes are held as `jnp.int4`, XLA's own type, instead of two to a byte.

    Returns:
      The matrix; where the codes are symmetric, it unpacks to the same bits as `packed`.

    Raises:
      TransformError: no such leaf.

    Rows are filled up to a tile: of the group, to an even number; of scales for all rows, to a multiple of 32.

    >>> import modelzip_jax as mz
    >>> w = jax.random.normal(jax.random.key(0), (64, 8))
    >>> int4_matrix(mz.compress(w, mz.quantize(4, axis=-1)).params, native=True).codes.dtype
    dtype(int4)
    """
    _check(packed)
    k, n = packed.shape
    v = packed.codes.unpack_host().astype(np.int16).reshape(k, n) + packed.low
    grouped = np.shape(packed.step)[0] > 1
    # A code of 0 to 15 does not fit: it and its zero move.
    shift = 0 if v.size == 0 or (v.min() >= -8 and v.max() <= 7) else 8
    zero = None if packed.zero is None else np.asarray(packed.zero, np.float32)
    if shift:
        zero = (np.zeros(np.shape(packed.step), np.float32) if zero is None else zero) - np.float32(shift)
    size = packed.group_size if grouped else next((t for t in _TILES if k % t == 0), 32)
    tiles = -(-k // size)
    v = np.pad(v - shift, ((0, tiles * size - k), (0, 0))).reshape(tiles, size, n)
    if native:
        codes: Any = jnp.asarray(np.pad(v, ((0, 0), (0, size % 2), (0, 0))).astype(np.int8)).astype(jnp.int4)
    else:
        nibbles = (np.pad(v, ((0, 0), (0, size % 2), (0, 0))) & 15).astype(np.uint8)
        half = nibbles.shape[1] // 2
        codes = jnp.asarray(nibbles[:, :half] | (nibbles[:, half:] << 4))
    return Int4Matrix(
        codes, _lanes(packed.step, n), None if zero is None or not zero.any() else _lanes(zero, n),
        size, (k, n), packed.dtype,
    )  # fmt: skip


def _lanes(x: Any, n: int) -> jax.Array:
    x = np.asarray(x, np.float32)
    return jnp.asarray(np.broadcast_to(x, (x.shape[0], n))[:, None])


def check_leaf(packed: Any, what: str) -> None:
    """Raises `TransformError` for a packed model in the place of one of its leaves."""
    if isinstance(packed, Packed):
        raise TransformError(f"{what} takes one packed matrix, not a model: pass a leaf, packed.params[...]")


def _check(packed: Any) -> None:
    check_leaf(packed, "int4_matrix()")
    if not isinstance(packed, Quantized) or len(packed.shape) != 2 or packed.codes.bits > 4:
        bits = f" of {packed.codes.bits} bits" if isinstance(packed, Quantized) else ""
        raise TransformError(
            f"int4_matrix() takes a matrix that mz.quantize packed in at most 4 bits, not {type(packed).__name__}"
            f"{list(getattr(packed, 'shape', ()))}{bits}; mz.packed_matmul multiplies others, too"
        )
    if packed.groups.axes(packed.shape) == (0,):
        raise TransformError(
            "scales belong to the axis that is summed over, and cannot follow the sum; quantize with axis=-1"
        )
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(packed)):
        raise TransformError("int4_matrix() packs codes anew, on the host: call it before jit")
