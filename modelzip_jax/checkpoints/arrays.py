"""What every format needs: aligned buffers, exact reads, raw bytes, dtypes by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol

import ml_dtypes
import numpy as np

from modelzip_jax.errors import CheckpointError

__all__ = [
    "DTYPES",
    "EXTENSION_DTYPES",
    "aligned_empty",
    "as_stored",
    "fill",
    "raw_bytes",
]

# `jax.device_put` on the CPU shares a NumPy buffer only where it begins at such an address.
ALIGNMENT = 64
# Linux reads at most 2 GiB at a call; pieces also keep a decompressor's temporaries small.
PIECE = 1 << 24

_NATIVE = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
)
_EXTENSION = (
    "bfloat16 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz "
    "float8_e5m2 float8_e5m2fnuz float8_e8m0fnu int2 int4 uint2 uint4"
)

EXTENSION_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(getattr(ml_dtypes, name)) for name in _EXTENSION.split()
}
DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in _NATIVE.split()},
    **EXTENSION_DTYPES,
}


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def aligned_empty(shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """An uninitialized array whose data begin at a multiple of 64 bytes.

    >>> aligned_empty((3, 5), np.dtype("float32")).ctypes.data % 64
    0
    """
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(tuple(shape))


def raw_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, shared with it (ml_dtypes export no buffer themselves)."""
    return array.reshape(-1).view(np.uint8).data


def fill(array: np.ndarray, file: Readable | BinaryIO) -> None:
    """Reads an array's bytes from a file straight into it.

    Raises:
      CheckpointError: the file ends first.
    """
    view = raw_bytes(array)
    done = 0
    while done < len(view):
        piece = view[done : done + PIECE]
        if hasattr(file, "readinto"):
            count = file.readinto(piece) or 0
        else:
            data = file.read(len(piece))
            count = len(data)
            piece[:count] = data
        if count == 0:
            raise CheckpointError(f"the data end {len(view) - done} bytes too early")
        done += count


def as_stored(name: str, leaf: Any) -> np.ndarray:
    """A leaf as a C-contiguous, little-endian NumPy array of a dtype that files know.

    Raises:
      CheckpointError: the leaf is no array or number; the message names it.

    >>> as_stored("step", 3)
    array(3)
    """
    try:
        array = np.asarray(leaf, order="C")
    except Exception as error:  # a leaf's own __array__ raises what it likes (typed keys, tracers)
        raise CheckpointError(f"leaf {name!r} is no array: {error}") from error
    if array.dtype.name not in DTYPES:
        raise CheckpointError(
            f"leaf {name!r} is a {type(leaf).__name__} of dtype {array.dtype}, which no checkpoint "
            "format here stores; convert it to numbers or leave it out"
        )
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
