"""What symbols cost in a file, and where to divide a spectrum into parts with statistics of their own."""

from __future__ import annotations

import itertools

import numpy as np

from modelzip_jax.coding import histograms
from modelzip_jax.coding.tables import BITS

__all__ = ["cheapest_cuts", "coded_bits", "lossless_bits"]

_PART_BITS = 8.0 * 24
"""Descriptions of one more part in a file's header, and flushed words."""
_GOLOMB = np.array(
    [2 * ((2 * c if c >= 0 else -2 * c - 1) + 1).bit_length() - 1 for c in range(-BITS - 1, BITS + 2)]
)
"""Bits of a change of bit length, from the largest fall on."""
_MANY = 1 << 17
"""From so many symbols on only the finest table is tried, as in `histograms.fit_frequencies`."""


def coded_bits(counts: np.ndarray) -> np.ndarray:
    """Bits that symbols of these counts take in a file: their code, table and description.

    What `histograms.fit_frequencies` would find, to a thousandth: frequencies are shares rounded, without the
    exchanges that make them sum up, and a table's size is counted without writing it. A hundredth of the time, and
    a choice of bases asks for it a thousand times.

    Args:
      counts: int64 `(..., 256)`, each symbol's occurrences.

    Returns:
      float64 `(...)`.

    >>> counts = np.bincount(np.random.default_rng(0).binomial(40, 0.5, 9000), minlength=256)
    >>> table = histograms.fit_frequencies(counts)
    >>> exact = histograms.code_length(counts, table) + 8 * len(histograms.encode_table(table)) + _PART_BITS
    >>> bool(abs(coded_bits(counts) / exact - 1) < 1e-3)
    True
    """
    counts = np.asarray(counts, np.float64)[..., None, :]
    (occurring,) = np.nonzero(counts.reshape(-1, counts.shape[-1]).any(0))
    counts = counts[..., occurring[0] : occurring[-1] + 1] if occurring.size else counts[..., :1]
    total = np.maximum(counts.sum(-1, keepdims=True), 1.0)
    used = counts > 0
    symbols = np.maximum(used.sum(-1, keepdims=True), 1)
    # As in `histograms.fit_frequencies`: one unit a symbol at least.
    coarsest = np.where(total < _MANY, np.maximum(np.frexp(symbols - 1.0)[1], 1), BITS)
    bits = np.arange(int(coarsest.min(initial=BITS)), BITS + 1, dtype=np.float64)[:, None]
    # A coarser table, of multiples of a power of two, is shorter.
    frequencies = np.where(used, np.maximum(np.rint(counts * np.exp2(bits) / total), 1.0), 0.0)
    lengths = total[..., 0] * np.log2(np.maximum(frequencies.sum(-1), 1.0))
    lengths -= (counts * np.log2(np.maximum(frequencies, 1.0))).sum(-1)
    costs = lengths + 8.0 * np.ceil(_table_bits(frequencies, used, BITS - bits) / 8.0)
    return np.where(bits >= coarsest, costs[..., None], np.inf).min((-2, -1)) + _PART_BITS


def _table_bits(frequencies: np.ndarray, used: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The size of each table as `tables.encode_table` writes it: bit lengths as differences, then the bits."""
    first = used.argmax(-1)[..., None]
    last = used.shape[-1] - 1 - used[..., ::-1].argmax(-1)[..., None]
    place = np.arange(used.shape[-1])
    inside = (place >= first) & (place < last) & used.any(-1, keepdims=True)  # the last one is what is left
    length = np.frexp(frequencies)[1].astype(np.int8)
    change = np.diff(length, axis=-1, prepend=0)
    said = np.where(place == first, 4, _GOLOMB[change + BITS + 1]) + np.maximum(length - 1, 0)
    stated = np.where(shift[..., 0] * (used.sum(-1) - 1) > 4, 5, 1)
    return 16 + stated + (said * inside).sum(-1)


def lossless_bits(values: np.ndarray) -> float:
    """Bits that numbers take in a file as they are: coded by byte planes."""
    planes = np.ascontiguousarray(values).reshape(-1, 1).view(np.uint8)
    counts = np.stack([histograms.count(plane) for plane in planes.T])
    return float(np.minimum(coded_bits(counts), 8.0 * len(planes) + _PART_BITS).sum())


def cheapest_cuts(counts: np.ndarray) -> list[tuple[int, int]]:
    """Which neighbouring parts to code together: `(first, behind the last)`.

    Starts with every part alone and joins the two neighbours that save the most bits while any do.

    Args:
      counts: int64 `(parts, 256)`, each symbol's occurrences in each part, by frequency.

    >>> rng = np.random.default_rng(0)
    >>> wide, narrow = np.bincount(rng.integers(0, 200, 5000), minlength=256), np.bincount([0] * 5000, minlength=256)
    >>> cheapest_cuts([wide, wide, narrow])
    [(0, 2), (2, 3)]
    """
    parts = list(np.asarray(counts))
    cuts = [(index, index + 1) for index in range(len(parts))]
    costs = coded_bits(np.stack(parts)).tolist()
    joint = coded_bits(np.stack([a + b for a, b in itertools.pairwise(parts)])).tolist() if parts[1:] else []
    while joint:
        saved = [costs[i] + costs[i + 1] - both for i, both in enumerate(joint)]
        i = int(np.argmax(saved))
        if saved[i] < 0:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        cuts[i : i + 2] = [(cuts[i][0], cuts[i + 1][1])]
        costs[i : i + 2] = [joint[i]]
        del joint[i]
        beside = [k for k in (i - 1, i) if 0 <= k < len(joint)]
        if beside:
            found = coded_bits(np.stack([parts[k] + parts[k + 1] for k in beside]))
            for k, cost in zip(beside, found.tolist(), strict=True):
                joint[k] = cost
    return cuts
