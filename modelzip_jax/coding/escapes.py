"""Rare symbols through an escape, for histograms whose tail 12-bit frequencies cannot follow.

A symbol that occurs gets at least 1/4096 of the code space. Per-tensor absmax quantization to 8
bits leaves up to 200 symbols that are rarer, and together they would take 0.5 % (Laplace) to 1 %
(Student's t) of the file. Instead one of them stands for all of them, and which it was is told in a
segment of its own, with its own table. Splitting a code in two levels loses nothing: the entropy is
that of the escape plus that of the escaped.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from modelzip_jax.coding.frequencies import fit_all
from modelzip_jax.coding.tables import BITS
from modelzip_jax.errors import FormatError

__all__ = ["Division", "divide", "extract", "restore"]

_UNIT = 2**BITS
_EIGHTHS = np.array([2, 4, 8, 16, 32])
"""A symbol is rare if it occurs at most so many eighths of a unit: what is tried."""
_SAMPLE = 1024
_BLOCK = 1 << 17


class Division(NamedTuple):
    """How the symbols of a histogram are coded.

    rare: uint8[k], the symbols that are escaped; the first of them, the most frequent, stands for all. Empty without
    escapes. tables: uint32[256] frequencies, of the symbols with escapes and of the escaped ones. lengths, bits: how
    many symbols each table codes, and what they take. plain_bits: what one table takes with all symbols under it.
    """

    rare: UInt8[np.ndarray, " k"]
    tables: tuple[np.ndarray, ...]
    lengths: tuple[int, ...]
    bits: tuple[float, ...]
    plain_bits: float


def divide(counts: Int64[np.ndarray, "n 256"]) -> list[Division]:
    """Which symbols of each histogram to escape so that segments and tables together are smallest.

    Args:
        counts: int64[n, 256], see `histograms.count`.

    >>> weights = np.random.default_rng(0).laplace(0, 9, 10**6)
    >>> symbols = (np.clip(np.round(weights), -127, 127) + 128).astype(np.int64)
    >>> tailed, flat = divide(np.stack([np.bincount(symbols, minlength=256), np.full(256, 100)]))
    >>> len(tailed.rare) > 50, len(flat.rare)
    (True, 0)
    """
    whose, sets = _rare_sets(counts)
    common, escaped = _divided(counts[whose], sets)
    fits = fit_all(np.concatenate([counts, common, escaped]))
    total = fits.table_bits + fits.bits
    n, pairs = len(counts), len(sets)
    both = total[n : n + pairs] + total[n + pairs :]
    best = np.full(n, -1)
    fewest = total[:n].copy()
    for pair, row in enumerate(whose.tolist()):
        if both[pair] < fewest[row]:
            best[row], fewest[row] = pair, both[pair]
    sums, escapes = counts.sum(axis=1).tolist(), escaped.sum(axis=1).tolist()
    found = []
    for row, pair in enumerate(best.tolist()):
        used, lengths, rare = [row], [sums[row]], np.empty(0, np.uint8)
        if pair >= 0:
            used, lengths = [n + pair, n + pairs + pair], [sums[row], escapes[pair]]
            rare = _by_frequency(escaped[pair])
        bits = tuple(fits.bits[used].tolist())
        found.append(Division(rare, tuple(fits.frequencies[used]), tuple(lengths), bits, float(total[row])))
    return found


def _rare_sets(counts: np.ndarray) -> tuple[Int64[np.ndarray, " sets"], Bool[np.ndarray, "sets 256"]]:
    """Sets of symbols that may be worth escaping: whose each is, ascending, and its symbols; small sets first."""
    most = counts.sum(axis=1)[:, None] * _EIGHTHS
    sets = (counts * (_UNIT * 8))[:, None] <= most[:, :, None]
    sets &= (counts > 0)[:, None]
    sizes = np.count_nonzero(sets, axis=2)
    # One with no more symbols than the one before is the same.
    worth = (sizes >= 2) & (np.diff(sizes, axis=1, prepend=0) > 0)
    return np.nonzero(worth)[0], sets[worth]


def _divided(counts: np.ndarray, rare: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histograms with escapes in place of rare symbols, and those of what is escaped."""
    escaped = np.where(rare, counts, 0)
    common = counts - escaped
    common[np.arange(len(counts)), escaped.argmax(axis=1)] = escaped.sum(axis=1)
    return common, escaped


def _by_frequency(counts: np.ndarray) -> np.ndarray:
    (symbols,) = np.nonzero(counts)
    return symbols[np.argsort(-counts[symbols], kind="stable")].astype(np.uint8)


def extract(symbols: UInt8[np.ndarray, " n"], rare: UInt8[np.ndarray, " k"]) -> UInt8[np.ndarray, " m"]:
    """The rare ones among the symbols, in their order.

    Args:
        symbols: uint8[n].
        rare: uint8[k], k >= 1.

    >>> extract(np.array([5, 9, 5, 8], np.uint8), np.array([8, 9], np.uint8)).tolist()
    [9, 8]
    """
    # What is far from the most frequent run of other symbols is found by vector instructions.
    edges = np.sort(rare)
    runs = np.diff(edges, append=edges[:1]) - np.uint8(1)
    sample = symbols[:: max(symbols.size // _SAMPLE, 1)]
    run = np.searchsorted(edges, sample, side="right") - 1
    widest = int(np.bincount(run % edges.size, minlength=edges.size).argmax())
    start, width = np.uint8((int(edges[widest]) + 1) % 256), runs[widest]
    found = [_beyond(symbols[at : at + _BLOCK], start, width) for at in range(0, symbols.size, _BLOCK)]
    candidates = np.concatenate([*found, symbols[:0]])
    is_rare = np.zeros(256, np.bool_)
    is_rare[rare] = True
    return candidates[is_rare[candidates]]


def _beyond(symbols: np.ndarray, start: np.uint8, width: np.uint8) -> np.ndarray:
    """The symbols that are not among the `width` ones from `start` on."""
    far = symbols - start >= width
    # Few are, so most words of eight have none.
    whole = symbols.size - symbols.size % 8
    marks = far[:whole].view(np.uint64)
    (words,) = np.nonzero(marks != 0)
    (at,) = np.nonzero(marks.take(words).view(np.bool_))
    found = np.ascontiguousarray(symbols[:whole]).view(np.uint64).take(words).view(np.uint8).take(at)
    return np.append(found, symbols[whole:][far[whole:]])


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
