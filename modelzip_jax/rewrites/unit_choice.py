"""Which units go: a share of each group, of all of them, or as many as a bound on FLOPs or parameters asks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import NonFiniteError, TransformError
from modelzip_jax.rewrites.shrinking import shrunk_shapes
from modelzip_jax.trace.coupling.groups import Group
from modelzip_jax.trace.measures.costs import cost
from modelzip_jax.tree import PyTree

__all__ = ["choose_units"]

Chosen = dict[Group, np.ndarray]
_Step = tuple[int, tuple[int, ...]]
"""Number of the group, and the units in it that go together."""


def choose_units(
    scores: Mapping[Group, Any],
    variables: PyTree = None,
    *,
    share: float | None = None,
    max_flops: int | None = None,
    max_params: int | None = None,
    allocation: Literal["uniform", "global"] = "global",
    rebuild: Callable[[dict[str, tuple[int, ...]]], Any] | None = None,
    inputs: Sequence[Any] = (),
    keep: int = 1,
    round_to: int = 1,
    tolerance: float = 0.005,
) -> Chosen:
    """The units to remove, lowest scores first: what `mz.rewrites.shrink` and `silence` take.

    Either a share of the units goes, or as few as needed for the shrunk model to stay within `max_flops`,
    `max_params`, or both. Bounds are never exceeded. The first k units of the order go, k found by bisection; if
    that leaves more than `tolerance` of the bound unused, units come back, highest scores first, until it does not
    or until none fits. Each try counts the cost of a smaller model from shapes alone (`trace.cost`).

    Args:
      scores: of the units of each group, `(units,)`; see `unit_scores` and `batch_norm_scale`.
      variables: the tree that the couplings were traced with; shapes suffice. Needed for bounds.
      share: of the units, in [0, 1), rounded to whole units: of each group ("uniform") or of all of them.
      max_flops: most FLOPs of `inputs`, as `trace.cost(...).flops` counts them.
      max_params: most parameters: elements of the leaves under "params/", or of all leaves where there is no such
        collection.
      allocation: "global" orders all units by score, so scores have to compare between groups; "uniform" by their
        place in their own group, so that groups shrink alike.
      rebuild: as for `mz.rewrites.shrink`, makes the smaller module (`resized`); what it returns is called with
        variables and inputs, by its `apply` if it has one. For a function of any shapes
        `lambda shapes: apply_fn`. Needed for `max_flops`.
      inputs: what the model is called with; shapes suffice.
      keep: units that stay in each group, at least 1.
      round_to: what stays of a group that loses units is a multiple of this: `round_to` units go at once, by their
        mean score, those beyond a multiple first. Uneven widths may take longer than larger even ones: at half its
        FLOPs, ResNet-20 takes 1.05 of its time on XLA:CPU in ones and 0.62 in eights (docs/benchmarks.md). A
        share is met as closely as that allows, and a group of fewer units stays whole.
      tolerance: share of the bound that may stay unused though another unit would fit.

    Returns:
      Sorted indices for each group, possibly none.

    Raises:
      TransformError: neither a share nor a bound, or both; a bound that cannot be reached, with the smallest number
        that can; scores that do not fit their group.
      NonFiniteError: a score is NaN or infinite.
      What `rebuild` raises, for models whose layers cannot shrink apart.

    >>> import jax, jax.numpy as jnp
    >>> from modelzip_jax import trace
    >>> params, x = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}, jnp.ones((1, 3))
    >>> model = lambda p, x: x @ p["up"] @ p["down"]
    >>> (group,) = trace.couplings(model, params, x).groups
    >>> scores = {group: [5, 1, 6, 2, 7, 3, 8, 4]}
    >>> choose_units(scores, share=0.25)[group]
    array([1, 3])
    >>> gone = choose_units(scores, params, max_flops=41, rebuild=lambda shapes: model, inputs=(x,))
    >>> gone[group], trace.cost(model, shrunk_shapes(params, gone), x).flops
    (array([1, 3, 5, 7]), 40)
    """
    if keep < 1 or round_to < 1 or allocation not in ("uniform", "global"):
        raise TransformError(
            "keep and round_to must be at least 1 and allocation 'uniform' or 'global', not "
            f"{keep!r}, {round_to!r} and {allocation!r}"
        )
    groups = list(scores)
    order = _order([_checked(group, scores[group]) for group in groups], allocation, keep, round_to)
    bounded = max_flops is not None or max_params is not None
    if bounded == (share is not None):
        raise TransformError("choose_units takes either share=, or max_flops= and max_params=")
    if share is not None:
        return _by_group(_share(order, groups, share, allocation), groups)
    if variables is None or (max_flops is not None and rebuild is None):
        raise TransformError("a bound needs variables, and max_flops= needs rebuild= and inputs= as well")
    budget = _Budget(groups, variables, max_flops, max_params, rebuild, tuple(inputs))
    return _by_group(_within(order, budget, tolerance), groups)


def _checked(group: Group, scores: Any) -> np.ndarray:
    found = np.asarray(scores, np.float64)
    if found.shape != (group.units,):
        raise TransformError(f"group {group.name!r} has {group.units} units, not scores {found.shape}")
    if not np.isfinite(found).all():
        raise NonFiniteError(f"scores of group {group.name!r} hold NaN or infinity")
    return found


def _order(scores: list[np.ndarray], allocation: str, keep: int, round_to: int) -> list[_Step]:
    """All units that may go, first ones first; the best of each group, `keep` or more, may not."""
    keyed: list[tuple[float, int, tuple[int, ...]]] = []
    for number, own in enumerate(scores):
        ranked = np.argsort(own, kind="stable").tolist()
        first, last = len(own) % round_to or round_to, len(own) - max(keep, round_to)
        ends = range(first, last + 1, round_to)
        for start, end in zip([0, *ends], ends, strict=False):
            units = tuple(ranked[start:end])
            keyed.append((end / len(own) if allocation == "uniform" else own[[*units]].mean(), number, units))
    # Sorting is stable: within a group units stay in the order of their scores.
    return [(number, units) for _, number, units in sorted(keyed, key=lambda entry: entry[0])]


def _share(order: list[_Step], groups: list[Group], share: float, allocation: str) -> list[_Step]:
    if not 0.0 <= share < 1.0:
        raise TransformError(f"share must be in [0, 1), not {share!r}")
    if allocation == "global":
        return _nearest(order, round(share * sum(g.units for g in groups)))
    chosen = []
    for number, group in enumerate(groups):
        chosen += _nearest([step for step in order if step[0] == number], round(share * group.units))
    return chosen


def _nearest(order: list[_Step], count: int) -> list[_Step]:
    """The first steps of the order that together have about so many units."""
    gone = [0, *itertools.accumulate(len(units) for _, units in order)]
    return order[: min(range(len(gone)), key=lambda steps: abs(gone[steps] - count))]


def _by_group(steps: Sequence[_Step], groups: list[Group]) -> Chosen:
    found: list[list[int]] = [[] for _ in groups]
    for number, units in steps:
        found[number] += units
    return {group: np.array(sorted(own), int) for group, own in zip(groups, found, strict=True)}


@dataclasses.dataclass(frozen=True)
class _Budget:
    """Bounds, and what it takes to know how much of them a smaller model uses."""

    groups: list[Group]
    variables: PyTree
    max_flops: int | None
    max_params: int | None
    rebuild: Callable[[dict[str, tuple[int, ...]]], Any] | None
    inputs: tuple[Any, ...]

    def use(self, steps: Sequence[_Step]) -> float:
        """The share of the tightest bound that is used; within all of them up to 1."""
        flops, params = self.measure(steps)
        pairs = [(flops, self.max_flops), (params, self.max_params)]
        return max(n / limit if limit > 0 else math.inf for n, limit in pairs if limit is not None)

    def measure(self, steps: Sequence[_Step]) -> tuple[int, int]:
        """FLOPs (0 where they are not asked for) and parameters without these units."""
        smaller = shrunk_shapes(self.variables, _by_group(steps, self.groups))
        named = trees.named_leaves(smaller)
        counted = [x for name, x in named if name.startswith("params/")] or [x for _, x in named]
        params = sum(math.prod(x.shape) for x in counted)
        if self.max_flops is None or self.rebuild is None:
            return 0, params
        model = self.rebuild({name: x.shape for name, x in named})
        return cost(getattr(model, "apply", model), smaller, *self.inputs).flops, params


def _within(order: list[_Step], budget: _Budget, tolerance: float) -> list[_Step]:
    if budget.use([]) <= 1.0:
        return []
    used = budget.use(order)
    if used > 1.0:
        flops, params = budget.measure(order)
        bounds = [("max_flops", budget.max_flops, flops), ("max_params", budget.max_params, params)]
        missed = [f"{name}={m} with {n} at the least" for name, m, n in bounds if m is not None and n > m]
        raise TransformError(
            f"the bound cannot be reached: {' and '.join(missed)}; the groups given cannot shrink further"
        )
    low, high = 0, len(order)  # Without the first `low` steps the model is too large, without `high` it fits.
    while high - low > 1:
        middle = (low + high) // 2
        now = budget.use(order[:middle])
        low, high, used = (middle, high, used) if now > 1.0 else (low, middle, now)
    gone, full = order[:high], {order[high - 1][0]}
    # Steps of a group cost the same: where one does not fit, no other does, and less so after others came back.
    for step in reversed(order[: high - 1]):
        if used >= 1.0 - tolerance:
            break
        if step[0] in full:
            continue
        without = [s for s in gone if s != step]
        now = budget.use(without)
        if now > 1.0:
            full.add(step[0])
        else:
            gone, used = without, now
    return gone
