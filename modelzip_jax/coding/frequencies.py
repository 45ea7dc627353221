"""Frequency tables for many histograms at once: the same as one after the other, in a tenth of the time.

A histogram may have one table for each precision, an optimal one that is found by exchanging single units.
Here all symbols of all tables lie behind one another in flat arrays, so that NumPy's overhead is paid once.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt32

from modelzip_jax.coding.logarithms import EXACT, FRACTION_BITS, RATIO_BITS, log_ratios, small_log2
from modelzip_jax.coding.tables import BITS, stored_bits

__all__ = ["Fits", "fit_all", "normalize_all"]

_FINE = 1 << 17
"""From so many symbols on the finest table always wins."""
_WEIGHT_BITS = 22
_NEVER = np.iinfo(np.int64).max
_BLOCK = 1 << 16
_DOUBT = 2**-17
"""The bound of `_bounded` is half of this off at most: 1 / (30240 * x**5) of x = 1 / ln(2)."""
_LEAST = 2**-20
"""A scale by which every symbol has one unit."""


class Fits(NamedTuple):
    """frequencies: of the best table, multiples of a power of two. table_bits: what it takes in the file,
    whole bytes. bits: what the symbols take under it."""

    frequencies: UInt32[np.ndarray, "n 256"]
    table_bits: Int64[np.ndarray, " n"]
    bits: Float64[np.ndarray, " n"]


class _Flat(NamedTuple):
    """The symbols that occur, of all histograms, in the cyclic order in which a table stores them.

    counts, symbols, gaps: of each; `gaps` is how far the next symbol is. first, sizes: where a histogram's begin,
    and how many they are.
    """

    counts: np.ndarray
    symbols: np.ndarray
    gaps: np.ndarray
    first: np.ndarray
    sizes: np.ndarray


class _Rows(NamedTuple):
    """Tables to be made: one for each histogram and precision.

    totals: what the units of each sum to. weights, source: of all symbols of all rows, and where a symbol is among
    those of the histograms. of: the row of each. first, sizes: where a row's begin, and how many they are.
    """

    totals: np.ndarray
    weights: np.ndarray
    source: np.ndarray
    of: np.ndarray
    first: np.ndarray
    sizes: np.ndarray

    def take(self, some: np.ndarray) -> tuple[_Rows, np.ndarray]:
        """Some of the rows, and where their symbols are among all."""
        of, first, at = _ranges(self.first[some], self.sizes[some])
        return _Rows(
            self.totals[some], self.weights.take(at), self.source.take(at), of, first, self.sizes[some]
        ), at


def _ranges(starts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranges behind one another: which one each place is of, where each begins, and what is at each place."""
    of = np.repeat(np.arange(sizes.size), sizes)
    first = np.cumsum(sizes) - sizes
    return of, first, np.arange(of.size) + (starts - first).take(of)


def _flattened(counts: np.ndarray) -> _Flat:
    occurs = counts > 0
    places, sizes = np.flatnonzero(occurs), np.count_nonzero(occurs, axis=1)
    symbols, of = places & 255, places >> 8
    ends = np.cumsum(sizes)
    first = ends - sizes
    gaps = np.empty_like(symbols)
    gaps[:-1] = symbols[1:] - symbols[:-1]
    gaps[ends - 1] = symbols[first] + 256 - symbols[ends - 1]
    # The widest gap, the first of them, stays outside of the table.
    keys = gaps << 8 | (255 - symbols)
    widest = np.flatnonzero(keys == np.maximum.reduceat(keys, first).take(of))
    order = np.arange(symbols.size) + (widest + 1 - first).take(of)
    order -= np.where(order >= ends.take(of), sizes.take(of), 0)
    return _Flat(counts.take(places.take(order)), symbols.take(order), gaps.take(order), first, sizes)


def _weights(flat: _Flat) -> np.ndarray:
    """22 bits of each count: times 40 bits of logarithm they stay inside an int64."""
    totals = np.add.reduceat(flat.counts, flat.first)
    excess = np.maximum(np.frexp((totals >> 10).astype(np.float64))[1] + 10 - _WEIGHT_BITS, 0)
    return np.maximum(flat.counts >> np.repeat(excess, flat.sizes), 1) if excess.any() else flat.counts


def _bounded(weights: np.ndarray, scale: np.ndarray, of: np.ndarray) -> np.ndarray:
    """How many units of each symbol gain at least a bound, 1 / `scale` of its row, up to `_DOUBT` of the bound.

    Its unit u + 1 gains a symbol of weight w what w * ln((u + 1) / u) is. With x = w * scale that is at least the
    bound for the first 1 / (1 - exp(-1 / x)) = x + 1 / 2 + 1 / (12 x) - 1 / (720 x**3) + ... units.
    """
    shares = scale.astype(np.float32).take(of)
    shares *= weights
    np.maximum(shares, np.float32(1), out=shares)
    inverse = np.float32(1) / shares
    shares += np.float32(0.5)
    rest = inverse * np.float32(-1 / 720)
    rest *= inverse
    rest += np.float32(1 / 12)
    inverse *= rest
    shares += inverse
    return np.floor(shares, out=shares)


