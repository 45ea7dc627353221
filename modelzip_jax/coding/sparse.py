"""Masks in the file: a bitmap, the gaps between kept weights, or a symbol among the codes.

The entropies differ little; what an actual coder with a table can reach of them does. The smallest
of the three is chosen for each leaf.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from modelzip_jax.coding import histograms
from modelzip_jax.coding.contexts import Classed, by_classes
from modelzip_jax.coding.state_parts import ByState
from modelzip_jax.errors import FormatError
from modelzip_jax.packed import Bits, Elementwise, PackedArray, packed_kind, static
from modelzip_jax.quantization.trellis.codes import TrellisCodes

__all__ = ["Gaps", "Joint", "in_memory", "stored", "stream_bits"]


@packed_kind("gaps")
class Gaps(PackedArray):
    """A mask as the numbers of zeros before each one and behind the last: bytes, 255 for 255 and more."""

    runs: jax.Array
    count: int = static()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.count,)


@packed_kind("joint")
class Joint(PackedArray):
    """Codes of the kept weights, with the symbol `2**bits` where the mask has a zero.

    The mask beside it is None.
    """

    symbols: jax.Array
    bits: int = static()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(np.shape(self.symbols))


def stream_bits(stream: np.ndarray) -> float:
    """Estimated bits of a byte stream: coded, with its table, or raw if that is less.

    >>> stream_bits(np.zeros(1000, np.uint8)) < 100
    True
    """
    counts = histograms.count(stream)
    table = 8 + 6 * int(np.count_nonzero(counts))
    return float(min(8.0 * stream.size, histograms.entropy(counts) + table))


def stored(packed: PackedArray) -> PackedArray:
    """The packed array with its mask, if it has one, and its codes in the form that takes the fewest bits."""
    if packed.mask_field is None:
        return by_classes(_map_inner(packed, stored))
    mask_field, inner_field = packed.mask_field, _inner_field(packed)
    mask, inner = getattr(packed, mask_field), getattr(packed, inner_field)
    flags = mask.unpack_host()
    gaps = Gaps(_gaps(flags), mask.count)
    bitmap_bits = stream_bits(np.packbits(flags, bitorder="little"))
    mask_form, mask_bits = min(((mask, bitmap_bits), (gaps, stream_bits(gaps.runs))), key=lambda m: m[1])
    joint = _joint(flags, inner)
    if joint is not None:
        codes = getattr(inner, inner.element_field)
        if stream_bits(joint.symbols) < mask_bits + stream_bits(codes.unpack_host()):
            inner = dataclasses.replace(inner, **{inner.element_field: joint})
            return dataclasses.replace(packed, **{mask_field: None, inner_field: inner})  # type: ignore[type-var]
    return dataclasses.replace(packed, **{mask_field: mask_form, inner_field: stored(inner)})  # type: ignore[type-var]


def in_memory(packed: PackedArray) -> PackedArray:
    """The inverse of `stored`.

    Raises:
      FormatError: mask and codes, or codes and their classes, do not fit together.
    """
    if isinstance(packed, Classed):
        return packed.in_order()
    if isinstance(packed, TrellisCodes) and isinstance(packed.codes, ByState):
        return dataclasses.replace(packed, codes=packed.codes.in_order(packed))
    if packed.mask_field is None:
        return _map_inner(packed, in_memory)
    mask, inner_field = getattr(packed, packed.mask_field), _inner_field(packed)
    inner = getattr(packed, inner_field)
    if mask is None:
        joint = getattr(inner, inner.element_field) if isinstance(inner, Elementwise) else None
        if not isinstance(joint, Joint):
            raise FormatError("a mask is said to be among the codes, but there are none")
        symbols = np.asarray(joint.symbols)
        if type(joint.bits) is not int or not 1 <= joint.bits <= 7 or symbols.dtype != np.uint8:
            raise FormatError(f"a mask among {symbols.dtype} codes of {joint.bits} bits")
        flags = symbols != 1 << joint.bits
        codes = symbols[flags]
        if codes.size and int(codes.max()) >> joint.bits:
            raise FormatError(f"the symbol {int(codes.max())} in codes of {joint.bits} bits")
        inner = dataclasses.replace(inner, **{inner.element_field: Bits.pack(codes, joint.bits)})
    else:
        flags = _flags(np.asarray(mask.runs), mask.count) if isinstance(mask, Gaps) else mask.unpack_host()
        inner = in_memory(inner)
    bits = Bits.pack(flags, 1)
    if isinstance(inner, Elementwise):
        held = getattr(inner, inner.element_field)
        count = held.size if isinstance(held, PackedArray) else int(np.size(held))
        if count != np.count_nonzero(flags):
            raise FormatError(f"{count} stored weights for a mask that keeps {np.count_nonzero(flags)}")
    return dataclasses.replace(packed, **{packed.mask_field: bits, inner_field: inner})  # type: ignore[type-var]


def _map_inner(packed: PackedArray, function: Any) -> PackedArray:
    """Applies `function` to the packed arrays among the fields, except `Bits`."""
    fields = {f.name: getattr(packed, f.name) for f in dataclasses.fields(packed)}  # type: ignore[arg-type]
    nested = {k: v for k, v in fields.items() if isinstance(v, PackedArray) and not isinstance(v, Bits)}
    if not nested:
        return packed
    return dataclasses.replace(packed, **{k: function(v) for k, v in nested.items()})  # type: ignore[type-var]


def _inner_field(packed: PackedArray) -> str:
    """The field, beside the mask, that holds the masked packed array."""
    for field in dataclasses.fields(packed):  # type: ignore[arg-type]
        if field.name != packed.mask_field and isinstance(getattr(packed, field.name), PackedArray):
            return field.name
    raise FormatError(f"the packed kind {packed.tag!r} has a mask but nothing that it masks")


def _joint(flags: np.ndarray, inner: PackedArray) -> Joint | None:
    if not isinstance(inner, Elementwise):
        return None
    codes = getattr(inner, inner.element_field)
    if not isinstance(codes, Bits) or codes.bits == 8:
        return None
    symbols = np.full(flags.size, 1 << codes.bits, np.uint8)
    symbols[flags == 1] = codes.unpack_host()
    return Joint(symbols, codes.bits)


def _gaps(flags: np.ndarray) -> np.ndarray:
    """Bytes of `Gaps` for 0/1 flags, as if another one followed.

    >>> _gaps(np.array([0, 0, 1, 1, 0], np.uint8)).tolist()
    [2, 0, 1]
    """
    at = np.append(np.flatnonzero(flags), flags.size)
    gaps = np.diff(at, prepend=-1) - 1
    ends = np.cumsum(gaps // 255 + 1)
    runs = np.full(int(ends[-1]), 255, np.uint8)
    runs[ends - 1] = gaps % 255
    return runs


def _flags(runs: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `_gaps`. The sum of the gaps must be the claimed count before anything is made of it."""
    if runs.dtype != np.uint8 or runs.ndim != 1:
        raise FormatError(f"the gaps of a mask are {runs.dtype}, not bytes")
    position = np.cumsum(np.where(runs == 255, 255, runs.astype(np.int64) + 1))
    at = position[runs != 255] - 1
    if not runs.size or runs[-1] == 255 or at[-1] != count:
        raise FormatError(f"the gaps of a mask do not end at {count}")
    flags = np.zeros(count, np.uint8)
    flags[at[:-1]] = 1
    return flags
