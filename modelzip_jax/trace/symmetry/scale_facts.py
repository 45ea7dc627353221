"""Logarithms of scales as unknowns, and the linear facts about them that a model's equations state.

A label is an integer: s is the unknown number s, -s its negative, 0 the scale 1, which nothing changes. Facts
say that labels are equal, that they are zero (for a reason), or that one is the sum of two. `solve` expresses
all unknowns by free ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from modelzip_jax.trace.coupling.labels import Reason

__all__ = ["ScaleFacts", "Solved"]

Form = dict[int, float]
"""From free unknowns to their coefficients."""


class Solved(NamedTuple):
    """The unknowns, expressed by free ones.

    of: int `(unknowns,)`: the class of each, negative where it is the class's negative; 0 for those that are
    zero. expressed: classes that are combinations of others. component: of each unknown, those that are equal.
    reasons: why the unknowns of a component are zero.
    """

    of: np.ndarray
    expressed: dict[int, Form]
    component: np.ndarray
    reasons: dict[int, Reason]

    def why(self, label: int) -> Reason | None:
        """Why a label is zero; None if that only follows from sums."""
        return self.reasons.get(int(self.component[abs(label)]))

    def form(self, label: int) -> Form:
        """A label as a combination of free unknowns; empty if it is zero."""
        which = int(self.of[abs(label)]) * (1 if label >= 0 else -1)
        if which == 0:
            return {}
        known = self.expressed.get(abs(which))
        if known is None:
            return {abs(which): float(np.sign(which))}
        return {free: c * np.sign(which) for free, c in known.items()}


class ScaleFacts:
    """Facts, as they are found."""

    def __init__(self) -> None:
        self.count = 1
        self.reasons: dict[Reason, int] = {}
        self._equal: list[np.ndarray] = []
        self._zero: list[tuple[np.ndarray, int]] = []
        self._sums: list[np.ndarray] = []

    def fresh(self, shape: tuple[int, ...]) -> np.ndarray:
        """New unknowns."""
        size = int(np.prod(shape))
        first, self.count = self.count, self.count + size
        return np.arange(first, first + size).reshape(shape)

    def equate(self, a: np.ndarray, b: np.ndarray, reason: Reason) -> None:
        """The labels are equal, after broadcasting; the reason is given where one of them is zero."""
        pairs = np.stack([x.ravel() for x in np.broadcast_arrays(a, b)])
        pairs = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1)
        held = (pairs == 0).any(axis=0)
        self.zero(pairs[:, held], reason)
        self._equal.append(pairs[:, ~held])

    def zero(self, labels: np.ndarray, reason: Reason) -> None:
        """The labels are zero: these scales stay 1."""
        found = np.unique(np.abs(labels[labels != 0]))
        if found.size:
            self._zero.append((found, self.reasons.setdefault(reason, len(self.reasons))))

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Labels of sums. Where it matters, b is expressed by the two others."""
        a, b = np.broadcast_arrays(a, b)
        pairs, place = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_inverse=True)
        made = np.where(pairs[0] == 0, pairs[1], pairs[0])
        both = (pairs != 0).all(axis=0)
        made[both] = self.fresh((int(both.sum()),))
        self._sums.append(np.stack([made[both], pairs[0, both], pairs[1, both]]))
        return made[place.reshape(-1)].reshape(a.shape)

    def solve(self) -> Solved:
        """Combines all facts."""
        sums = np.concatenate([np.zeros((3, 0), int), *self._sums], axis=1)
        equal = np.concatenate([np.zeros((2, 0), int), *self._equal], axis=1)
        zeros = np.concatenate([np.zeros(0, int), *(labels for labels, _ in self._zero)])
        while True:
            component = self._components(equal)
            of = self._classes(component, zeros)
            w, y, z = np.sign(sums) * of[np.abs(sums)]
            more_equal = np.concatenate(
                [sums[:, y == 0][[0, 2]], sums[:, z == 0][[0, 1]], sums[:, w == 0][1:] * [[1], [-1]]], axis=1
            )
            more_zero = [sums[0, y == -z], sums[2, w == y], sums[1, w == z], sums[1, (y == z) & (w == 0)]]
            done = (w == 0) | (y == 0) | (z == 0) | (y == -z) | (w == y) | (w == z)
            if not done.any():
                break
            equal = np.concatenate([equal, more_equal], axis=1)
            zeros = np.concatenate([zeros, *(np.abs(x) for x in more_zero)])
            sums = sums[:, ~done]
        rows = np.unique(np.stack([w, y, z]), axis=1) if w.size else np.zeros((3, 0), int)
        expressed = _eliminated(rows)
        return Solved(of, expressed, component[0::2], self._why(component))

    def _classes(self, component: np.ndarray, zeros: np.ndarray) -> np.ndarray:
        """The class of each unknown and its sign, as `Solved.of`."""
        plus, minus = component[0::2], component[1::2]
        held = np.zeros(component.max(initial=0) + 1, bool)
        held[plus[plus == minus]] = True
        for side in (plus, minus):
            held[side[zeros]] = True
        held[component[:2]] = True
        # A class is named by its first unknown, whichever its sign.
        first = np.full(held.size, self.count)
        for side in (plus, minus):
            np.minimum.at(first, side, np.arange(self.count))
        name = first[plus]
        sign = np.where(plus[name] == plus, 1, -1)
        return np.where(held[plus], 0, sign * name)

    def _components(self, equal: np.ndarray) -> np.ndarray:
        """Of the graph in which every unknown has two nodes, itself and its negative."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        a, b = 2 * np.abs(equal) + (equal < 0)
        edges = np.concatenate([np.stack([a, b]), np.stack([a ^ 1, b ^ 1])], axis=1)
        shape = (2 * self.count, 2 * self.count)
        graph = coo_array((np.ones(edges.shape[1], np.int8), (edges[0], edges[1])), shape=shape)
        component: np.ndarray = connected_components(graph, directed=False)[1]
        return component

    def _why(self, component: np.ndarray) -> dict[int, Reason]:
        known, first = list(self.reasons), dict[int, Reason]()
        for labels, number in self._zero:
            for node in np.unique(component[np.concatenate([2 * labels, 2 * labels + 1])]).tolist():
                first.setdefault(node, known[number])
        return first


def _eliminated(rows: np.ndarray) -> dict[int, Form]:
    """Classes expressed by others, from rows w = y + z; z is expressed if it can be."""
    found: dict[int, Form] = {}

    def substituted(form: Form) -> Form:
        done: Form = {}
        todo = dict(form)
        while todo:
            which, c = todo.popitem()
            if which not in found:
                done[which] = done.get(which, 0.0) + c
                continue
            for other, d in found[which].items():
                todo[other] = todo.get(other, 0.0) + c * d
        return {which: c for which, c in done.items() if c}

    for w, y, z in rows.T.tolist():
        row: Form = {}
        for label, c in ((w, 1.0), (y, -1.0), (z, -1.0)):
            row[abs(label)] = row.get(abs(label), 0.0) + (c if label > 0 else -c)
        row = substituted({which: c for which, c in row.items() if c})
        if not row:
            continue
        pivot = next((abs(label) for label in (z, y, w) if abs(label) in row), next(iter(row)))
        c = row.pop(pivot)
        found[pivot] = {which: -d / c for which, d in row.items()}
    return {which: substituted(form) for which, form in found.items()}
