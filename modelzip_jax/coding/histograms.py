"""Static byte histograms: counting, normalizing to a power of two, and a compact stored form.

Only integers decide a frequency and what costs less, so the same counts give the same bytes on every
machine (a logarithm of floats may differ in its last bit between two of them). The stored table is what
makes small tensors expensive, so `fit_frequencies` may trade precision for table bytes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt8, UInt32

from modelzip_jax.coding.frequencies import fit_all, normalize_all
from modelzip_jax.coding.logarithms import EXACT, FRACTION_BITS, log2
from modelzip_jax.coding.tables import BITS, decode_table, encode_table

__all__ = [
    "BITS",
    "code_length",
    "count",
    "decode_table",
    "encode_table",
    "entropies",
    "entropy",
    "fit_frequencies",
    "normalize_counts",
]

_BLOCK = 1 << 20


def count(symbols: UInt8[np.ndarray, " ..."]) -> Int64[np.ndarray, " 256"]:
    """Counts each byte value.

    Args:
        symbols: uint8 array of any shape.

    Returns:
        int64[256], the number of occurrences of each value.

    >>> count(np.array([3, 3, 7], np.uint8))[[3, 7]].tolist()
    [2, 1]
    """
    flat = np.ascontiguousarray(symbols, np.uint8).reshape(-1)
    totals = np.zeros(256, np.int64)
    # Blocks: bincount widens its input to int64. Pairs of bytes: half as many increments.
    for start in range(0, flat.size - flat.size % 2, _BLOCK):
        block = flat[start : min(start + _BLOCK, flat.size - flat.size % 2)]
        if block.size < 1 << 16:
            totals += np.bincount(block, minlength=256)
            continue
        pairs = np.bincount(block.view(np.uint16), minlength=1 << 16).reshape(256, 256)
        totals += pairs.sum(axis=0) + pairs.sum(axis=1)
    if flat.size % 2:
        totals[flat[-1]] += 1
    return totals


def normalize_counts(counts: Integer[np.ndarray, " 256"], bits: int = BITS) -> UInt32[np.ndarray, " 256"]:
    """Frequencies summing to `2**bits` with the smallest coded size for these counts.

    The coded size, sum of `counts * log2(2**bits / frequencies)`, is separable and convex, so
    exchanging single units until no exchange helps reaches the optimum (up to the 40 bits that
    its logarithms carry). Every occurring symbol gets at least 1, every other one 0. Without
    any occurrence all of the mass goes to symbol 0.

    Args:
        counts: int[256], occurrences, not negative.
        bits: log2 of the sum.

    Returns:
        uint32[256].

    Raises:
        ValueError: wrong shape, a negative count, or more symbols than units.

    >>> normalize_counts(np.bincount([0, 0, 0, 1], minlength=256))[:2].tolist()
    [3072, 1024]
    """
    counts = np.asarray(counts)
    if counts.shape != (256,) or (counts < 0).any():
        raise ValueError(f"counts must be 256 non-negative integers, got shape {counts.shape}")
    used = int(np.count_nonzero(counts))
    if used == 0:
        return np.eye(1, 256, dtype=np.uint32)[0] * np.uint32(2**bits)
    if used > 2**bits:
        raise ValueError(f"{used} symbols do not fit in 2**{bits} units")
    return normalize_all(counts[None].astype(np.int64), bits)[0]


def code_length(counts: Integer[np.ndarray, " 256"], frequencies: Integer[np.ndarray, " 256"]) -> float:
    """Bits that an ideal coder spends on `counts` symbols under `frequencies`.

    The same on every machine, to the last bit. Infinite if a symbol occurs whose frequency is 0.

    Args:
        counts: int[256], occurrences below 2**52.
        frequencies: int[256], their sum below 2**52.

    >>> code_length(np.bincount([0, 0, 0, 1], minlength=256), np.array([2048] * 2 + [0] * 254))
    4.0
    """
    counts, frequencies = np.asarray(counts, np.int64), np.asarray(frequencies, np.int64)
    used = counts > 0
    if not frequencies[used].all():
        return float("inf")
    lengths = log2(frequencies.sum(keepdims=True)) - log2(frequencies[used])
    # 256 products of 16 bits of a count and a logarithm below 52 * 2**32 sum to an int64.
    left, total, shift = counts[used], 0, 0
    while left.any():
        total += int((left & 0xFFFF) @ lengths) << shift
        left, shift = left >> 16, shift + 16
    return total / (1 << FRACTION_BITS)


def entropy(counts: Integer[np.ndarray, " 256"]) -> float:
    """Total 0-order entropy of the counted symbols, in bits (not bits a symbol).

    >>> entropy(np.bincount([0, 1, 2, 3], minlength=256))
    8.0
    """
    return code_length(counts, counts) if np.any(counts) else 0.0


def entropies(counts: Int64[np.ndarray, "n 256"]) -> Float64[np.ndarray, " n"]:
    """`entropy` of each of many histograms, to the last bit.

    >>> entropies(np.eye(2, 256, dtype=np.int64) + np.eye(2, 256, 1, dtype=np.int64)).tolist()
    [2.0, 2.0]
    """
    sums = counts.sum(axis=1)
    logs = np.zeros_like(counts)
    used = counts > 0
    logs[used] = log2(counts[used])
    found = (sums * log2(np.maximum(sums, 1)) - (counts * logs).sum(axis=1)) / (1 << FRACTION_BITS)
    for row in np.flatnonzero(sums >= EXACT):
        found[row] = entropy(counts[row])
    return found


def fit_frequencies(counts: Integer[np.ndarray, " 256"]) -> UInt32[np.ndarray, " 256"]:
    """Frequencies with the fewest bytes for symbols *and* table together, see `fit_all`.

    Returns:
        uint32[256] summing to `2**BITS`.

    >>> tiny = np.zeros(256, np.int64)
    >>> tiny[:8] = [1, 2, 6, 9, 8, 5, 2, 1]
    >>> len(encode_table(fit_frequencies(tiny))) < len(encode_table(normalize_counts(tiny)))
    True
    """
    return fit_all(np.asarray(counts, np.int64)[None]).frequencies[0]
