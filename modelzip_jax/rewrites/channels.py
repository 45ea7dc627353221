"""Scores of units that are removed together, from scores of their weights or from batch normalisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.trace.coupling.groups import Group, Member
from modelzip_jax.tree import PyTree

__all__ = ["batch_norm_scale", "unit_scores"]

UnitScores = dict[Group, np.ndarray]


def unit_scores(
    variables: PyTree,
    groups: Iterable[Group],
    scores: PyTree,
    *,
    aggregate: Literal["sum", "mean"] = "sum",
    normalize: bool = True,
) -> UnitScores:
    """One score for each unit of each group, from the scores of all weights that would go with it.

    A unit's weights are those of all members: a filter, its bias and batch normalisation, and what later layers
    do with the channel. With `mz.scores.magnitude(2)`, the sum and a normalisation by group this is the importance
    of DepGraph (Fang et al. 2023, arXiv:2301.12900, §3.3), except that it divides by the mean of all units and not
    of the best.

    Args:
      variables: the tree that `trace.couplings` was given, with all collections; shapes suffice.
      groups: of `trace.couplings`.
      scores: a tree like the params, as every `mz.scores.*` returns it: leaves are found by their names, with or
        without "params/" in front. Members without a score, such as batch statistics, do not count.
      aggregate: "sum" over the weights of a unit, or their "mean".
      normalize: divides by the mean over the group, so that groups compare: after it, it is 1.

    Returns:
      float64 `(units,)` for each group; larger is kept. They are read on the host: not for use under `jit`.

    Raises:
      TransformError: no leaf of a group has scores.
      LeafError: scores of another shape than their leaf; a leaf of a group is missing.

    >>> import jax, jax.numpy as jnp
    >>> import modelzip_jax as mz
    >>> from modelzip_jax import trace
    >>> params = {"up": jnp.array([[1.0, 2.0]]), "down": jnp.array([[3.0], [-6.0]])}
    >>> (group,) = trace.couplings(lambda p, x: x @ p["up"] @ p["down"], params, jnp.ones((1, 1))).groups
    >>> unit_scores(params, [group], mz.scores.magnitude()(params), normalize=False)[group]
    array([4., 8.])
    """
    if aggregate not in ("sum", "mean"):
        raise TransformError(f"aggregate must be 'sum' or 'mean', not {aggregate!r}")
    check_float_params(variables, "unit_scores()")
    shapes = {name: tuple(np.shape(x)) for name, x in trees.named_leaves(variables)}
    known = _checked(dict(trees.named_leaves(scores)), shapes)
    return {group: _one(group, shapes, known, aggregate, normalize) for group in groups}


def _checked(scores: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Scores under the names that their leaves have among all variables."""
    found = {}
    for name, x in scores.items():
        full = name if name in shapes else f"params/{name}"
        if full in shapes and tuple(np.shape(x)) != shapes[full]:
            raise LeafError(f"scores of leaf {full!r} have the shape {np.shape(x)}, the leaf {shapes[full]}")
        found[full] = x
    return found


def _one(
    group: Group, shapes: dict[str, tuple[int, ...]], scores: dict[str, Any], aggregate: str, normalize: bool
) -> np.ndarray:
    total, count = np.zeros(group.units), 0
    for member in group.members:
        if member.leaf not in shapes:
            raise LeafError(
                f"group {group.name!r} has the leaf {member.leaf!r}, which is not there; pass the tree that "
                "couplings was given, with all collections"
            )
        if member.leaf in scores:
            along, weights = _along(scores[member.leaf], member)
            total += along
            count += weights
    if not count:
        raise TransformError(
            f"no leaf of group {group.name!r} has scores; it has {', '.join(group.leaves)}, and scores are of "
            f"{', '.join(list(scores)[:8])}"
        )
    total = total / count if aggregate == "mean" else total
    mean = total.mean()
    return total / mean if normalize and mean else total


def _along(scores: Any, member: Member) -> tuple[np.ndarray, int]:
    """Sums over all weights of each unit in one leaf, and how many weights that are."""
    x = np.asarray(scores, np.float64)
    rest = tuple(a for a in range(x.ndim) if a != member.axis)
    per_unit = x.size // x.shape[member.axis] * member.indices.shape[1]
    return x.sum(axis=rest)[member.indices].sum(axis=1), per_unit


def batch_norm_scale(variables: PyTree, groups: Sequence[Group]) -> UnitScores:
    """|γ| of the batch normalisation that each unit goes through (Network Slimming, Liu et al. 2017,
    arXiv:1708.06519, §3: channels with small factors go, over the whole network by one threshold).

    A scale is batch normalisation's if statistics stand beside it: `batch_stats/X/mean` for `params/X/scale` as in
    Linen, or `X/mean` for `X/scale` as in NNX. Where several are coupled to a unit, as along a residual stream,
    their mean counts. The paper trains with an L1 penalty on γ; without it the factors say less.

    Args:
      variables: all collections. groups: of `trace.couplings` for the same tree.

    Returns:
      float64 `(units,)` for each group, as `unit_scores`.

    Raises:
      TransformError: groups without batch normalisation, all of them by name.

    >>> import jax, jax.numpy as jnp
    >>> from modelzip_jax import trace
    >>> variables = {"up": jnp.ones((1, 2)), "down": jnp.ones((2, 1))}
    >>> variables["norm"] = {"scale": jnp.array([0.5, -2.0]), "mean": jnp.zeros(2)}
    >>> def model(p, x):
    ...     return jax.nn.relu((x @ p["up"] - p["norm"]["mean"]) * p["norm"]["scale"]) @ p["down"]
    >>> groups = trace.couplings(model, variables, jnp.ones((1, 1))).groups
    >>> batch_norm_scale(variables, groups)[groups[0]]
    array([0.5, 2. ])
    """
    leaves = dict(trees.named_leaves(variables))
    found: UnitScores = {}
    without = []
    for group in groups:
        scales = [
            np.abs(np.asarray(leaves[m.leaf], np.float64))[m.indices].mean(axis=1)
            for m in group.members
            if _is_batch_norm_scale(m.leaf, leaves)
        ]
        if scales:
            found[group] = np.mean(scales, axis=0)
        else:
            without.append(group.name)
    if without:
        raise TransformError(
            f"no batch normalisation is coupled to {', '.join(without)}; leave these groups out, or score them with "
            "unit_scores"
        )
    return found


def _is_batch_norm_scale(name: str, leaves: dict[str, Any]) -> bool:
    module, _, last = name.rpartition("/")
    if last != "scale":
        return False
    beside = f"{module}/mean".lstrip("/")
    return beside in leaves or beside.replace("params/", "batch_stats/", 1) in leaves
