"""Packed arrays as byte streams and back: what the entropy coder sees of a model.

A packed array is described by a *spec*, plain data for the header, and a list of *streams*, byte
arrays in the order of its fields. `Bits` of two bits and more give one stream with a symbol a byte,
one-bit `Bits` one with eight to a byte; any other array gives a stream for each byte plane.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from modelzip_jax.coding import planes
from modelzip_jax.errors import FormatError
from modelzip_jax.packed import Bits, PackedArray, kinds

__all__ = ["Spec", "packed_spec", "rebuild", "stored_dtype", "stream_lengths", "streams"]

Spec = list[Any]
MAX_SIZE = 1 << 40
MAX_AXES = 64
_DTYPE = re.compile(r"\|?[A-Za-z][A-Za-z0-9_]{0,30}(\[[0-9A-Za-z]{1,8}\])?")


def packed_spec(packed: PackedArray) -> Spec:
    """`[tag, field, …]`: a static field is its value, a packed array its own spec, any other array
    `[0, dtype, *shape]`, and the words of `Bits` are left out.

    >>> packed_spec(Bits.pack([1, 0, 3], bits=2))
    ['bits', 2, 3]
    """
    if not hasattr(packed, "tag"):
        raise FormatError(
            f"{type(packed).__name__} is a form for computing and has none in a file; save what it was made of"
        )
    spec: Spec = [packed.tag]
    for field in dataclasses.fields(packed):  # type: ignore[arg-type]
        value = getattr(packed, field.name)
        if field.metadata.get("static") or value is None:
            spec.append(list(value) if isinstance(value, tuple) else value)
        elif isinstance(value, PackedArray):
            spec.append(packed_spec(value))
        elif not isinstance(packed, Bits):
            spec.append([0, str(np.asarray(value).dtype), *np.shape(value)])
    return spec


def streams(packed: PackedArray) -> Iterator[np.ndarray]:
    """The byte streams of a packed array: uint8 1-D each.

    >>> [s.tolist() for s in streams(Bits.pack([1, 0, 3], bits=2))]
    [[1, 0, 3]]
    """
    if isinstance(packed, Bits):
        yield _mask_bytes(packed) if packed.bits == 1 else packed.unpack_host()
        return
    for field in dataclasses.fields(packed):  # type: ignore[arg-type]
        value = getattr(packed, field.name)
        if isinstance(value, PackedArray):
            yield from streams(value)
        elif value is not None and not field.metadata.get("static"):
            yield from planes.split_planes(np.asarray(value))


def _mask_bytes(mask: Bits) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(mask.words)).view(np.uint8).reshape(-1)[: -(-mask.count // 8)]


def stream_lengths(spec: Spec) -> list[int]:
    """How many bytes each stream of a spec has, without building anything.

    Raises:
      FormatError: no spec, an unknown tag, or sizes out of range.

    >>> stream_lengths(["dense", [0, "float32", 2, 3], [2, 3]])
    [6, 6, 6, 6]
    """
    kind = _kind(spec)
    if kind is Bits:
        bits, count = _fields(spec, 2)
        if not (_is_size(bits) and 1 <= bits <= 8 and _is_size(count)):
            raise FormatError(f"{count!r} integers of {bits!r} bits")
        return [count if bits > 1 else -(-count // 8)]
    lengths = []
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    for field, item in zip(fields, _fields(spec, len(fields)), strict=True):
        if field.metadata.get("static") or item is None:
            if field.name == "shape":
                _shape(item)
            elif field.name == "dtype":
                stored_dtype(item)
            continue
        if _is_array(item):
            dtype, shape = _array(item)
            parts = _parts(dtype)
            lengths += [math.prod(shape) * parts] * (dtype.itemsize // parts)
        else:
            lengths += stream_lengths(item)
    return lengths


def rebuild(spec: Spec, parts: Iterator[np.ndarray]) -> PackedArray:
    """The packed array that `packed_spec` and `streams` came from.

    Raises:
      FormatError: the spec and the streams do not make one.
    """
    kind = _kind(spec)
    if kind is Bits:
        bits, count = _fields(spec, 2)
        return _bits(next(parts), bits, count)
    values = []
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    for field, item in zip(fields, _fields(spec, len(fields)), strict=True):
        if field.metadata.get("static") or item is None:
            values.append(tuple(item) if isinstance(item, list) else item)
        elif _is_array(item):
            dtype, shape = _array(item)
            found = [next(parts) for _ in range(dtype.itemsize // _parts(dtype))]
            values.append(planes.join_planes(found, dtype, shape))
        else:
            values.append(rebuild(item, parts))
    return kind(*values)


def _parts(dtype: np.dtype) -> int:
    """Numbers in an element: complex ones have two of half the size."""
    return 2 if dtype.kind == "c" else 1


def _bits(stream: np.ndarray, bits: int, count: int) -> Bits:
    if bits == 1:
        words = np.zeros(-(-count // 32), np.uint32)
        words.view(np.uint8)[: stream.size] = stream
        if count % 8 and stream.size and stream[-1] >> (count % 8):
            raise FormatError(f"a mask of {count} bits has bits set behind its end")
        return Bits(words[None], 1, count)
    if stream.size and int(stream.max()) >> bits:
        raise FormatError(f"the symbol {int(stream.max())} in codes of {bits} bits")
    return Bits.pack(stream, bits)


def _kind(spec: Any) -> type[PackedArray]:
    if not isinstance(spec, list) or not spec or not isinstance(spec[0], str):
        raise FormatError(f"not a packed array's description: {str(spec)[:80]}")
    if spec[0] not in kinds:
        raise FormatError(
            f"unknown packed kind {spec[0]!r}; import the module that registers it, or update modelzip_jax. "
            f"Known: {', '.join(sorted(kinds))}"
        )
    return kinds[spec[0]]


def _fields(spec: Spec, count: int) -> Spec:
    if len(spec) - 1 != count:
        raise FormatError(f"packed kind {spec[0]!r} has {count} stored fields, not {len(spec) - 1}")
    return spec[1:]


def _is_size(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MAX_SIZE


def _is_array(item: Any) -> bool:
    return isinstance(item, list) and len(item) >= 2 and item[0] == 0


def _shape(item: Any) -> tuple[int, ...]:
    few = isinstance(item, list) and len(item) <= MAX_AXES and all(map(_is_size, item))
    if not few or math.prod(item) > MAX_SIZE:
        raise FormatError(f"an array of shape {str(item)[:80]}")
    return tuple(item)


def _array(item: Spec) -> tuple[np.dtype, tuple[int, ...]]:
    shape = _shape(item[2:])
    return stored_dtype(item[1]), shape


def stored_dtype(name: Any) -> np.dtype:
    """The dtype of that name in a file.

    Raises:
      FormatError: a name that no dtype of numbers has.

    >>> stored_dtype("bfloat16").itemsize
    2
    """
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):  # Of others, NumPy would evaluate some.
        raise FormatError(f"unknown dtype {str(name)[:80]!r}")
    return _known_dtype(name)


@functools.lru_cache(maxsize=256)
def _known_dtype(name: str) -> np.dtype:
    try:
        dtype = np.dtype(jnp.dtype(name))
        planes.split_planes(np.empty(0, dtype))  # No planes would hold any number of elements.
    except (TypeError, ValueError) as error:
        raise FormatError(f"unknown dtype {name!r}") from error
    if str(dtype) != name:
        raise FormatError(f"unknown dtype {name!r}")
    return dtype