def _sought(rows: _Rows, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scale for each row, how many units it lacks, and how fast these grow with the scale's logarithm."""
    scale = rows.totals / np.add.reduceat(weights, rows.first)
    lacking = rows.totals - np.add.reduceat(_bounded(weights, scale, rows.of), rows.first)
    # In proportion to the scale, but for symbols that would have less than one unit.
    growth = rows.totals.astype(np.float64)
    ahead = np.maximum(lacking / growth, -0.75)
    scale = scale * (1 + ahead)
    left = rows.totals - np.add.reduceat(_bounded(weights, scale, rows.of), rows.first)
    gained = lacking - left
    seen = gained / np.where(np.abs(gained) > 2, ahead, np.inf)
    return scale, left, np.where(seen > 0, np.clip(seen, growth / 64, growth * 2), growth)


def _optimal(rows: _Rows, symbols: np.ndarray) -> np.ndarray:
    """The units of each symbol: they have their sum, and no exchange of two gains anything."""
    weights = rows.weights.astype(np.float32)
    scale, left, growth = _sought(rows, weights)
    units = np.empty(weights.size, np.int64)
    todo, some, beyond = np.arange(left.size), rows, 2.0
    at: slice | np.ndarray = slice(None)
    while todo.size:
        # Between a scale of which units are surely among the best, and one that surely has all of them.
        margin = beyond + np.abs(left[todo]) / 4
        low = scale[todo] * (1 + (np.minimum(left[todo], 0) - margin) / growth[todo])
        high = scale[todo] * (1 + (np.maximum(left[todo], 0) + margin) / growth[todo])
        low, high = np.maximum(low, scale[todo] * _LEAST), np.maximum(high, scale[todo])
        fewer, more = _bounded(weights[at], low, some.of), _bounded(weights[at], high, some.of)
        units[at], worst, next_best = _chosen(some, fewer, more, symbols)
        sure = (next_best < (1 - _DOUBT) / low) & (worst > (1 + _DOUBT) / high)
        todo, beyond = todo[~sure], 4 * beyond
        if todo.size:
            some, at = rows.take(todo)
    return units


def _chosen(
    rows: _Rows, fewer: np.ndarray, more: np.ndarray, symbols: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the units between two numbers as many as a row has left, those that gain most.

    Returns:
        The units, what the worst of those taken gains in each row, and the best of the others; worst is 0 if there are
        not as many, and next is infinite if there are too many already.
    """
    units = fewer.astype(np.int64)
    left = rows.totals - np.add.reduceat(units, rows.first)
    (changed,) = np.nonzero(more > fewer)
    which, _, rank = _ranges(np.zeros(changed.size, np.int64), (more - fewer)[changed].astype(np.int64))
    at = changed[which]
    unit = units[at] + rank
    allowed = unit < rows.totals[rows.of[at]]
    at, unit = at[allowed], unit[allowed]
    gain = rows.weights[at] * log_ratios()[unit]
    # The second sort is one by digits.
    order = np.argsort(-gain)
    order = order[np.argsort(rows.of[at[order]].astype(np.uint16), kind="stable")]
    at, unit, gain = at[order], unit[order], np.append(gain[order], 0)
    of = rows.of[at]
    ends = np.searchsorted(of, np.arange(left.size), side="right")
    first = np.append(0, ends[:-1])
    enough = (left >= 0) & (left <= ends - first)
    left = np.where(enough, left, 0)
    taken = np.arange(of.size) - first[of] < left[of]
    worst = np.where(left > 0, gain[first + left - 1], _NEVER)
    best = np.where(first + left < ends, gain[first + left], 0)
    # Of several that gain the same some may be taken and others not.
    tied = np.flatnonzero((gain[:-1] == worst[of]) & (worst == best)[of])
    if tied.size:
        taken[tied] = _shared(rows, symbols, at[tied], unit[tied], taken[tied])
    np.add.at(units, at[taken], 1)
    fixed = 2.0**RATIO_BITS
    return units, np.where(enough, worst / fixed, 0), best / fixed


def _shared(
    rows: _Rows, symbols: np.ndarray, at: np.ndarray, unit: np.ndarray, taken: np.ndarray
) -> np.ndarray:
    """Which of units that gain the same are taken, as many of each row as before.

    Those that rounded shares have; then more of the first symbols, or less. So it is if single units are moved from
    rounded shares on, the best first, and the first of equals first.
    """
    of = rows.of[at]
    total = np.add.reduceat(rows.weights, rows.first)[of]
    rounded = np.maximum((rows.weights[at] * 2 * rows.totals[of] + total) // (2 * total), 1)
    had = rounded > unit
    missing = np.bincount(of[taken], minlength=rows.sizes.size) - np.bincount(
        of[had], minlength=rows.sizes.size
    )
    (moving,) = np.nonzero(np.where(missing[of] > 0, ~had, had))
    moving = moving[np.lexsort((symbols[rows.source[at[moving]]], of[moving]))]
    row = of[moving]
    had[moving[np.arange(row.size) - np.searchsorted(row, row) < np.abs(missing)[row]]] ^= True
    return had


def _made(flat: _Flat, histograms: np.ndarray, bits: np.ndarray) -> tuple[_Rows, np.ndarray]:
    """The optimal table of each of some histograms with each of some precisions."""
    sizes = flat.sizes[histograms]
    of, first, source = _ranges(flat.first[histograms], sizes)
    rows = _Rows(1 << bits, _weights(flat).take(source), source, of, first, sizes)
    return rows, _optimal(rows, flat.symbols)


def normalize_all(counts: Int64[np.ndarray, "n 256"], bits: int) -> UInt32[np.ndarray, "n 256"]:
    """`histograms.normalize_counts` of each row, in each of which some symbol occurs."""
    flat = _flattened(counts)
    rows, units = _made(flat, np.arange(len(counts)), np.full(len(counts), bits))
    found = np.zeros(counts.shape, np.uint32)
    found[rows.of, flat.symbols] = units
    return found


def fit_all(counts: Int64[np.ndarray, "n 256"]) -> Fits:
    """The table of each histogram with the fewest bytes for symbols *and* table together.

    A coarse table (multiples of a power of two) is shorter, which pays for small tensors; from
    2**17 symbols on the finest one always wins and is the only one tried.

    Args:
        counts: int64[n, 256], occurrences.

    >>> fits = fit_all(np.array([[3, 1] + [0] * 254, [0, 7] + [0] * 254]))
    >>> fits.frequencies[:, :2].tolist(), fits.table_bits.tolist(), fits.bits.round(2).tolist()
    ([[3072, 1024], [0, 4096]], [32, 24], [3.25, 0.0])
    """
    counts = np.array(counts, np.int64)
    counts[~counts.any(axis=1), 0] = 1  # All of the mass for symbol 0.
    sums, sizes = counts.sum(axis=1), np.count_nonzero(counts > 0, axis=1)
    coarsest = np.maximum(np.frexp((sizes - 1).astype(np.float64))[1], 1)
    coarsest[(sums >= _FINE) | (sizes == 1)] = BITS
    tries = BITS + 1 - coarsest
    # As many at once as stay in the cache.
    _, starts = np.unique(np.cumsum(sizes * tries) // _BLOCK, return_index=True)
    cuts = [slice(low, high) for low, high in itertools.pairwise([*starts.tolist(), len(counts)])]
    found = [_fitted(counts[cut], sums[cut], tries[cut]) for cut in cuts]
    return Fits(*map(np.concatenate, zip(*found, strict=True)))


def _fitted(counts: np.ndarray, sums: np.ndarray, tries: np.ndarray) -> Fits:
    """`fit_all` of histograms with sums that are known, and so many precisions to try."""
    flat = _flattened(counts)
    histograms, starts, tried = _ranges(np.zeros(len(counts), np.int64), tries)
    rows, units = _made(flat, histograms, BITS - tried)
    table_bits = stored_bits(units, flat.gaps.take(rows.source), rows.first, rows.sizes, tried)
    table_bits = -(-table_bits // 8) * 8
    code_bits = _code_bits(rows, units, flat.counts.take(rows.source), sums[histograms], BITS - tried)
    costs = table_bits + code_bits
    # Of equal ones the finest, which comes first.
    least = np.flatnonzero(costs == np.minimum.reduceat(costs, starts)[histograms])
    best = least[np.searchsorted(histograms[least], np.arange(len(counts)))]
    chosen, at = rows.take(best)
    found = np.zeros(counts.shape, np.uint32)
    found[chosen.of, flat.symbols[chosen.source]] = units[at] << tried[best][chosen.of]
    return Fits(found, table_bits[best], code_bits[best])


def _code_bits(
    rows: _Rows, units: np.ndarray, counts: np.ndarray, sums: np.ndarray, bits: np.ndarray
) -> np.ndarray:
    """`histograms.code_length` of each row."""
    logs = small_log2().take(units)
    saved = np.add.reduceat(counts * logs, rows.first)
    found = ((sums * bits << FRACTION_BITS) - saved) / (1 << FRACTION_BITS)
    for row in np.flatnonzero(sums >= EXACT):
        part = slice(rows.first[row], rows.first[row] + rows.sizes[row])
        products = zip(counts[part].tolist(), logs[part].tolist(), strict=True)
        total = (int(sums[row]) * int(bits[row]) << FRACTION_BITS) - sum(n * log for n, log in products)
        found[row] = total / (1 << FRACTION_BITS)
    return found
