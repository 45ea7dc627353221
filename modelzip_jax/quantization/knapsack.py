"""One choice for each item under a budget: the multiple-choice knapsack, its relaxation and its optimum."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

__all__ = ["Frontier", "Steps", "best_choices", "frontier"]

_STATES = 1 << 20
"""Partial choices that the search holds at a time; networks of a few hundred leaves need some thousand."""


@dataclasses.dataclass(frozen=True)
class Frontier:
    """The choices of one item on the lower convex hull of error over cost, cheapest first.

    places: int `(n,)`, which choices. costs: int64 `(n,)`, rising. errors: float64 `(n,)`, falling ever more slowly.
    """

    places: np.ndarray
    costs: np.ndarray
    errors: np.ndarray


def frontier(costs: np.ndarray, errors: np.ndarray) -> Frontier:
    """The lower convex hull of an item's choices; those of infinite error are none.

    >>> frontier(np.array([1, 2, 3, 4]), np.array([9.0, 8.0, 1.0, 0.0])).places
    array([0, 2, 3])
    """
    kept: list[int] = []
    for i in np.lexsort((errors, costs)):
        if not np.isfinite(errors[i]) or (kept and errors[i] >= errors[kept[-1]]):
            continue
        while len(kept) > 1 and _slope(costs, errors, kept[-2], kept[-1]) >= _slope(
            costs, errors, kept[-1], i
        ):
            kept.pop()
        kept.append(int(i))
    places = np.array(kept, np.int64)
    return Frontier(places, costs[places], errors[places])


def _slope(costs: np.ndarray, errors: np.ndarray, a: int, b: int) -> float:
    return float(errors[b] - errors[a]) / float(costs[b] - costs[a])


@dataclasses.dataclass(frozen=True)
class Steps:
    """From the cheapest choices of all items along their hulls, the steepest step first.

    Each prefix is the optimum at its own cost, of the integer problem, too; the relaxation's optimum is linear between.
    item: int `(n,)`, whose step it is. costs: int64 `(n + 1,)`, of all items together. errors: float64 `(n + 1,)`.
    """

    item: np.ndarray
    costs: np.ndarray
    errors: np.ndarray

    @staticmethod
    def of(fronts: Sequence[Frontier]) -> Steps:
        """The steps of all fronts; of equally steep ones those of the first item first."""
        rises, drops, item = ([np.empty(0, kind)] for kind in (np.int64, np.float64, np.int64))
        for i, front in enumerate(fronts):
            rises.append(np.diff(front.costs))
            drops.append(np.diff(front.errors))
            item.append(np.full(len(front.costs) - 1, i))
        rise, drop, owner = map(np.concatenate, (rises, drops, item))
        # Within an item slopes rise, so that a stable sort keeps its steps in order.
        order = np.argsort(drop / rise, kind="stable")
        return Steps._summed(owner[order], rise[order], drop[order], _cheapest(fronts))

    @staticmethod
    def _summed(item: np.ndarray, rise: np.ndarray, drop: np.ndarray, first: tuple[int, float]) -> Steps:
        costs = np.concatenate([[0], np.cumsum(rise)]) + first[0]
        return Steps(item, costs.astype(np.int64), np.concatenate([[0.0], np.cumsum(drop)]) + first[1])

    def behind(self, item: int, first: tuple[int, float]) -> Steps:
        """The steps of later items, whose cheapest choices have together this cost and error."""
        later = self.item > item
        return self._summed(self.item[later], np.diff(self.costs)[later], np.diff(self.errors)[later], first)

    def relaxed(self, limit: np.ndarray | float) -> np.ndarray:
        """The least error of the linear relaxation within a limit; infinite where even the cheapest do not fit."""
        return np.interp(limit, self.costs, self.errors, left=np.inf)

    def within(self, limit: int) -> int:
        """How many steps can be paid, one after the other."""
        return int(np.searchsorted(self.costs, limit, side="right")) - 1


def best_choices(costs: Sequence[np.ndarray], errors: Sequence[np.ndarray], limit: int) -> list[int]:
    """Which choice of each item, so that the costs stay within the limit and the errors' sum is the least.

    The hull's steps that can be paid, and what they leave of the limit spent greedily, are a first answer; a dynamic
    program over the undominated pairs of cost and error improves it, without what the relaxation of the remaining items
    shows to be no better (Dyer, Kayal & Walker 1984; Kellerer, Pferschy & Pisinger 2004, ch. 11). The optimum falls
    with the limit, which the greedy answer need not.

    Args:
      costs: int64 `(choices,)` for each item, 0 or more. errors: float64 of the same shapes; infinite for what is no
        choice. limit: at least the cheapest choices' cost.

    Returns:
      Places, one for each item: the optimum, unless more than 2²⁰ partial choices are undominated at once; of those
      the most promising are followed then.

    >>> best_choices([np.array([1, 2, 4])] * 2, [np.array([9.0, 4.0, 0.0]), np.array([5.0, 3.0, 1.0])], 5)
    [2, 0]
    """
    fronts = [frontier(c, e) for c, e in zip(costs, errors, strict=True)]
    first = _filled(costs, errors, _paid(fronts, limit), limit)
    # Large items first, so that small ones even out what is left; what is undominated is enough.
    order = sorted(range(len(costs)), key=lambda i: -int(fronts[i].costs[-1] - fronts[i].costs[0]))
    options = [_Options.of(costs[i], errors[i]) for i in order]
    found = _search(options, [fronts[i] for i in order], limit, _total(errors, first))
    places = [place for _, place in sorted(zip(order, found, strict=False))]
    return places if len(found) == len(costs) and _total(errors, places) < _total(errors, first) else first


def _total(values: Sequence[np.ndarray], places: Sequence[int]) -> float:
    return sum(v[p].item() for v, p in zip(values, places, strict=True))


def _cheapest(fronts: Sequence[Frontier]) -> tuple[int, float]:
    """Cost and error of the cheapest choices together."""
    return sum(int(f.costs[0]) for f in fronts), sum(float(f.errors[0]) for f in fronts)


def _paid(fronts: Sequence[Frontier], limit: int) -> list[int]:
    """The choices after all hull steps that can be paid in order."""
    steps = Steps.of(fronts)
    taken = np.bincount(steps.item[: steps.within(limit)], minlength=len(fronts))
    return [int(f.places[n]) for f, n in zip(fronts, taken, strict=True)]


def _filled(
    costs: Sequence[np.ndarray], errors: Sequence[np.ndarray], places: list[int], limit: int
) -> list[int]:
    """Choices changed one by one, the steepest change that fits first, until none lowers the error."""
    places = list(places)
    while True:
        spare = limit - _total(costs, places)
        best, change = 0.0, None
        for i, (c, e) in enumerate(zip(costs, errors, strict=True)):
            rise, drop = c - c[places[i]], e[places[i]] - e
            fits = (drop > 0) & (rise <= spare)
            if fits.any():
                slope = np.where(fits, drop / np.maximum(rise, 1), 0.0)
                if slope.max() > best:
                    best, change = float(slope.max()), (i, int(slope.argmax()))
        if change is None:
            return places
        places[change[0]] = change[1]


@dataclasses.dataclass(frozen=True)
class _Options:
    """Choices of an item than which none is cheaper and better, cheapest first."""

    places: np.ndarray
    costs: np.ndarray
    errors: np.ndarray

    @staticmethod
    def of(costs: np.ndarray, errors: np.ndarray) -> _Options:
        places = _undominated(costs, errors)
        places = places[np.isfinite(errors[places])]
        return _Options(places, costs[places], errors[places])


def _undominated(costs: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Places of the pairs than which none is cheaper and better, cheapest first."""
    order = np.lexsort((errors, costs))
    before = np.minimum.accumulate(np.concatenate([[np.inf], errors[order]]))[:-1]
    return order[errors[order] < before]


