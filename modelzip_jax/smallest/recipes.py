"""The transforms that a step size stands for, without data and with a model to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.chaining import chain
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.partitioning import partition
from modelzip_jax.patterns import matches
from modelzip_jax.quantization import rounding, spreads
from modelzip_jax.quantization.entropy_constraint import entropy_constrained
from modelzip_jax.quantization.spreads.by_weights import TABLES, WORDS
from modelzip_jax.quantization.table_basis import coding_gain, karhunen_loeve
from modelzip_jax.smallest.one_axis import STACKED, coarsest_steps
from modelzip_jax.transform import Transform
from modelzip_jax.tree import PyTree

__all__ = [
    "QUALITY",
    "Recipe",
    "Shares",
    "calibrated",
    "data_free",
    "floating_leaves",
    "shares",
    "table_names",
    "typical_size",
    "weights_in",
]

QUALITY = 0.13
"""The step without data and without a target, in units of the weights' deviation."""
_SIZE_POWER = 0.25
"""Half-way between steps that take weights to matter alike and those that take leaves to, as with deviations."""
_WORDS = 3.0
"""By how much steps of tables of words are larger, beside what their many rows make of it."""
_FINE = 0.25
"""Of the step, for leaves of which errors cost much and bits little."""
_DAMPING = 0.03
_MOST_DAMPING = 3.0
_OUTPUTS_DAMPING = 0.3
"""Shares of the diagonals' means that are added to what is measured of inputs and of outputs' gradients."""
_ENOUGH = 800
"""Outputs that were looked at from which on they are damped by no more than `_DAMPING`."""
_SOFTEN = 0.5
_STATES = 32
"""Of the trellis of leaves of two axes and more."""
_TALL = 8
"""Rows for each column from which on a basis can be worth its bits."""
_BASIS_BITS = 6.0
"""About what an element of a basis takes."""
_PIECE = 1 << 18

Recipe = Callable[[float], Transform]
"""From a step size to the transform."""


def weights_in(params: PyTree, least: int, keep: Sequence[str] = ()) -> dict[str, Any]:
    """Floating-point leaves of at least that many axes, by name, but for those of path patterns that are kept.

    Raises:
      LeafError: there is none.
    """
    found = floating_leaves(params, least, keep)
    if not found:
        raise LeafError(
            "smallest() found no floating-point leaf to encode: all are of integers, empty, or kept by keep=, only= or "
            "min_ndim="
        )
    return found


def floating_leaves(params: PyTree, least: int, keep: Sequence[str] = ()) -> dict[str, Any]:
    """As `weights_in`, or none."""
    return {
        name: leaf
        for name, leaf in trees.named_leaves(params)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and np.ndim(leaf) >= least and np.size(leaf)
        and not any(matches(pattern, name) for pattern in keep)
    }  # fmt: skip


def typical_size(leaves: dict[str, Any]) -> float:
    """The geometric mean of the root mean squares of leaves, by how many weights they have: the unit of steps."""
    total, count = 0.0, 0
    for leaf in leaves.values():
        root = _root_mean_square(np.asarray(leaf).reshape(-1))
        if root > 0:
            total, count = total + np.size(leaf) * math.log(root), count + np.size(leaf)
    return math.exp(total / count) if count else 1.0


def _root_mean_square(x: np.ndarray) -> float:
    """In pieces, as the checkpoint may be large; divided by the largest first, as squares may be."""
    largest = max(float(x.max()), -float(x.min()))
    if not largest > 0:
        return 0.0
    pieces = (x[i : i + _PIECE].astype(np.float32) / np.float32(largest) for i in range(0, x.size, _PIECE))
    return largest * math.sqrt(sum(float(np.sum(np.square(p), dtype=np.float64)) for p in pieces) / x.size)


def _typical_count(leaves: dict[str, Any]) -> float:
    """The geometric mean of how many weights leaves have, by how many they have."""
    total = sum(np.size(leaf) for leaf in leaves.values())
    return math.exp(sum(np.size(leaf) * math.log(np.size(leaf)) for leaf in leaves.values()) / max(total, 1))


def _labelled(params: PyTree, parts: Mapping[str, tuple[Transform, Sequence[str]]]) -> Transform:
    """A partition that names every leaf of each part; others stay as they are."""
    return _by_name([name for name, _ in trees.named_leaves(params)], parts)


def _by_name(every: Sequence[str], parts: Mapping[str, tuple[Transform, Sequence[str]]]) -> Transform:
    labels = {name: label for label, (_, names) in parts.items() for name in names}
    known = {label: part for label, (part, names) in parts.items() if names}
    if all(name in labels for name in every):
        return partition(known, labels)
    return partition({**known, "kept": chain()}, {**labels, "**": "kept"})


class Shares(NamedTuple):
    """Leaves by name, as `data_free` treats them, and the unit of their steps."""

    unit: float
    plain: list[str]
    tables: list[str]
    one_axis: list[str]


