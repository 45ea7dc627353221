"""The stored form of a frequency table: about a byte a symbol, read with suspicion."""

from __future__ import annotations

import numpy as np

from modelzip_jax.errors import FormatError

__all__ = ["BITS", "decode_table", "encode_table", "table_sizes"]

BITS = 12
"""Frequencies of a table sum to `2**BITS`; the rANS kernels pack entries around this number."""

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
    previous = None
    for value in (used[:-1] >> shift).tolist():
        length = value.bit_length()
        out.append(f"{length:04b}" if previous is None else _exp_golomb(length - previous))
        out.append(f"{value:b}"[1:])
        previous = length
    bits = "".join(out)
    size_bytes = -(-len(bits) // 8)
    return int(bits.ljust(8 * size_bytes, "0"), 2).to_bytes(size_bytes, "big")


def table_sizes(tables: np.ndarray) -> np.ndarray:
    """The bytes that `encode_table` takes for each of several tables with the same symbols.

    Args:
        tables: int[k, 256], each summing to `2**BITS`, and 0 in the same places.

    Returns:
        int64[k].

    >>> tables = np.array([[4000, 96] + [0] * 254, [2048, 2048] + [0] * 254])
    >>> table_sizes(tables).tolist(), [len(encode_table(t)) for t in tables]
    ([4, 4], [4, 4])
    """
    tables = np.asarray(tables, np.int64)
    first, size = _cyclic_range(tables[0])
    used = tables[:, (first + np.arange(size)) % 256]
    divisor = np.bitwise_or.reduce(used, axis=1)
    shift = np.frexp(divisor & -divisor)[1] - 1
    shift[shift * (np.count_nonzero(tables[0]) - 1) <= 4] = 0
    length = np.frexp(used[:, :-1] >> shift[:, None])[1].astype(np.int64)
    change = np.diff(length, axis=1)
    code = np.where(change >= 0, 2 * change, -2 * change - 1) + 1
    bits = 16 + np.where(shift, 5, 1) + np.maximum(length - 1, 0).sum(1)
    bits += 4 * (size > 1) + (2 * np.frexp(code)[1] - 1).sum(1)
    return -(-bits // 8)


def _cyclic_range(values: np.ndarray) -> tuple[int, int]:
    """Start and size of the shortest cyclic run of symbols that holds all occurring ones."""
    (used,) = np.nonzero(values)
    gaps = np.diff(used, append=used[0] + 256)
    widest = int(gaps.argmax())
    first = int(used[(widest + 1) % used.size])
    return first, 257 - int(gaps[widest])


def _exp_golomb(change: int) -> str:
    code = f"{(2 * change if change >= 0 else -2 * change - 1) + 1:b}"
    return "0" * (len(code) - 1) + code


class _Bits:
    """Reads bits from `data`, most significant first, and never past its end."""

    def __init__(self, data: bytes, offset: int) -> None:
        self.offset = offset
        window = bytes(data[offset : offset + _LONGEST])
        self.bits = "".join(f"{byte:08b}" for byte in window)
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
