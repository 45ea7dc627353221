"""Rare symbols through an escape, for histograms whose tail 12-bit frequencies cannot follow.

A symbol that occurs gets at least 1/4096 of the code space. Per-tensor absmax quantization to 8
bits leaves up to 200 symbols that are rarer, and together they would take 0.5 % (Laplace) to 1 %
(Student's t) of the file. Instead one of them stands for all of them, and which it was is told in a
segment of its own, with its own table. Splitting a code in two levels loses nothing: the entropy is
that of the escape plus that of the escaped.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from modelzip_jax.coding import histograms
from modelzip_jax.errors import FormatError

__all__ = ["extract", "rare_symbols", "restore"]

_UNIT = 2**histograms.BITS


def rare_symbols(counts: np.ndarray) -> np.ndarray:
    """Which symbols to escape so that both segments and both tables together are smallest.

    Args:
        counts: int[256], see `histograms.count`.

    Returns:
        uint8[k], the most frequent first: that one serves as the escape. Empty if escaping does
        not pay.

    >>> weights = np.random.default_rng(0).laplace(0, 9, 10**6)
    >>> tailed = histograms.count((np.clip(np.round(weights), -127, 127) + 128).astype(np.uint8))
    >>> len(rare_symbols(tailed)) > 50, len(rare_symbols(np.full(256, 100)))
    (True, 0)
    """
    counts = np.asarray(counts, np.int64)
    total = int(counts.sum())
    best, fewest = np.empty(0, np.uint8), sum(histograms.fitted_bits(counts))
    for eighths in (2, 4, 8, 16, 32):
        chosen = np.flatnonzero((counts > 0) & (counts * _UNIT * 8 <= total * eighths))
        if chosen.size < 2 or np.array_equal(np.sort(best), chosen):
            continue
        common, rare = counts.copy(), np.zeros_like(counts)
        rare[chosen] = counts[chosen]
        order = chosen[np.argsort(-counts[chosen], kind="stable")]
        common[chosen] = 0
        common[order[0]] = rare.sum()
        bits = sum(histograms.fitted_bits(common)) + sum(histograms.fitted_bits(rare))
        if bits < fewest:
            best, fewest = order.astype(np.uint8), bits
    return best


def extract(
    symbols: UInt8[np.ndarray, " n"], rare: UInt8[np.ndarray, " k"]
) -> tuple[UInt8[np.ndarray, " n"], UInt8[np.ndarray, " m"]]:
    """Replaces rare symbols by the escape `rare[0]`.

    Args:
        symbols: uint8[n].
        rare: uint8[k], k >= 1, from `rare_symbols`.

    Returns:
        The symbols with escapes, uint8[n], and the escaped ones in their order, uint8[m].

    >>> common, escaped = extract(np.array([5, 9, 5, 8], np.uint8), np.array([8, 9], np.uint8))
    >>> common.tolist(), escaped.tolist()
    ([5, 8, 5, 8], [9, 8])
    """
    is_rare = np.zeros(256, np.bool_)
    is_rare[rare] = True
    at = np.flatnonzero(is_rare[symbols])
    common = symbols.copy()
    common[at] = rare[0]
    return common, symbols[at]


def restore(common: np.ndarray, escaped: np.ndarray, escape: int) -> np.ndarray:
    """Undoes `extract`.

    Args:
        common: uint8[n], symbols with escapes.
        escaped: uint8[m], what the escapes stand for.
        escape: the symbol that marks an escape.

    Returns:
        uint8[n], a new array.

    Raises:
        FormatError: there are not as many escapes as escaped symbols.

    >>> restore(np.array([5, 8, 5, 8], np.uint8), np.array([9, 8], np.uint8), 8).tolist()
    [5, 9, 5, 8]
    """
    at = np.flatnonzero(common == escape)
    if at.size != escaped.size:
        raise FormatError(f"{at.size} escapes in a segment, but {escaped.size} escaped symbols")
    symbols = common.copy()
    symbols[at] = escaped
    return symbols