def shares(params: PyTree, keep: Sequence[str]) -> Shares:
    """Which leaves are encoded without data, and how.

    Small tables of embeddings are a kind of their own: in a residual network their errors go into all layers, and the
    table may be the output layer as well. Leaves of one axis are encoded where that is safe (`coarsest_steps`); others
    of fewer than two axes are not.
    """
    leaves = floating_leaves(params, 2, keep)
    leaves = {
        name: w for name, w in leaves.items() if np.ndim(w) > 2 or not any(matches(p, name) for p in STACKED)
    }
    vectors = floating_leaves(params, 1, [*keep, *leaves])
    unit = math.sqrt(typical_size(leaves or vectors)) / _typical_count(leaves or vectors) ** _SIZE_POWER
    fine = QUALITY * unit * _FINE
    safe = [
        name for name, most in coarsest_steps(vectors).items()
        if fine * math.sqrt(typical_size({name: vectors[name]})) * np.size(vectors[name]) ** _SIZE_POWER <= most
    ]  # fmt: skip
    tables = [name for name, leaf in leaves.items() if _is_small_table(name, np.shape(leaf))]
    return Shares(unit, [name for name in leaves if name not in tables], tables, safe)


def data_free(params: PyTree, keep: Sequence[str], before: Transform | None = None) -> Recipe:
    """Steps by the root of each channel's deviation, and by the fourth root of how many weights a leaf has.

    The step is in units of `typical_size`, for a channel of that deviation in a leaf of the usual number of weights.
    Small tables of embeddings get a quarter of it, and so do leaves of one axis, which never get more than a quarter of
    `QUALITY`. The recipe holds no weights.

    before: what leaves of two axes and more go through first.
    """
    unit, plain, tables, one_axis = shares(params, keep)
    spread = spreads.root_deviation(factor=_WORDS, size_power=_SIZE_POWER)
    every = [name for name, _ in trees.named_leaves(params)]

    def recipe(step: float) -> Transform:
        def encoded(size: float) -> Transform:
            return entropy_constrained(size * unit, spread=spread, states=_STATES)

        parts = {
            "encoded": (encoded(step), plain),
            "tables": (encoded(step * _FINE), tables),
            "one axis": (encoded(min(step, QUALITY) * _FINE), one_axis),
        }
        found = _by_name(every, parts)
        # All leaves together, as a threshold over all of them may be what it looks for.
        first = None if before is None else {"before": (before, [*plain, *tables])}
        return found if first is None else chain(_by_name(every, first), found)

    return recipe


def _is_small_table(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and max(shape) < WORDS and any(matches(pattern, name) for pattern in TABLES)


def calibrated(
    params: PyTree,
    keep: Sequence[str],
    products: Sequence[str],
    importance: dict[str, Any],
    curvature: dict[str, Any],
    rate_weight: float,
    count: int,
) -> Recipe:
    """Kernels in turn with error feedback, steps by water-filling; other leaves by their Fisher information.

    count: outputs that were looked at. The fewer, the less is believed of what was measured: a handful of inputs gives
    Gram matrices of low rank, and eight images of LeNet-300-100 a file that was worse than without data until they were
    damped like this.

    Tables are encoded in the basis of their principal components, where that saves more than the basis takes. Leaves
    that the outputs do not depend on are encoded as without data, if they have two axes, and else kept.
    """
    every = weights_in(params, 0, keep)
    alive = [name for name in every if name in importance and float(np.max(importance[name])) > 0]
    if not alive:
        raise TransformError(
            "the model's outputs depend on no leaf of params: calibrate= takes (apply_fn, batches) where apply_fn "
            "computes with the params that it is given"
        )
    dead = {name: leaf for name, leaf in every.items() if name not in alive and np.ndim(leaf) > 1}
    free = entropy_constrained(
        QUALITY * math.sqrt(typical_size(dead)), spread=spreads.root_deviation(), states=_STATES
    )
    chosen = [name for name in products if name in alive]
    tables = [name for name in curvature if name in alive and _pays(every[name], curvature[name])]
    others = [name for name in alive if name not in (*chosen, *tables)]

    damping = min(_DAMPING * max(_ENOUGH / count, 1.0), _MOST_DAMPING)
    soften = min(max(4.0 / math.sqrt(count), _SOFTEN), 1.0)

    def recipe(step: float) -> Transform:
        fed = entropy_constrained(
            step, spread=spreads.paying(spreads.water_filling(damping=damping, soften=soften)), rate_weight=rate_weight,
            rounding=rounding.error_feedback(damping=damping, outputs_damping=max(damping, _OUTPUTS_DAMPING)),
            states=_STATES,
        )  # fmt: skip
        told = entropy_constrained(
            step,
            spread=spreads.paying(spreads.by_importance(soften=soften)),
            rate_weight=rate_weight,
            states=_STATES,
        )
        parts = {
            "products": (fed, chosen),
            "tables": (chain(karhunen_loeve(), told), tables),
            "others": (told, others),
            "unused": (free, list(dead)),
        }
        return _labelled(params, parts)

    return recipe


def table_names(params: PyTree, products: Sequence[str], keep: Sequence[str]) -> list[str]:
    """Matrices of many more rows than columns that no error feedback rounds, such as tables of embeddings."""
    return [
        name
        for name, leaf in floating_leaves(params, 2, keep).items()
        if name not in products and np.ndim(leaf) == 2 and leaf.shape[0] >= _TALL * leaf.shape[1]
    ]


def _pays(leaf: Any, metric: Any) -> bool:
    rows, columns = leaf.shape
    return coding_gain(leaf, metric) * rows > _BASIS_BITS * columns
