"""Channels multiplied by factors where they are made, and divided where they are read: the same network."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import NonFiniteError, TransformError
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.suggestions import listed
from modelzip_jax.trace.jaxpr.interpreter import equations_at
from modelzip_jax.trace.symmetry.scalable_channels import ScaleBlock, ScaleGroup, ScaleMember, Scales
from modelzip_jax.tree import PyTree

__all__ = [
    "Rescaled",
    "block_factor",
    "factors",
    "finished",
    "finite_leaves",
    "kernels",
    "rescale",
    "unit_ranges",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Rescaled:
    """A network whose channels were scaled, and what was done to it.

    params: the same function to rounding. scales: what each group's channels were multiplied by, float64 `(units,)`
    by the group's name. left: the kernels that no scale reached, and why. exponents: the α that each group got,
    where there is one.

    >>> Rescaled({"w": 1.0}, {"w": np.ones(2)}, {}, {}).left
    {}
    """

    params: PyTree
    scales: Mapping[str, np.ndarray]
    left: Mapping[str, str]
    exponents: Mapping[str, float]


def kernels(scales: Scales, only: str | Sequence[str] | None) -> set[str]:
    """The leaves that take part in products and match the patterns.

    Raises:
      PatternError: a pattern matches no leaf. TransformError: it matches no kernel.
    """
    patterns = ["**"] if only is None else [only] if isinstance(only, str) else list(only)
    require_matches(patterns, scales.program.names)
    for pattern in patterns:
        if not any(matches(pattern, name) for name in scales.uses):
            raise TransformError(
                f"{pattern!r} names no kernel, no leaf that takes part in a product; those are: "
                f"{listed(list(scales.uses), 12) or '(none)'}"
            )
    return {name for name in scales.uses if any(matches(p, name) for p in patterns)}


def unit_ranges(leaf: np.ndarray, member: ScaleMember) -> np.ndarray:
    """The largest |weight| of each of a member's units, `(units,)`."""
    rest = tuple(i for i in range(leaf.ndim) if i not in member.block.axes)
    found: np.ndarray = np.abs(leaf).max(axis=rest).reshape(-1)[member.indices].max(axis=1)
    return found


def factors(groups: Iterable[tuple[ScaleGroup, np.ndarray]]) -> dict[ScaleBlock, np.ndarray]:
    """What each block is multiplied by, of the block's shape."""
    found: dict[ScaleBlock, np.ndarray] = {}
    for group, scale in groups:
        for member in group.members:
            block = found.setdefault(member.block, np.ones(member.block.shape)).reshape(-1)
            block[member.indices] *= (scale**member.power)[:, None]
    return found


def block_factor(block: ScaleBlock, values: np.ndarray, ndim: int) -> np.ndarray:
    """Values of a block, laid out to broadcast against its leaf."""
    sizes = dict(zip(block.axes, block.shape, strict=True))
    return values.reshape([sizes.get(i, 1) for i in range(ndim)])


def rescale(params: PyTree, groups: Iterable[tuple[ScaleGroup, np.ndarray]]) -> PyTree:
    """The params with each group's channels multiplied by a factor, in everything that makes or reads them."""
    by_leaf: dict[str, list[tuple[ScaleBlock, np.ndarray]]] = collections.defaultdict(list)
    for block, values in factors(groups).items():
        by_leaf[block.leaf].append((block, values))

    def scaled(name: str, x: Any) -> Any:
        if name not in by_leaf:
            return x
        value = np.asarray(x, np.float64)
        for block, values in by_leaf[name]:
            value = value * block_factor(block, values, value.ndim)
        made = value.astype(jnp.result_type(x))
        return jnp.asarray(made) if isinstance(x, jax.Array) else made

    return trees.map_named(scaled, params)


def finite_leaves(params: PyTree, names: Iterable[str]) -> dict[str, np.ndarray]:
    """These leaves in float64, on the host.

    Raises:
      NonFiniteError: one of them holds NaN or infinity.
    """
    wanted = set(names)
    found = {n: np.asarray(x, np.float64) for n, x in trees.named_leaves(params) if n in wanted}
    for name, x in found.items():
        if not np.isfinite(x).all():
            raise NonFiniteError(f"leaf {name!r} holds NaN or infinity")
    return found


def finished(
    params: PyTree,
    scales: Scales,
    done: list[tuple[ScaleGroup, np.ndarray]],
    reached: set[str],
    chosen: set[str],
    only: str | Sequence[str] | None,
    side: str,
    exponents: Mapping[str, float] | None = None,
    known: Mapping[str, str] | None = None,
) -> Rescaled:
    """The result, or a refusal where a kernel that was asked for, or every kernel, stays as it was.

    known: why some kernels do, where the scales do not say.
    """
    known = known or {}
    left = {name: known.get(name) or _why(scales, name, side) for name in sorted(chosen - reached)}
    if left and (only is not None or not done):
        shown = "; ".join(f"{name!r}: {why}" for name, why in list(left.items())[:6])
        raise TransformError(f"no channels of these kernels can be scaled exactly: {shown}")
    made = rescale(params, done)
    return Rescaled(made, {group.name: scale for group, scale in done}, left, dict(exponents or {}))


def _why(scales: Scales, name: str, side: str) -> str:
    found = []
    for block, reason in scales.held.items():
        if block.leaf == name and (not side or block.side == side):
            where = f" ({reason.path})" if reason.path else ""
            found.append(f"axes {block.axes} of it: what they carry {reason.why}{where}")
    if found:
        return ", and ".join(found)
    if side == "in" and _depthwise(scales, name):
        return "a depthwise kernel sums over no channels: what it reads goes on, channel by channel, to what it makes"
    return "no other kernel makes or reads its channels, or several uses of it disagree about them"


def _depthwise(scales: Scales, name: str) -> bool:
    uses = scales.uses[name]
    equations = equations_at(scales.program, {use.path for use in uses if use.kind == "conv"})
    found = []
    for eqn in equations.values():
        kernel, spec = eqn.eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
        found.append(eqn.params["feature_group_count"] > 1 and kernel[spec[1]] == 1)
    return len(found) > 0 and all(found)
