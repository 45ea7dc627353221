"""Curves of bytes against a drop of quality, and what they come to at a given drop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Met", "Point", "front", "geometric_mean", "met"]


class Point(NamedTuple):
    """A file: its bytes, and by how much the mean quality is lower than the float network's."""

    bytes: int
    drop: float


class Met(NamedTuple):
    """bytes: at which a curve has a drop. finer, coarser: places of the points on both sides of it in the sequence."""

    bytes: float
    finer: int
    coarser: int


def front(points: Sequence[Point]) -> list[int]:
    """Places of the points that no other beats in both bytes and drop, by rising bytes, and so by falling drops.

    Of points that are equal in both the first one counts.

    >>> front([Point(30, 0.1), Point(10, 0.4), Point(20, 0.5)])
    [1, 0]
    """
    found: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (*points[i], i)):
        if not math.isfinite(points[place].drop):
            continue
        if not found or points[place].drop < points[found[-1]].drop:
            found.append(place)
    return found


def met(points: Sequence[Point], drop: float, logarithmic: bool) -> Met | None:
    """Bytes at a drop, by the straight line between the points of the front on both sides of it.

    The line is one in the logarithm of bytes, and in the drop or, where both points have positive ones, in its
    logarithm: what is nearly quadratic in errors, such as 1 - cosine, falls by a factor for each bit.

    Returns:
      None where no point has a drop so small, or none on the front a larger one.

    >>> round(met([Point(400, 0.0), Point(100, 0.2)], 0.1, logarithmic=False).bytes)
    200
    """
    places = front(points)
    for coarser, finer in itertools.pairwise(places):
        high, low = points[coarser], points[finer]
        if low.drop <= drop < high.drop:
            if logarithmic and low.drop > 0:
                share = math.log(drop / low.drop) / math.log(high.drop / low.drop)
            else:
                share = (drop - low.drop) / (high.drop - low.drop)
            return Met(low.bytes * (high.bytes / low.bytes) ** share, finer, coarser)
    return None


def geometric_mean(numbers: Sequence[float]) -> float:
    """NaN of none.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    return math.exp(sum(map(math.log, numbers)) / len(numbers)) if numbers else math.nan