def _search(options: list[_Options], fronts: list[Frontier], limit: int, best: float) -> list[int]:
    """The optimal places, or none where nothing is better than `best`."""
    cost, error = np.zeros(1, np.int64), np.zeros(1)
    slack = 1e-12 * sum(
        float(np.abs(o.errors).max()) for o in options
    )  # What sums in another order may differ by.
    back: list[tuple[np.ndarray, np.ndarray]] = []
    every = Steps.of(fronts)
    for k, option in enumerate(options):
        rest = every.behind(k, _cheapest(fronts[k + 1 :]))
        costs = (cost[:, None] + option.costs).ravel()
        errors = (error[:, None] + option.errors).ravel()
        fits = np.flatnonzero(costs + rest.costs[0] <= limit)
        left = limit - costs[fits]
        # Each partial choice, completed by the hull steps that it can still pay, is a choice.
        paid = rest.errors[np.searchsorted(rest.costs, left, side="right") - 1]
        best = min(best, float((errors[fits] + paid).min(initial=np.inf)))
        bound = errors[fits] + rest.relaxed(left)
        kept = fits[bound <= best + slack]
        kept = kept[_undominated(costs[kept], errors[kept])]
        if len(kept) > _STATES:
            bound = errors[kept] + rest.relaxed(limit - costs[kept])
            kept = kept[np.argpartition(bound, _STATES)[:_STATES]]
        back.append((kept // len(option.costs), option.places[kept % len(option.costs)]))
        cost, error = costs[kept], errors[kept]
    if not len(error):
        return []
    at, found = int(error.argmin()), []
    for parents, places in reversed(back):
        found.append(int(places[at]))
        at = int(parents[at])
    return found[::-1]
