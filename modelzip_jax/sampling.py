"""Samples of what is too large to look at whole: how many, where, and the shares of its parts in them."""

from __future__ import annotations

import functools

import numpy as np

from modelzip_jax.errors import DataError

__all__ = ["proportional_shares", "sample_size", "spread_places"]


@functools.lru_cache(maxsize=64)
def spread_places(count: int, most: int) -> np.ndarray:
    """At most `most` indices below `count`, ascending: one at random in each of as many equal stretches.

    Not at equal distances, which fall in step with rows and columns: of images only one column would be seen. The same
    for the same numbers.

    >>> spread_places(3, 8), len(np.unique(spread_places(1024, 64) % 32)) > 20
    (array([0, 1, 2], dtype=int32), True)
    """
    # 64 bits only where they are needed: JAX narrows them, and under x64 remembers that it did.
    dtype = np.int32 if count < 1 << 31 else np.int64
    if count <= most:
        return np.arange(count, dtype=dtype)
    starts = np.arange(most) * count // most
    ends = np.arange(1, most + 1) * count // most
    drawn = starts + (np.random.default_rng(0).random(most) * (ends - starts)).astype(starts.dtype)
    return drawn.astype(dtype)


def proportional_shares(sizes: np.ndarray, count: int) -> np.ndarray:
    """How many of `count` fall to each part, in proportion to their sizes: int64, `count` in all.

    Each differs from its exact share by less than one; the largest remainders are rounded up, and of equal ones the
    first.

    Args:
      sizes: integers of at least 0, `(parts,)`. count: at most their sum.

    >>> proportional_shares(np.array([6, 2]), 5), proportional_shares(np.array([1, 1, 1]), 2)
    (array([4, 1]), array([1, 1, 0]))
    """
    # In integers, and so never a whole example off.
    shares, remainders = np.divmod(sizes.astype(np.int64) * count, max(int(sizes.sum()), 1))
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    return shares


def sample_size(size: float | int, examples: int) -> int:
    """The number of examples that a size asks for: a float in (0, 1] is a fraction, an int the number itself.

    Raises:
      DataError: the size is not a fraction in (0, 1] nor a number of examples there are.

    >>> sample_size(0.25, 10), sample_size(4, 10)
    (2, 4)
    """
    if isinstance(size, float) and 0 < size <= 1:
        return max(1, round(size * examples))
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool) and 1 <= size <= examples:
        return int(size)
    raise DataError(
        f"size={size!r} must be a fraction in (0, 1] or a number of examples from 1 to {examples:,}"
    )
