"""Cross-layer equalization: channels scaled so that each has the same range in the layers that make and read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.float_params import check_float_params
from modelzip_jax.rewrites.channel_scaling import (
    Rescaled,
    block_factor,
    factors,
    finished,
    finite_leaves,
    kernels,
    unit_ranges,
)
from modelzip_jax.trace.symmetry.scalable_channels import ScaleGroup, ScaleMember, Scales, scale_groups
from modelzip_jax.trace.usage.use import Use
from modelzip_jax.tree import PyTree

__all__ = ["equalize"]


def equalize(
    apply_fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    only: str | Sequence[str] | None = None,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> Rescaled:
    """The same network, its channels scaled so that their ranges in one layer and the next are alike.

    A channel i that one layer makes with range r1 = max |W1[..., i]| and the next reads with r2 = max |W2[i, ...]|
    is divided by s = √(r1 r2) / r2: W1 and its bias are divided by it, W2 multiplied. Both ranges are then √(r1 r2).
    A channel that several layers make or read (residual additions, depthwise convolutions, attention's values,
    queries with keys) gets the factor of least squares of the logarithms, which is the same for two. Groups of
    channels take turns until no factor moves by more than `tolerance`.

    Which layers follow each other, and that all between them is positively homogeneous (relu, leaky relu, max and
    average pooling, additions, but not GELU, relu6 or a layer norm), is read from the jaxpr. Batch normalisation
    keeps its scale and variances, its mean and shift are scaled like a bias. Running variances then are no longer
    those of a batch: recalibrate them before, not after.

    Args:
      apply_fn, params, *inputs: as for `trace.couplings`, with all collections; shapes suffice for inputs.
      only: path patterns of the kernels whose ranges count; None: all.
      iterations: rounds over all groups, at most.
      tolerance: of the logarithm of a factor.

    Returns:
      `Rescaled`: params of the same structure and dtypes; `left` names the kernels that no factor reached.

    Raises:
      TransformError: nothing can be equalized, or not what `only` names; says which equation is in the way.
      PatternError: a pattern matches no leaf. NonFiniteError: a kernel holds NaN or infinity.

    Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv:1906.04721,
    eq. 11.

    >>> import jax, jax.numpy as jnp
    >>> params = {"up": jnp.array([[4.0, 1.0]]), "down": jnp.array([[1.0], [4.0]])}
    >>> model = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
    >>> equal = equalize(model, params, jnp.ones((1, 1)))
    >>> {name: x.ravel().tolist() for name, x in equal.params.items()}
    {'down': [2.0, 2.0], 'up': [2.0, 2.0]}
    """
    if iterations < 1 or not tolerance > 0:
        raise TransformError(f"iterations and tolerance must be positive, not {iterations!r}, {tolerance!r}")
    check_float_params(params, "equalize()")
    scales = scale_groups(apply_fn, params, *inputs, fixed=_multiplies)
    chosen = kernels(scales, only)
    groups = [(group, _counted(group, chosen)) for group in scales.groups]
    groups = [(g, m) for g, m in groups if {np.sign(x.power) for x in m} == {-1.0, 1.0}]
    reached = {m.block.leaf for _, members in groups for m in members}
    weights = {n: np.abs(w) for n, w in finite_leaves(params, reached).items()}
    total = [np.zeros(group.units) for group, _ in groups]
    for _ in range(iterations):
        moved = 0.0
        for (group, members), log in zip(groups, total, strict=True):
            step = _step(weights, members, group.units)
            log += step
            moved = max(moved, float(np.abs(step).max(initial=0.0)))
            for block, values in factors([(group, np.exp(step))]).items():
                if block.leaf in weights:
                    weights[block.leaf] *= block_factor(block, values, weights[block.leaf].ndim)
        if moved < tolerance:
            break
    done = [(group, np.exp(log)) for (group, _), log in zip(groups, total, strict=True)]
    return finished(params, scales, done, reached, chosen, only, "", known=_one_sided(scales, chosen))


def _multiplies(use: Use) -> bool:
    """A batch normalisation's scale: the layers beside it are to share the factor."""
    return use.kind == "elementwise" and use.primitive in ("mul", "div")


def _counted(group: ScaleGroup, chosen: set[str]) -> list[ScaleMember]:
    return [m for m in group.members if m.block.side and m.block.leaf in chosen]


def _one_sided(scales: Scales, chosen: set[str]) -> dict[str, str]:
    """Chosen kernels whose channels kernels that were not chosen make or read on the other side."""
    found = {}
    for group in scales.groups:
        kernels_ = [m for m in group.members if m.block.side]
        for m in (m for m in kernels_ if m.block.leaf in chosen):
            others = [o.block.leaf for o in kernels_ if np.sign(o.power) != np.sign(m.power)]
            if others and not chosen.intersection(others):
                does = "makes" if m.block.side == "in" else "reads"
                shown = ", ".join(map(repr, dict.fromkeys(others)))
                found[m.block.leaf] = f"what {does} its channels, {shown}, is not in only=: name both"
    return found


def _step(weights: dict[str, np.ndarray], members: list[ScaleMember], units: int) -> np.ndarray:
    """The logarithms that make the ranges of all members alike; 0 for channels that are zero on one side."""
    above, below = np.zeros(units), np.zeros(units)
    sides = np.zeros((2, units), bool)
    for member in members:
        range_ = unit_ranges(weights[member.block.leaf], member)
        live = range_ > 0
        above += np.where(live, member.power * np.log(np.where(live, range_, 1.0)), 0.0)
        below += live * member.power**2
        sides[int(member.power > 0)] |= live
    return np.where(sides.all(axis=0), -above / np.maximum(below, 1.0), 0.0)
