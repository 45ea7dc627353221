"""The lines of a leaf along which a trellis runs, and the runs that they are cut into."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["RUN", "SHORTEST", "Lines", "longest_lines"]

RUN = 128
"""Numbers after which a trellis begins anew: the shorter, the more is lost at beginnings, and the more goes at once."""
SHORTEST = 16
"""Lines that are shorter gain next to nothing."""


class Lines(NamedTuple):
    """A leaf in C order as `(before, length, behind)`: lines along the axis in the middle, cut into runs.

    run: numbers in each, but for the last of a line. states: of the trellis, in which each run begins in state 0.
    """

    before: int
    length: int
    behind: int
    run: int
    states: int

    @staticmethod
    def along(shape: tuple[int, ...], axis: int, states: int, run: int = RUN) -> Lines | None:
        """Of a leaf's axis; None where lines are too short.

        >>> Lines.along((3, 3, 64, 300), 3, 8), Lines.along((784, 10), 1, 8)
        (Lines(before=576, length=300, behind=1, run=128, states=8), None)
        """
        if shape[axis] < SHORTEST or not math.prod(shape):
            return None
        return Lines(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]), run, states)

    @property
    def cube(self) -> tuple[int, int, int]:
        """`(before, length, behind)`."""
        return self.before, self.length, self.behind

    @property
    def runs(self) -> int:
        """Runs in a line."""
        return -(-self.length // self.run)

    def positions(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """In turn the places of the first numbers of all runs, of the second ones, and so on.

        Yields:
          how many runs of a line reach so far, and the index of these places in an array `(before, length, behind)`.

        >>> [(n, index[1]) for n, index in Lines(1, 5, 1, 3, 4).positions()]
        [(2, slice(0, None, 3)), (2, slice(1, None, 3)), (1, slice(2, None, 3))]
        """
        for p in range(min(self.run, self.length)):
            yield -(-(self.length - p) // self.run), (slice(None), slice(p, None, self.run))

    def cuts(self) -> list[tuple[slice, int]]:
        """Parts of a line whose runs are of one length, and that length.

        >>> Lines(1, 5, 1, 3, 4).cuts()
        [(slice(0, 3, None), 3), (slice(3, 5, None), 2)]
        """
        whole = self.length // self.run * self.run
        parts = [(slice(0, whole), self.run)] if whole else []
        return parts + ([(slice(whole, self.length), self.length - whole)] if whole < self.length else [])


def longest_lines(shape: tuple[int, ...], states: int) -> Lines | None:
    """Lines along the longest axis, the last of them if there are several; None of one axis, or of a short one.

    >>> longest_lines((64, 32, 3, 3), 8), longest_lines((100,), 8)
    (Lines(before=1, length=64, behind=288, run=128, states=8), None)
    """
    if len(shape) < 2:
        return None
    axis = max(range(len(shape)), key=lambda a: (shape[a], a))
    return Lines.along(shape, axis, states)
