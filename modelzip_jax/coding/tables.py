"""The stored form of a frequency table: about a byte a symbol, read with suspicion."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int64

from modelzip_jax.errors import FormatError

__all__ = ["BITS", "decode_table", "encode_table", "stored_bits"]

BITS = 12
"""Frequencies of a table sum to `2**BITS`; the rANS kernels pack entries around this number."""

# Largest change of a bit length.
_MOST = BITS + 1
# Longest table: 21 header bits, then at most 9 + 11 bits a symbol.
_LONGEST = 672


def encode_table(frequencies: np.ndarray) -> bytes:
    """Stores a table: range of symbols, then each frequency as a bit length and its lower bits.

    Layout, most significant bit first: first symbol (8 bits), symbols in the (cyclic) range - 1
    (8), a power of two that divides all frequencies (`0`, or `1` and 4 bits), the first bit
    length (4), its lower bits; then for each further symbol but the last the change of the bit
    length as a zigzag Exp-Golomb code and the lower bits. The last frequency is what is left.
    A single symbol ends after 17 bits. Zero bits pad the last byte.

    Args:
        frequencies: int[256] summing to `2**BITS`.

    Raises:
        ValueError: the frequencies do not sum to `2**BITS`.

    >>> len(encode_table(np.array([4000, 96] + [0] * 254)))
    4
    """
    values = np.asarray(frequencies, np.int64)
    if values.shape != (256,) or (values < 0).any() or int(values.sum()) != 2**BITS:
        raise ValueError(f"frequencies must be 256 non-negative integers summing to {2**BITS}")
    first, size = _cyclic_range(values)
    used = values[(first + np.arange(size)) % 256]
    divisor = int(np.bitwise_or.reduce(used))
    shift = (divisor & -divisor).bit_length() - 1
    if shift * (np.count_nonzero(used) - 1) <= 4:  # It would not earn the bits that state it.
        shift = 0
    out = [f"{first:08b}{size - 1:08b}", f"1{shift:04b}" if shift else "0"]
    lower, changes = _written()
    previous = None
    for value in (used[:-1] >> shift).tolist():
        length = value.bit_length()
        out.append(f"{length:04b}" if previous is None else changes[length - previous])
        out.append(lower[value])
        previous = length
    bits = "".join(out)
    size_bytes = -(-len(bits) // 8)
    return int(bits.ljust(8 * size_bytes, "0"), 2).to_bytes(size_bytes, "big")


def _cyclic_range(values: np.ndarray) -> tuple[int, int]:
    """Start and size of the shortest cyclic run of symbols that holds all occurring ones."""
    (used,) = np.nonzero(values)
    gaps = np.diff(used, append=used[0] + 256)
    widest = int(gaps.argmax())
    first = int(used[(widest + 1) % used.size])
    return first, 257 - int(gaps[widest])


@functools.cache
def _written() -> tuple[list[str], dict[int, str]]:
    """The lower bits of each frequency, and each change of a bit length."""
    lower = [f"{value:b}"[1:] for value in range(2**BITS + 1)]
    return lower, {change: _exp_golomb(change) for change in range(-_MOST, _MOST + 1)}


def _exp_golomb(change: int) -> str:
    code = f"{(2 * change if change >= 0 else -2 * change - 1) + 1:b}"
    return "0" * (len(code) - 1) + code


@functools.cache
def _lengths() -> tuple[np.ndarray, np.ndarray]:
    """Bit lengths of all frequencies, and what a change of bit length by -13 .. 13 takes: int16."""
    frequencies = np.array([n.bit_length() for n in range(2**BITS + 1)], np.int16)
    changes = np.array([len(_exp_golomb(n)) for n in range(-_MOST, _MOST + 1)], np.int16)
    return frequencies, changes


def stored_bits(
    units: Int64[np.ndarray, " symbols"],
    gaps: Int64[np.ndarray, " symbols"],
    first: Int64[np.ndarray, " tables"],
    sizes: Int64[np.ndarray, " tables"],
    shifts: Int64[np.ndarray, " tables"],
) -> Int64[np.ndarray, " tables"]:
    """Bits that `encode_table` needs for each of many tables, before it fills the last byte.

    Args:
        units: the frequencies that are not 0, divided by `2**shifts`: those of one table behind those of
            another, in the cyclic order in which they are stored.
        gaps: how far the next symbol is; what a table's last has is not read.
        first: where the frequencies of each table begin.
        sizes: how many they are.
        shifts: a power of two that divides the frequencies.

    >>> bits = stored_bits(*map(np.array, ([4000, 96], [2, 254], [0], [2], [0])))
    >>> bits.tolist(), 8 * len(encode_table(np.array([4000, 0, 96] + [0] * 253)))
    ([38], 40)
    """
    of_frequency, of_change = _lengths()
    lengths = of_frequency.take(units)
    divisors = np.bitwise_or.reduceat(units, first)
    stated = shifts + np.bitwise_count((divisors & -divisors) - 1)
    stated[stated * (sizes - 1) <= 4] = 0
    # By how much the stored lengths differ from those of the units.
    more = (shifts - stated).astype(np.int16)
    last = first + sizes - 1
    changes = np.zeros_like(lengths)
    changes[:-1] = of_change.take(lengths[1:] - lengths[:-1] + _MOST)
    # The last frequency is what is left.
    changes[last] = 0
    changes[last[sizes > 1] - 1] = 0
    _fill_holes(changes, lengths, gaps, first, last, more)
    spent = np.add.reduceat(lengths + changes, first, dtype=np.int16) - lengths[last]
    return 17 + 4 * (stated > 0) + np.where(sizes > 1, 4 + spent + (sizes - 1) * (more - 1), 0)


def _fill_holes(
    changes: np.ndarray,
    lengths: np.ndarray,
    gaps: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    more: np.ndarray,
) -> None:
    """Where symbols between two do not occur, their bit lengths are 0, and both changes are stored."""
    holes = np.flatnonzero(gaps > 1)
    table = np.searchsorted(first, holes, side="right") - 1
    inside = holes < last[table]
    holes, table = holes[inside], table[inside]
    of_change = _lengths()[1]
    down = of_change[_MOST - lengths[holes] - more[table]]
    up = np.where(holes + 1 < last[table], of_change[lengths[holes + 1] + more[table] + _MOST], 0)
    changes[holes] = down + up + gaps[holes] - 2


class _Bits:
    """Reads bits from `data`, most significant first, and never past its end."""

    def __init__(self, data: bytes, offset: int) -> None:
        self.offset = offset
        window = bytes(data[offset : offset + _LONGEST])
        self.bits = f"{int.from_bytes(window):0{8 * len(window)}b}" if window else ""
        self.at = 0

    def fail(self, what: str) -> FormatError:
        return FormatError(f"frequency table at byte {self.offset + self.at // 8}: {what}")

    def take(self, size: int) -> int:
        if self.at + size > len(self.bits):
            raise self.fail("the data ends inside the table")
        self.at += size
        return int(self.bits[self.at - size : self.at] or "0", 2)

    def exp_golomb(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 4:
                raise self.fail("no frequency changes its bit length that much")
        code = (1 << zeros | self.take(zeros)) - 1
        return code // 2 if code % 2 == 0 else -(code + 1) // 2


def decode_table(data: bytes, offset: int = 0) -> tuple[np.ndarray, int]:
    """Reads a table that `encode_table` wrote.

    Args:
        data: bytes that hold the table.
        offset: where it starts.

    Returns:
        The frequencies, uint32[256] summing to `2**BITS`, and the offset behind the table.

    Raises:
        FormatError: truncated, or not what `encode_table` writes; names the byte offset.

    >>> frequencies, end = decode_table(encode_table(np.array([4000, 96] + [0] * 254)))
    >>> frequencies[:3].tolist(), end
    ([4000, 96, 0], 4)
    """
    bits = _Bits(data, offset)
    first, size = bits.take(8), bits.take(8) + 1
    shift = bits.take(4) if bits.take(1) else 0
    if shift >= BITS:
        raise bits.fail(f"frequencies cannot be multiples of 2**{shift}")
    left, length = 2**BITS >> shift, 0
    values = np.zeros(256, np.uint32)
    for k in range(size - 1):
        length = bits.take(4) if k == 0 else length + bits.exp_golomb()
        if not 0 <= length <= BITS or (k == 0 and length == 0):
            raise bits.fail(f"bit length {length} of a frequency is out of range")
        value = (1 << (length - 1)) | bits.take(length - 1) if length else 0
        left -= value
        if left < 1:
            raise bits.fail(f"the frequencies sum to more than {2**BITS}")
        values[(first + k) % 256] = value << shift
    values[(first + size - 1) % 256] = left << shift
    if bits.take(-bits.at % 8):
        raise bits.fail("the padding is not zero")
    return values, offset + bits.at // 8
