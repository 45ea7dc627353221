"""A short path through all points: the travelling salesman's, who need not return."""

from __future__ import annotations

import numpy as np

__all__ = ["short_path"]

_PASSES = 50


def short_path(distances: np.ndarray) -> np.ndarray:
    """An order of n points in which the sum of distances between neighbours is small.

    From each of a few starts to the nearest point not yet visited, then 2-opt (Croes 1958,
    https://doi.org/10.1287/opre.6.6.791): stretches are reversed while that shortens the path, and its ends are
    joined where a longer step can be cut instead. Never longer than the order 0, 1, ..., which is returned as
    it is where nothing shorter was found.

    Args:
      distances: `(n, n)`, symmetric, not negative.

    Returns:
      int64 `(n,)`, a permutation, the smaller of its ends first.

    >>> points = np.array([3.0, 0.0, 2.0, 1.0])
    >>> short_path(np.abs(points[:, None] - points)).tolist()
    [0, 2, 3, 1]
    """
    n = len(distances)
    if n < 3:
        return np.arange(n)
    starts = {0, int(np.argmax(distances.sum(axis=1))), int(np.argmin(distances.sum(axis=1)))}
    paths = [np.arange(n), *(_nearest(distances, start) for start in sorted(starts))]
    found = _reversed(distances, min(paths, key=lambda path: _length(distances, path)))
    return found if found[0] < found[-1] else found[::-1]


def _length(distances: np.ndarray, path: np.ndarray) -> float:
    return float(distances[path[:-1], path[1:]].sum())


def _nearest(distances: np.ndarray, start: int) -> np.ndarray:
    left = distances.astype(np.float64)
    path = [start]
    for _ in range(len(distances) - 1):
        left[:, path[-1]] = np.inf
        path.append(int(np.argmin(left[path[-1]])))
    return np.array(path)


def _reversed(distances: np.ndarray, path: np.ndarray) -> np.ndarray:
    """After 2-opt: for each place the best stretch that begins there, until a pass finds none."""
    n = len(path)
    path = path.copy()
    least = 1e-9 * max(_length(distances, path), 1e-30)
    for _ in range(_PASSES):
        improved = False
        for i in range(n - 1):
            # Reversing places i..j replaces the edges (i-1, i) and (j, j+1); at an end there is none.
            ends = path[i + 1 :]
            after = np.append(path[i + 2 :], -1)
            gain = np.where(after >= 0, distances[ends, after] - distances[path[i], after], 0.0)
            if i:
                gain += distances[path[i - 1], path[i]] - distances[path[i - 1], ends]
            best = int(np.argmax(gain))
            if gain[best] > least:
                j = i + 1 + best
                path[i : j + 1] = path[i : j + 1][::-1]
                improved = True
        steps = distances[path[:-1], path[1:]]
        longest = int(np.argmax(steps))
        if steps[longest] - distances[path[-1], path[0]] > least:
            path, improved = np.roll(path, -(longest + 1)), True
        if not improved:
            break
    return path
