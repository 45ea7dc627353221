"""Labels of axis elements: which of them must be removed together, which may not, and why.

Every element of every axis of a variable has labels; it is removed when any of them is. Three facts are
recorded while the jaxpr is read: labels are *linked* (removed together), *frozen* (never removed, for
a reason), or *defined* as a combination: when a reshape splits 768 features into 12 heads of 64, the
label of a feature means "its head is removed, or its place within all heads is". `solve` combines the
facts, whatever order they came in. Frozen labels of elements that never were free are negative: the
number of the reason, `-1 - reason`.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["AxisLabels", "Labels", "Reason", "Solution", "expand"]

AxisLabels = np.ndarray
"""int64 `(size, k)`: k labels of each element."""
_MOST = 1 << 23
"""Elements of an axis that a reshape may make of others; more are frozen."""


class Reason(NamedTuple):
    """Why an axis cannot shrink: the equation's path and primitive ("" for inputs and outputs).

    >>> Reason("dot_general", "dot_general", "an axis of an output").why
    'an axis of an output'
    """

    path: str
    primitive: str
    why: str


_TWO_WAYS = Reason("", "reshape", "split in two ways that do not fit together")
_NO_PARTS = Reason("", "reshape", "split into parts that cannot shrink")


class Solution(NamedTuple):
    """The classes of labels.

    of: class of each label. frozen: whether each class is. combined: from a class to those that it is a
    combination of. reasons: `(class, reason)` pairs, int64 `(n, 2)`.
    """

    of: np.ndarray
    frozen: np.ndarray
    combined: dict[int, tuple[int, ...]]
    reasons: np.ndarray


class Labels:
    """Facts about labels, as they are found."""

    def __init__(self) -> None:
        self.count = 0
        self.sources: list[tuple[int, int]] = []
        self.reasons: dict[Reason, int] = {}
        self._links: list[np.ndarray] = []
        self._frozen: list[tuple[np.ndarray, int]] = []
        self._defined: list[tuple[np.ndarray, np.ndarray]] = []

    def fresh(self, size: int) -> AxisLabels:
        """New labels, one for each element of an axis."""
        first, self.count = self.count, self.count + size
        self.sources.append((first, self.count))
        return np.arange(first, self.count).reshape(size, 1)

    def frozen(self, size: int, reason: Reason) -> AxisLabels:
        """An axis that cannot shrink."""
        number = self.reasons.setdefault(reason, len(self.reasons))
        return np.full((size, 1), -1 - number)

    def freeze(self, axis: AxisLabels, reason: Reason) -> None:
        """From now on this axis cannot shrink."""
        labels = axis[axis >= 0]
        if labels.size:
            self._frozen.append((labels, self.reasons.setdefault(reason, len(self.reasons))))

    def equate(self, axes: Sequence[AxisLabels], reason: Reason) -> AxisLabels:
        """These axes shrink together; returns one of them. `reason` is given where they cannot."""
        first, *rest = sorted(axes, key=lambda a: -a.shape[1])
        for other in rest:
            if other is first:
                continue
            if other.shape[1] == first.shape[1]:
                self._link(first.ravel(), other.ravel())
            elif other.shape[1] == 1:
                self._define(other[:, 0], first)
            else:
                self.freeze(first, reason)
                self.freeze(other, reason)
        return first

    def _link(self, a: np.ndarray, b: np.ndarray) -> None:
        free = (a >= 0) & (b >= 0)
        self._links.append(np.stack([a[free], b[free]]))
        for fixed, other in ((a, b), (b, a)):
            for number in np.unique(fixed[(fixed < 0) & (other >= 0)]):
                self._frozen.append((other[(fixed == number) & (other >= 0)], int(-1 - number)))

    def _define(self, labels: np.ndarray, parts: np.ndarray) -> None:
        for column in range(parts.shape[1]):
            for number in np.unique(labels[labels < 0]):
                self.freeze(parts[labels == number, column], self._reason(-1 - int(number)))
        free = labels >= 0
        self._defined.append((labels[free], parts[free]))

    def _reason(self, number: int) -> Reason:
        return list(self.reasons)[number]

    def merge(self, axes: Sequence[AxisLabels], reason: Reason) -> AxisLabels:
        """Neighbouring axes as one, in C order."""
        sizes = [a.shape[0] for a in axes]
        total = math.prod(sizes)
        if len(axes) == 1:
            return axes[0]
        columns = [(i, c) for i, a in enumerate(axes) for c in a.T]
        free = [(i, c) for i, c in columns if np.any(c >= 0)]
        if not free:
            return np.full((total, 1), next((int(c[0]) for _, c in columns if c.size), -1))
        if total > _MOST:
            for axis in axes:
                self.freeze(axis, reason)
            return self.frozen(total, reason)

        def wide(i: int, column: np.ndarray) -> np.ndarray:
            shape = [size if j == i else 1 for j, size in enumerate(sizes)]
            return np.broadcast_to(column.reshape(shape), sizes).reshape(total)

        return np.stack([wide(i, c) for i, c in free], axis=1)

    def split(self, axis: AxisLabels, sizes: Sequence[int], reason: Reason) -> list[AxisLabels]:
        """One axis as several, in C order."""
        if len(sizes) == 1:
            return [axis]
        found: list[list[np.ndarray]] = [[] for _ in sizes]
        for column in axis.T:
            if np.all(column < 0):
                continue
            grid = column.reshape(sizes)
            varying = [i for i in range(len(sizes)) if np.any(np.diff(grid, axis=i))]
            if len(varying) > 1:
                parts = [self.fresh(size) if i in varying else None for i, size in enumerate(sizes)]
                new = [p for p in parts if p is not None]
                whole = [
                    p if p is not None else np.full((s, 1), -1) for p, s in zip(parts, sizes, strict=True)
                ]
                self._define(column, self.merge(whole, reason))
                for i, part in zip(varying, new, strict=True):
                    found[i].append(part[:, 0])
            else:
                i = varying[0] if varying else 0
                found[i].append(np.moveaxis(grid, i, -1).reshape(-1, sizes[i])[0])
        return [
            np.stack(columns, axis=1) if columns else self.frozen(size, reason)
            for columns, size in zip(found, sizes, strict=True)
        ]

    def solve(self) -> Solution:
        """Combines all facts, until they say nothing new."""
        while True:
            of, frozen = self._classes()
            combined = self._combinations(of, frozen)
            if combined is not None:
                pairs = [np.stack([of[x], np.full(x.size, r)]) for x, r in self._frozen]
                reasons = np.unique(np.concatenate([np.zeros((2, 0), int), *pairs], axis=1), axis=1).T
                return Solution(of, frozen, combined, reasons)

    def _classes(self) -> tuple[np.ndarray, np.ndarray]:
        a, b = np.concatenate([np.zeros((2, 0), int), *self._links], axis=1)
        # A third of a second of imports, that only couplings need.
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        graph = coo_array((np.ones(a.size, np.int8), (a, b)), shape=(self.count, self.count))
        number, of = connected_components(graph, directed=False)
        frozen = np.zeros(number, bool)
        for labels, _ in self._frozen:
            frozen[of[labels]] = True
        return of, frozen

    def _combinations(self, of: np.ndarray, frozen: np.ndarray) -> dict[int, tuple[int, ...]] | None:
        """What each defined class is a combination of; None if that taught new facts."""
        links, held_before = len(self._links), len(self._frozen)
        first = np.unique(of, return_index=True)[1]
        self._unify(of, frozen)
        if len(self._links) > links:
            return None
        found: dict[int, tuple[int, ...]] = {}
        self._defined, definitions = [], self._defined
        for labels, parts in definitions:
            labels, parts, kept = self._simplify(labels, parts, of, frozen)
            self._defined.append((labels, parts))
            for label, row, keep in zip(labels, parts, kept, strict=True):
                mine = tuple(int(x) for x in of[row[keep]])
                if int(of[label]) in mine:  # A part of itself: what else it is a part of cannot go alone.
                    self.freeze(row[keep][np.array(mine) != of[label]], _TWO_WAYS)
                elif found.setdefault(int(of[label]), mine) != mine:
                    self.freeze(np.concatenate([row[keep], [label]]), _TWO_WAYS)
        for each in _cyclic(found):
            self.freeze(first[[each]], _TWO_WAYS)
        changed = any(x.size for x in self._links[links:]) or len(self._frozen) > held_before
        return None if changed else found

    def _unify(self, of: np.ndarray, frozen: np.ndarray) -> None:
        """Links the parts of what is defined in several ways with equally many parts."""
        known: dict[tuple[int, int], np.ndarray] = {}
        times = np.bincount(of[np.concatenate([np.zeros(0, int), *(labels for labels, _ in self._defined)])])
        for labels, parts in self._defined:
            twice = times[of[labels]] > 1
            for label, row in zip(of[labels[twice]].tolist(), parts[twice], strict=True):
                other = known.setdefault((label, row.size), row)
                held = _is_frozen(np.stack([other, row]), of, frozen)
                free = ~held.any(axis=0)
                if np.any(held[0] != held[1]) or np.any(of[other[free]] != of[row[free]]):
                    self._link(other, row)

    def _simplify(
        self, labels: np.ndarray, parts: np.ndarray, of: np.ndarray, frozen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of some definitions, those that still say something, and which of their parts are free."""
        kept = ~_is_frozen(parts, of, frozen)
        held, free = frozen[of[labels]], kept.sum(axis=1)
        if np.any(held[:, None] & kept):
            self.freeze(parts[held[:, None] & kept], _NO_PARTS)
        if np.any(~held & (free == 0)):
            self.freeze(labels[~held & (free == 0)], _NO_PARTS)
        one = ~held & (free == 1)
        self._link(labels[one], parts[one][kept[one]])
        rest = ~held & (free > 1)
        return labels[rest], parts[rest], kept[rest]


def _is_frozen(labels: np.ndarray, of: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    if not of.size:
        return labels < 0
    return (labels < 0) | frozen[of[np.maximum(labels, 0)]]


def _cyclic(combined: dict[int, tuple[int, ...]]) -> list[int]:
    """Classes that would be combinations of themselves."""
    open_, waiting = dict(combined), True
    while waiting:
        done = [c for c, parts in open_.items() if not any(p in open_ for p in parts)]
        waiting = bool(done)
        for each in done:
            del open_[each]
    return list(open_)


def expand(combined: dict[int, tuple[int, ...]], which: int) -> set[int]:
    """The classes that a class comes down to."""
    done: set[int] = set()
    todo = collections.deque([which])
    while todo:
        each = todo.popleft()
        if each in combined:
            todo.extend(combined[each])
        else:
            done.add(each)
    return done
