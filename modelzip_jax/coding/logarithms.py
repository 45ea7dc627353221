"""Logarithms in fixed point from integers alone: the same to the last bit on every machine."""

from __future__ import annotations

import functools

import numpy as np

from modelzip_jax.coding.tables import BITS

__all__ = ["EXACT", "FRACTION_BITS", "RATIO_BITS", "log2", "log_ratios", "small_log2"]

FRACTION_BITS = 32
"""Bits behind the point of `log2`."""
EXACT = 1 << 26
"""Fewer symbols than that, times the logarithm of each one's share, sum to an int64."""
RATIO_BITS = 40
"""Bits behind the point of `log_ratios`."""
_INDEX_BITS = 12


@functools.cache
def log_ratios() -> np.ndarray:
    """ln((f + 1) / f) in fixed point of 40 bits for f in 1 .. 2**BITS, by an all-integer series.

    ln(1 + 1/f) = 2 * sum over odd k of 1 / (k * (2 f + 1)**k). Entry 0 is unused.
    """
    odd = 2 * np.arange(2**BITS + 1, dtype=np.int64) + 1
    power = (2 << RATIO_BITS) // odd
    total = np.zeros_like(odd)
    for k in range(1, 2 * RATIO_BITS, 2):
        total += power // k
        power //= odd * odd
    return total


@functools.cache
def _log2_table() -> np.ndarray:
    """log2(i / 4096) for i in 4096 .. 8192 in fixed point of 32 bits: one bit at a time, by squaring."""
    mantissa = np.arange(1 << _INDEX_BITS, (2 << _INDEX_BITS) + 1, dtype=np.uint64) << np.uint64(
        31 - _INDEX_BITS
    )
    logs = np.zeros(mantissa.size, np.int64)
    one = np.uint64(1)
    for _ in range(FRACTION_BITS):
        mantissa = (mantissa * mantissa) >> np.uint64(31)
        carry = mantissa >> np.uint64(32)
        logs = 2 * logs + carry.astype(np.int64)
        mantissa = np.where(carry == one, mantissa >> one, mantissa)
    logs[-1] = 1 << FRACTION_BITS  # of 2, whose first bit is before the point
    return logs


@functools.cache
def small_log2() -> np.ndarray:
    """`log2` of 0 (as if it were 1) to 2**BITS: of all frequencies."""
    return _any_log2(np.maximum(np.arange(2**BITS + 1), 1))


def log2(values: np.ndarray) -> np.ndarray:
    """log2 of int64 values of 1 .. 2**52 in fixed point of 32 bits, to about 1e-8."""
    values = np.asarray(values, np.int64)
    if values.size and int(values.max()) <= 2**BITS:
        return small_log2()[values]
    return _any_log2(values)


def _any_log2(values: np.ndarray) -> np.ndarray:
    exponent = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1  # exact below 2**53
    scaled = values << (52 - exponent)
    index, rest = scaled >> (52 - _INDEX_BITS), scaled & ((1 << (52 - _INDEX_BITS)) - 1)
    table, at = _log2_table(), index - (1 << _INDEX_BITS)
    step = table[at + 1] - table[at]
    # 20 bits of what lies between two entries suffice: a step has at most 21.
    between = (step * (rest >> (32 - _INDEX_BITS))) >> 20
    return (exponent << FRACTION_BITS) + table[at] + between
