"""Samples of what is too large to look at whole."""

from __future__ import annotations

import functools

import numpy as np

__all__ = ["spread_places"]


@functools.lru_cache(maxsize=64)
def spread_places(count: int, most: int) -> np.ndarray:
    """At most `most` indices below `count`, ascending: one at random in each of as many equal stretches.

    Not at equal distances, which fall in step with rows and columns: of images only one column would be seen. The same
    for the same numbers.

    >>> spread_places(3, 8), len(np.unique(spread_places(1024, 64) % 32)) > 20
    (array([0, 1, 2]), True)
    """
    if count <= most:
        return np.arange(count)
    starts = np.arange(most) * count // most
    ends = np.arange(1, most + 1) * count // most
    return starts + (np.random.default_rng(0).random(most) * (ends - starts)).astype(starts.dtype)
