"""Lossless arrays: byte planes in which a float's exponent fills one plane of its own.

The sign of a trained weight is a coin toss and so is most of its mantissa; only the exponent is
skewed. Rotating the sign bit to the bottom puts all of a float32's or bfloat16's exponent into the
top byte, which then codes to about 2.6 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from modelzip_jax.errors import FormatError, LeafError

__all__ = ["check_dtype", "join_planes", "split_planes"]

_BLOCK = 1 << 16


def check_dtype(dtype: np.dtype) -> None:
    """Raises `LeafError` for a dtype whose numbers have no planes, such as objects and strings."""
    _word(dtype)


def _word(dtype: np.dtype) -> tuple[np.dtype, int, bool]:
    """Unsigned word to view `dtype` as, words an element, and whether its sign is rotated."""
    kind, words = dtype.kind, 1
    if dtype.hasobject or dtype.names or dtype.kind in "SUO" or dtype.itemsize == 0:
        raise LeafError(f"dtype {dtype} has no byte planes; expected a fixed-size number or bool")
    if kind == "c":
        words = 2
    size = dtype.itemsize // words
    if size not in (1, 2, 4, 8):
        raise LeafError(f"dtype {dtype} has no byte planes; its numbers are {size} bytes wide")
    signed_float = kind in "fc" or (kind == "V" and _is_custom_float(dtype))
    return np.dtype(f"<u{size}"), words, signed_float


def _is_custom_float(dtype: np.dtype) -> bool:
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return True


def split_planes(array: np.ndarray) -> list[np.ndarray]:
    """Splits an array into byte planes, most significant first.

    Floats have their sign bit rotated to the bottom first. Bit patterns survive as they are: NaN
    payloads, -0.0 and infinities included.

    Args:
        array: any shape; bool, integer, float or complex, `ml_dtypes` included.

    Returns:
        One uint8[n] for each byte of the dtype (of one component, for complex numbers, whose `n`
        counts real and imaginary parts).

    Raises:
        LeafError: strings, objects, records.

    >>> split_planes(np.array([1.0, -1.0], np.float32))[0].tolist()
    [127, 127]
    """
    array = np.asarray(array)
    word, _, rotate = _word(array.dtype)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    flat = np.ascontiguousarray(array).reshape(-1).view(word)
    size = word.itemsize
    planes = [np.empty(flat.size, np.uint8) for _ in range(size)]
    top = word.type(8 * size - 1)
    one = word.type(1)
    for start in range(0, flat.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        block = flat[part]
        if rotate:
            block = (block << one) | (block >> top)
        octets = block.view(np.uint8).reshape(-1, size)
        for k, plane in enumerate(planes):
            plane[part] = octets[:, size - 1 - k]
    return planes


def join_planes(
    planes: Sequence[np.ndarray], dtype: np.typing.DTypeLike, shape: tuple[int, ...]
) -> np.ndarray:
    """Puts the planes of `split_planes` back together, bit for bit.

    Args:
        planes: uint8 arrays, most significant first.
        dtype: the dtype of the original array.
        shape: its shape.

    Returns:
        A new array, in native byte order.

    Raises:
        FormatError: the number or the size of the planes does not fit dtype and shape.
        LeafError: a dtype without planes.

    >>> weights = np.array([[0.5, -0.0]], ml_dtypes.bfloat16)
    >>> join_planes(split_planes(weights), weights.dtype, weights.shape)
    array([[0.5, -0]], dtype=bfloat16)
    """
    dtype = np.dtype(dtype)
    word, words, rotate = _word(dtype)
    size, numbers = word.itemsize, math.prod(shape) * words
    if len(planes) != size or any(p.shape != (numbers,) or p.dtype != np.uint8 for p in planes):
        found = [f"{p.dtype}{list(p.shape)}" for p in planes]
        raise FormatError(f"{dtype}{list(shape)} needs {size} planes of {numbers} bytes, found {found}")
    flat = np.empty(numbers, word)
    top = word.type(8 * size - 1)
    one = word.type(1)
    for start in range(0, numbers, _BLOCK):
        part = slice(start, start + _BLOCK)
        block = flat[part]
        octets = block.view(np.uint8).reshape(-1, size)
        for k, plane in enumerate(planes):
            octets[:, size - 1 - k] = plane[part]
        if rotate:
            flat[part] = (block >> one) | (block << top)
    little = dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype
    return flat.view(little).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
