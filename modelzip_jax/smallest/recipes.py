"""The transforms that a step size stands for, without data and with a model to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.partitioning import partition
from modelzip_jax.quantization import rounding, spreads
from modelzip_jax.quantization.entropy_constraint import entropy_constrained
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs
from modelzip_jax.trace.measures.curvature import FisherInformation
from modelzip_jax.trace.usage.use import Use, uses
from modelzip_jax.transform import Transform, identity
from modelzip_jax.tree import PyTree

__all__ = [
    "QUALITY",
    "calibrated",
    "data_free",
    "importance_of",
    "kernel_names",
    "typical_size",
    "weights_in",
]

QUALITY = 0.16
"""The step without data and without a target, in units of the weights' deviation."""
_DAMPING = 0.01


def weights_in(params: PyTree, least: int) -> dict[str, Any]:
    """Floating-point leaves of at least that many axes, by name.

    Raises:
      LeafError: there is none.
    """
    found = {
        name: leaf
        for name, leaf in trees.named_leaves(params)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and np.ndim(leaf) >= least and np.size(leaf)
    }
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


def _labelled(params: PyTree, parts: dict[str, tuple[Transform, Sequence[str]]]) -> Transform:
    """A partition that names every leaf of each part; others stay as they are."""
    labels = {name: label for label, (_, names) in parts.items() for name in names}
    known = {label: part for label, (part, names) in parts.items() if names}
    if all(name in labels for name, _ in trees.named_leaves(params)):
        return partition(known, labels)
    return partition({**known, "kept": identity()}, {**labels, "**": "kept"})


def data_free(params: PyTree, step: float) -> Transform:
    """Matrices and larger, with steps by the root of each channel's deviation; others, which are few, lossless.

    step: in units of `typical_size`, for a channel of that deviation.
    """
    leaves = weights_in(params, 2)
    encoded = entropy_constrained(step * math.sqrt(typical_size(leaves)), spread=spreads.root_deviation())
    return _labelled(params, {"encoded": (encoded, list(leaves))})


def kernel_names(apply_fn: Callable[..., Any], params: PyTree, batch: Any) -> list[str]:
    """The leaves whose products error feedback can go by: all of each, summed over the same axes in all of them."""
    by_leaf: dict[str, list[Use]] = {}
    for use in uses(apply_fn, params, *batch_inputs(batch, 0)):
        by_leaf.setdefault(use.leaf, []).append(use)
    return [name for name, found in by_leaf.items() if _is_kernel(found)]


def _is_kernel(found: Sequence[Use]) -> bool:
    plain = all(use.kind in ("dot", "conv") and not use.derived and use.view.complete for use in found)
    return plain and len({(use.contracted, use.output, use.batch) for use in found}) == 1


def calibrated(
    params: PyTree, step: float, products: Sequence[str], importance: dict[str, Any], rate_weight: float
) -> Transform:
    """Kernels in turn with error feedback, steps by water-filling; other leaves by their Fisher information.

    Leaves that the outputs do not depend on are encoded as without data, if they have two axes, and else kept.
    """
    every = weights_in(params, 0)
    alive = [name for name in every if name in importance and float(np.max(importance[name])) > 0]
    if not alive:
        raise TransformError(
            "the model's outputs depend on no leaf of params: calibrate= takes (apply_fn, batches) where apply_fn "
            "computes with the params that it is given"
        )
    fed = entropy_constrained(
        step, spread=spreads.water_filling(damping=_DAMPING), rate_weight=rate_weight,
        rounding=rounding.error_feedback(damping=_DAMPING),
    )  # fmt: skip
    told = entropy_constrained(step, spread=spreads.by_importance(), rate_weight=rate_weight)
    dead = {name: leaf for name, leaf in every.items() if name not in alive and np.ndim(leaf) > 1}
    free = entropy_constrained(QUALITY * math.sqrt(typical_size(dead)), spread=spreads.root_deviation())
    chosen = [name for name in products if name in alive]
    return _labelled(
        params,
        {
            "products": (fed, chosen),
            "others": (told, [name for name in alive if name not in chosen]),
            "unused": (free, list(dead)),
        },
    )


def importance_of(fisher: PyTree, params: PyTree) -> PyTree:
    """The diagonals of Fisher information, each in its leaf's place; zero of leaves that are not floating-point."""

    def diagonal(found: FisherInformation, leaf: Any) -> Any:
        return np.zeros(np.shape(leaf), np.float32) if found.diagonal is None else found.diagonal

    return jax.tree.map(diagonal, fisher, params, is_leaf=lambda f: isinstance(f, FisherInformation))
