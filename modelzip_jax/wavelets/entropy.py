"""What symbols cost in a file, and where to divide a spectrum into parts with statistics of their own."""

from __future__ import annotations

import itertools

import numpy as np

from modelzip_jax.coding import histograms
from modelzip_jax.coding.tables import encode_table

__all__ = ["cheapest_cuts", "coded_bits"]

_PART_BITS = 8.0 * 24
"""Descriptions of one more part in a file's header, and flushed words."""


def coded_bits(counts: np.ndarray) -> float:
    """Bits that symbols of these counts, int64[256], take in a file: their code, table and description."""
    table = histograms.fit(counts)
    return histograms.code_length(counts, table) + 8.0 * len(encode_table(table)) + _PART_BITS


def cheapest_cuts(parts: list[np.ndarray]) -> list[tuple[int, int]]:
    """Which neighbouring parts (uint8 1-D, by frequency) to code together: `(first, behind the last)`.

    Starts with every part alone and joins the two neighbours that save the most bits while any do.

    >>> rng = np.random.default_rng(0)
    >>> wide, narrow = rng.integers(0, 200, 5000, np.uint8), np.zeros(5000, np.uint8)
    >>> cheapest_cuts([wide, wide, narrow])
    [(0, 2), (2, 3)]
    """
    counts = [histograms.count(part) for part in parts]
    cuts = [(index, index + 1) for index in range(len(parts))]
    costs = [coded_bits(c) for c in counts]
    joint = [coded_bits(a + b) for a, b in itertools.pairwise(counts)]
    while joint:
        saved = [costs[i] + costs[i + 1] - both for i, both in enumerate(joint)]
        i = int(np.argmax(saved))
        if saved[i] < 0:
            break
        counts[i : i + 2] = [counts[i] + counts[i + 1]]
        cuts[i : i + 2] = [(cuts[i][0], cuts[i + 1][1])]
        costs[i : i + 2] = [joint[i]]
        del joint[i]
        for k in (i - 1, i):
            if 0 <= k < len(joint):
                joint[k] = coded_bits(counts[k] + counts[k + 1])
    return cuts
