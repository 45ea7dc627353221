"""The transforms that a step size stands for, without data and with a model to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.chaining import chain
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.partitioning import partition
from modelzip_jax.patterns import matches
from modelzip_jax.quantization import rounding, spreads
from modelzip_jax.quantization.entropy_constraint import entropy_constrained
from modelzip_jax.quantization.table_basis import coding_gain, karhunen_loeve
from modelzip_jax.transform import Transform
from modelzip_jax.tree import PyTree

__all__ = [
    "QUALITY",
    "Recipe",
    "calibrated",
    "data_free",
    "table_names",
    "typical_size",
    "weights_in",
]

QUALITY = 0.16
"""The step without data and without a target, in units of the weights' deviation."""
_DAMPING = 0.01
_TALL = 8
"""Rows for each column from which on a basis can be worth its bits."""
_BASIS_BITS = 6.0
"""About what an element of a basis takes."""

Recipe = Callable[[float], Transform]
"""From a step size to the transform."""


def weights_in(params: PyTree, least: int, keep: Sequence[str] = ()) -> dict[str, Any]:
    """Floating-point leaves of at least that many axes, by name, but for those of path patterns that are kept.

    Raises:
      LeafError: there is none.
    """
    found = {
        name: leaf
        for name, leaf in trees.named_leaves(params)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and np.ndim(leaf) >= least and np.size(leaf)
        and not any(matches(pattern, name) for pattern in keep)
    }  # fmt: skip
    if not found:
        raise LeafError(f"smallest() found no floating-point leaf of at least {least} axes to encode")
    return found


def typical_size(leaves: dict[str, Any]) -> float:
    """The geometric mean of the root mean squares of leaves, by how many weights they have: the unit of steps."""
    total, count = 0.0, 0
    for leaf in leaves.values():
        x = np.asarray(leaf, np.float32)
        largest = float(np.abs(x).max())
        if largest > 0:
            root = largest * math.sqrt(
                float(np.mean(np.square(x / largest, dtype=np.float32), dtype=np.float64))
            )
            total, count = total + x.size * math.log(root), count + x.size
    return math.exp(total / count) if count else 1.0


def _labelled(params: PyTree, parts: Mapping[str, tuple[Transform, Sequence[str]]]) -> Transform:
    """A partition that names every leaf of each part; others stay as they are."""
    labels = {name: label for label, (_, names) in parts.items() for name in names}
    known = {label: part for label, (part, names) in parts.items() if names}
    if all(name in labels for name, _ in trees.named_leaves(params)):
        return partition(known, labels)
    return partition({**known, "kept": chain()}, {**labels, "**": "kept"})


def data_free(params: PyTree, keep: Sequence[str]) -> Recipe:
    """Matrices and larger, with steps by the root of each channel's deviation; others, which are few, lossless.

    The step is in units of `typical_size`, for a channel of that deviation.
    """
    leaves = weights_in(params, 2, keep)
    unit = math.sqrt(typical_size(leaves))

    def recipe(step: float) -> Transform:
        encoded = entropy_constrained(step * unit, spread=spreads.root_deviation())
        return _labelled(params, {"encoded": (encoded, list(leaves))})

    return recipe


def calibrated(
    params: PyTree,
    keep: Sequence[str],
    products: Sequence[str],
    importance: dict[str, Any],
    curvature: dict[str, Any],
    rate_weight: float,
) -> Recipe:
    """Kernels in turn with error feedback, steps by water-filling; other leaves by their Fisher information.

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
    free = entropy_constrained(QUALITY * math.sqrt(typical_size(dead)), spread=spreads.root_deviation())
    chosen = [name for name in products if name in alive]
    tables = [name for name in curvature if name in alive and _pays(every[name], curvature[name])]
    others = [name for name in alive if name not in (*chosen, *tables)]

    def recipe(step: float) -> Transform:
        fed = entropy_constrained(
            step, spread=spreads.water_filling(damping=_DAMPING), rate_weight=rate_weight,
            rounding=rounding.error_feedback(damping=_DAMPING),
        )  # fmt: skip
        told = entropy_constrained(step, spread=spreads.by_importance(), rate_weight=rate_weight)
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
    found = weights_in(params, 0, keep)
    return [
        name
        for name, leaf in found.items()
        if name not in products and np.ndim(leaf) == 2 and leaf.shape[0] >= _TALL * leaf.shape[1]
    ]


def _pays(leaf: Any, metric: Any) -> bool:
    rows, columns = leaf.shape
    return coding_gain(leaf, metric) * rows > _BASIS_BITS * columns
