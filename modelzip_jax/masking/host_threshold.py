"""The exact k largest of many scores where they can be read: the masks of `threshold`, by no program of a shape.

`threshold` compiles its search for every shape it meets, in seconds. Here keys are computed by blocks of three
sizes, with the same functions, and counted by their upper and lower halves, a radix search: three passes over the
data and 512 KB of counts, however many weights there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from modelzip_jax.concrete import host_view, host_views, placed
from modelzip_jax.masking.counting import DIGITS, TOP, order_keys

__all__ = ["choose_on_host", "count_kept_exactly"]

BlockScore = Callable[[jax.Array], jax.Array]
_BLOCKS = (1 << 12, 1 << 16, 1 << 20)
_HALF = 1 << 16


def choose_on_host(
    arrays: Sequence[jax.Array | np.ndarray], sparsity: jax.Array | float, score: BlockScore
) -> tuple[list[jax.Array], jax.Array] | None:
    """Masks that keep the largest scores over all of the arrays together, those of `threshold.keep_largest`.

    Args:
      arrays: float arrays of any shapes. sparsity: scalar, the share that goes. score: a pointwise function.

    Returns:
      (masks, threshold): boolean, of the arrays' shapes, and uint32 `(1,)`; None where values cannot be read on
      the host, or for 2**31 scores and more.

    >>> choose_on_host([np.float32([1.0, 3.0]), np.float32([[2.0, 2.0]])], 0.5, jax.numpy.abs)[0]
    [Array([False,  True], dtype=bool), Array([[ True, False]], dtype=bool)]
    """
    share, views = host_view(sparsity), host_views(*arrays)
    size = sum(np.size(x) for x in arrays)
    if share is None or views is None or size >= 1 << 31:
        return None
    keep = count_kept_exactly(size, float(share))
    above, tied = _threshold(views, keep, score) if size else (0, 0)
    masks = []
    for x in views:
        mask, tied = _mask(x, above, tied, score)
        masks.append(placed(mask))
    return masks, placed(np.array([above], np.uint32))


def count_kept_exactly(size: int, sparsity: float) -> int:
    """`threshold.count_kept` in Python's integers.

    >>> count_kept_exactly(50_000_000, 0.9)
    5000000
    """
    parts = int(np.rint(np.float32(sparsity) * np.float32(DIGITS)))
    return max(size - (size * parts + DIGITS // 2) // DIGITS, min(int(parts < DIGITS), size))


def _threshold(arrays: Sequence[np.ndarray], keep: int, score: BlockScore) -> tuple[int, int]:
    """The least key that is kept for certain, and how many of the next smaller one are kept, too."""
    if keep == 0:
        return TOP, 0
    upper, above = _reaching(_counts(k >> 16 for x in arrays for k in _keys(x, score)), keep)
    inside = (k[k >> 16 == upper] & (_HALF - 1) for x in arrays for k in _keys(x, score))
    counts = _counts(inside)
    lower, within = _reaching(counts, keep - above)
    found, missing = upper * _HALF + lower, keep - above - within
    return (found, 0) if missing == counts[lower] else (found + 1, missing)


def _counts(halves: Iterator[np.ndarray]) -> np.ndarray:
    """How often each 16-bit number occurs: int64."""
    counts = np.zeros(_HALF, np.int64)
    for half in halves:
        counts += np.bincount(half, minlength=_HALF)
    return counts


def _reaching(counts: np.ndarray, keep: int) -> tuple[int, int]:
    """The largest number that at least `keep` are not below, and how many are above it."""
    reach = np.cumsum(counts[::-1])[::-1]
    number = int(np.searchsorted(-reach, -keep, side="right")) - 1
    return number, int(reach[number] - counts[number])


def _mask(x: np.ndarray, above: int, tied: int, score: BlockScore) -> tuple[np.ndarray, int]:
    """The mask of one array, and how many ties are left for those behind it."""
    mask, at = np.empty(x.size, bool), 0
    for keys in _keys(x, score):
        block = mask[at : at + keys.size]
        np.greater_equal(keys, np.uint32(above), out=block)
        if tied:
            first = np.flatnonzero(keys == np.uint32(above - 1))[:tied]
            block[first] = True
            tied -= first.size
        at += keys.size
    return mask.reshape(x.shape), tied


def _keys(x: np.ndarray, score: BlockScore) -> Iterator[np.ndarray]:
    """Keys in C order, uint32, in blocks."""
    flat = np.ascontiguousarray(x).reshape(-1)
    for start in range(0, flat.size, _BLOCKS[-1]):
        block = flat[start : start + _BLOCKS[-1]]
        size = next(size for size in _BLOCKS if size >= block.size)
        whole = block if block.size == size else np.concatenate([block, np.zeros(size - block.size, x.dtype)])
        yield np.asarray(_block_keys(whole, score))[: block.size]


@functools.partial(jax.jit, static_argnums=1)
def _block_keys(block: jax.Array, score: BlockScore) -> jax.Array:
    return order_keys(score(block))
