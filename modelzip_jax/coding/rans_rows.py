"""Where the symbols of a chunk stand, and which of its words a coder emits: NumPy's part of `rans`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8, UInt16

from modelzip_jax.coding.rans_kernels import Rows, grid

__all__ = ["by_group", "emitted_words", "row_layout"]


def row_layout(
    lengths: Sequence[int], ids: np.ndarray, lanes: int, capacity: int
) -> tuple[Int64[np.ndarray, " segments"], Rows]:
    """First row of each segment, and the descriptions of `capacity` rows.

    >>> firsts, rows = row_layout([5, 0, 4], np.array([0, 1, 2]), lanes=4, capacity=4)
    >>> firsts.tolist(), [part.tolist() for part in rows]
    ([0, 2, 2], [[0, 0, 2, 0], [4, 1, 4, 0], [1, 0, 0, 0]])
    """
    sizes = np.asarray(lengths, np.int64).reshape(-1)
    heights = -(-sizes // lanes)
    ends = np.cumsum(heights)
    rows = int(ends[-1]) if sizes.size else 0
    table = np.zeros(capacity, np.int32)
    table[:rows] = np.repeat(ids, heights)
    active = np.zeros(capacity, np.int32)
    active[:rows] = lanes
    filled = heights > 0
    active[ends[filled] - 1] = (sizes - (heights - 1) * lanes)[filled]
    # Rows before a segment's last one are full, so that only the last looks at `active`.
    run = np.zeros(capacity, np.int32)
    run[:rows] = np.repeat(ends - 1, heights) - np.arange(rows)
    return ends - heights, Rows(table, active, run)


def by_group(
    segments: Sequence[np.ndarray], firsts: np.ndarray, lanes: int, part: slice
) -> UInt8[np.ndarray, "rows groups lanes"]:
    """The symbols of some rows, those of a group side by side, as its words will be.

    Args:
        segments: uint8[n] each.
        firsts: the first row of each.
        lanes: symbols of a row.
        part: the rows, from `start` to `stop`.

    >>> by_group([np.arange(6, dtype=np.uint8)], np.array([0]), 4, slice(1, 2)).tolist()
    [[[4, 5, 0, 0]]]
    """
    size, groups = grid(lanes)
    symbols = np.empty((part.stop - part.start, groups, size), np.uint8)
    at = max(int(np.searchsorted(firsts, part.start, side="right")) - 1, 0)
    for segment, first in zip(segments[at:], firsts[at:].tolist(), strict=True):
        if first >= part.stop:
            break
        # Rows of this segment that the block has, and where they are in it.
        low, high = max(part.start - first, 0), part.stop - first
        to, piece = max(first - part.start, 0), segment[low * lanes : high * lanes]
        full, rest = divmod(len(piece), lanes)
        symbols[to : to + full] = piece[: full * lanes].reshape(full, size, groups).transpose(0, 2, 1)
        if rest:
            last = np.zeros(lanes, np.uint8)
            last[:rest] = piece[full * lanes :]
            symbols[to + full] = last.reshape(size, groups).T
    return symbols


def emitted_words(
    words: UInt16[np.ndarray, "rows groups lanes"], flags: UInt8[np.ndarray, "rows groups lanes"]
) -> tuple[UInt16[np.ndarray, " n"], Int64[np.ndarray, " groups + 1"]]:
    """The words that each group emits, those of all groups in turn, and where each one's begin and end.

    Args:
        words: what every lane would emit.
        flags: 1 where it does, else 0.

    >>> words = np.arange(6, dtype=np.uint16).reshape(3, 1, 2)
    >>> stream, ends = emitted_words(words, (words % 3 > 0).astype(np.uint8))
    >>> stream.tolist(), ends.tolist()
    ([1, 2, 4, 5], [0, 4])
    """
    rows, groups, size = words.shape
    # A group's words of a row in one go: as many bytes as a cache line.
    lines, marks = words.view(f"V{2 * size}")[..., 0], flags.view(f"V{size}")[..., 0]
    flat = np.ascontiguousarray(lines.T).view(np.uint16).reshape(-1)
    # Indices take a fifth of the time that indexing with flags does.
    (at,) = np.nonzero(np.ascontiguousarray(marks.T).view(np.bool_).reshape(-1))
    return flat.take(at), np.searchsorted(at, np.arange(groups + 1) * (rows * size))
