"""Convolutions visited one after another, whose redundant filters leave."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.naming import require_known
from modelzip_jax.rewrites.shrinking import shrink
from modelzip_jax.rewrites.unit_choice import choose_units
from modelzip_jax.trace import LayerSparsity, Sparsity, couplings
from modelzip_jax.trace.coupling.groups import Group
from modelzip_jax.tree import PyTree

__all__ = ["ORDERS", "FilterVisit", "parameter_count", "visit_filters"]

ORDERS = ("sparsest", "densest", "first", "last")


class FilterVisit(NamedTuple):
    """What one visit did: to which leaf, its share of non-zero activations, filters before and after, and the
    parameters of the whole network behind it.
    """

    leaf: str
    active: float
    filters: int
    kept: int
    parameters: int


def visit_filters(
    apply_fn: Any, variables: PyTree, x: Any, found: Sparsity, *, max_params: int, order: str = "sparsest",
    keep: int = 1, round_to: int = 1,
) -> tuple[PyTree, list[FilterVisit]]:  # fmt: skip
    """The smaller variables, and the visits in their order.

    A filter counts by its place among those of its layer in the order of Σ|activation|, 1/n for the least active of n,
    times the share of the layer's activations that are not zero, over the root of the number of parameters that leave
    with it. (Behind batch normalisation the sums of a layer are so alike, 0.65 to 1.4 of their mean, that a threshold
    on them would empty one layer before it began with another. All parameters, not their root, would count those twice
    that leave with a filter of the next layer, too.) The least of these over the whole network leave, as few as
    `max_params` asks for (`mz.rewrites.choose_units`); convolution by convolution they are cut out of every array
    (`mz.rewrites.shrink`).

    Args:
      apply_fn, variables, x: the network, `{"params": ..., ...}`, and an input; shapes of it suffice.
      found: `trace.activation_sparsity` of its params. order: one of `ORDERS`.
      max_params, keep, round_to: as of `choose_units`.

    Raises:
      ConfigError: another order. TransformError: the bound cannot be reached.
    """
    require_known("compress.order", order, ORDERS)
    layers = {layer.name: layer for layer in found.layers}
    shapes = {name: tuple(np.shape(leaf)) for name, leaf in trees.named_leaves(variables)}
    groups = {_maker(group, shapes): group for group in couplings(apply_fn, variables, x).groups}
    groups = {leaf: group for leaf, group in groups.items() if leaf in layers}
    scores = {group: _scores(layers[leaf], _cost(group, shapes)) for leaf, group in groups.items()}
    leaving = choose_units(scores, variables, max_params=max_params, keep=keep, round_to=round_to)
    visits, gone = [], {}
    for leaf in _ordered(groups, layers, order):
        group = groups[leaf]
        gone[group] = leaving[group]
        now = shrink(variables, gone)
        kept = group.units - len(leaving[group])
        visits.append(
            FilterVisit(
                leaf, round(_active(layers[leaf]), 6), group.units, kept, parameter_count(now["params"])
            )
        )
    return shrink(variables, gone), visits


def parameter_count(params: PyTree) -> int:
    """Elements of all arrays, zeros included.

    >>> parameter_count({"kernel": np.zeros((2, 3)), "bias": np.zeros(3)})
    9
    """
    return sum(math.prod(np.shape(leaf)) for _, leaf in trees.named_leaves(params))


def _maker(group: Group, shapes: dict[str, tuple[int, ...]]) -> str:
    """The leaf of the params whose outputs are a group's units."""
    made = [
        member.leaf
        for member in group.members
        if member.leaf.endswith("/kernel") and member.axis == len(shapes[member.leaf]) - 1
    ]
    return made[0].removeprefix("params/") if made else group.name


def _cost(group: Group, shapes: dict[str, tuple[int, ...]]) -> int:
    """The parameters that leave with one unit."""
    members = [m for m in group.members if m.leaf.startswith("params/")]
    return sum(math.prod(shapes[m.leaf]) // shapes[m.leaf][m.axis] * m.indices.shape[1] for m in members)


def _scores(layer: LayerSparsity, cost: int) -> np.ndarray:
    place = np.argsort(np.argsort(layer.total, kind="stable"), kind="stable") + 1.0
    scores: np.ndarray = place / len(place) * _active(layer) / math.sqrt(cost)
    return scores


def _active(layer: LayerSparsity) -> float:
    return 1.0 - float(layer.zeros.mean())


def _ordered(groups: dict[str, Group], layers: dict[str, LayerSparsity], order: str) -> list[str]:
    """Leaves as they are visited; those that are alike, as the network calls them."""
    called = [leaf for leaf in layers if leaf in groups]
    if order in ("first", "last"):
        return called[:: 1 if order == "first" else -1]
    sign = 1.0 if order == "sparsest" else -1.0
    return sorted(called, key=lambda leaf: sign * _active(layers[leaf]))
