"""Channels multiplied by factors where they are made, and divided where they are read: the same network."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, NonFiniteError, TraceError, TransformError
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.suggestions import listed
from modelzip_jax.trace.jaxpr.interpreter import equations_at
from modelzip_jax.trace.measures.input_statistics import Measured, UseStatistics
from modelzip_jax.trace.symmetry.scalable_channels import ScaleBlock, ScaleGroup, ScaleMember, Scales
from modelzip_jax.trace.usage.use import Use
from modelzip_jax.trace.usage.views import along
from modelzip_jax.tree import PyTree

__all__ = ["Reading", "Rescaled", "finished", "input_values", "kernels", "readings", "rescale"]


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


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """A group of channels, and the kernels that sum over them.

    members: those of the group that are input channels of chosen kernels, all of one power.
    """

    group: ScaleGroup
    members: tuple[ScaleMember, ...]

    @property
    def layer(self) -> tuple[int, ...]:
        """Which layer of a scan the group belongs to; () outside of scans."""
        return layer_of(self.members[0])


def layer_of(member: ScaleMember) -> tuple[int, ...]:
    """The member's place along the axes of its block that count layers."""
    block = member.block
    place = np.unravel_index(int(member.indices[0, 0]), block.shape)
    return tuple(int(place[block.axes.index(a)]) for a in block.layers)


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


def readings(scales: Scales, chosen: set[str]) -> list[Reading]:
    """The groups that chosen kernels read; a kernel's channels count once."""
    done: set[tuple[ScaleBlock, int]] = set()
    found = []
    for group in scales.groups:
        members = [m for m in group.members if m.block.side == "in" and m.block.leaf in chosen]
        members = [m for m in members if not {(m.block, int(i)) for i in m.indices.ravel()} & done]
        if not members or len({m.power for m in members}) > 1 or abs(members[0].power) != 1:
            continue
        done |= {(m.block, int(i)) for m in members for i in m.indices.ravel()}
        found.append(Reading(group, tuple(members)))
    return found


class PartlyDescribed(LeafError):
    """Statistics of a kernel's inputs do not have the kernel's channels."""


def described(
    scales: Scales, chosen: set[str], stats: PyTree, check: Callable[[ScaleMember], Any]
) -> tuple[list[Reading], dict[str, str]]:
    """The groups that chosen kernels read, without kernels whose inputs no statistics describe; why, by kernel.

    Args:
      check: raises `PartlyDescribed` for a member whose inputs they do not describe.

    Raises:
      PartlyDescribed: it is the statistics that are of another model.
    """
    left: dict[str, str] = {}
    for member in (m for reading in readings(scales, chosen) for m in reading.members):
        leaf = member.block.leaf
        if leaf not in left:
            try:
                check(member)
            except PartlyDescribed as error:
                if _alike(each.use for each in statistics_of(stats, leaf)) != _alike(scales.uses[leaf]):
                    raise
                left[leaf] = str(error)
    return readings(scales, chosen - set(left)), left


def _alike(uses: Iterable[Use]) -> list[Use]:
    """Uses, wherever they stand: the model may have been within a `jit` when it was measured."""
    return [dataclasses.replace(use, path="", trips=None) for use in uses]


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


def input_values(stats: PyTree, member: ScaleMember, field: str, shape: tuple[int, ...]) -> np.ndarray:
    """A statistic of the inputs that a member's units are, `(units, m)`: the largest over several uses.

    Args:
      stats: of `trace.statistics`. field: of `Channels`, or "largest" for max |x|. shape: of the leaf.

    Raises:
      TraceError: the statistics have no such field, or their channels are not the kernel's.
    """
    found = [
        _laid_out(each, member.block, _field(each, field, member.block.leaf), shape)
        for each in statistics_of(stats, member.block.leaf)
    ]
    values: np.ndarray = np.max(found, axis=0).reshape(-1)[member.indices]
    return values


def statistics_of(stats: PyTree, leaf: str) -> Measured:
    """What was measured of a leaf.

    Raises:
      TraceError: nothing was.
    """
    known = dict(trees.named_leaves(stats, is_leaf=lambda x: isinstance(x, Measured)))
    found = known.get(leaf)
    if not isinstance(found, Measured) or not found:
        raise TraceError(
            f"stats have nothing of {leaf!r}: pass trace.statistics of the same apply_fn and params, with this leaf"
        )
    return found


def _field(each: UseStatistics, field: str, leaf: str) -> np.ndarray:
    channels = each.inputs
    kind = "range" if field == "largest" else field
    value = None if channels is None else getattr(channels, "maximum" if field == "largest" else field)
    if channels is None or value is None:
        raise TraceError(
            f"stats of {leaf!r} have no {kind!r} of inputs: trace.statistics(kinds=({kind!r}, ...))"
        )
    if field == "largest":
        value = jnp.maximum(jnp.abs(channels.minimum), jnp.abs(channels.maximum))
    found = np.asarray(value, np.float64)
    if not np.isfinite(found).all():
        raise NonFiniteError(f"statistics of the inputs of {leaf!r} hold NaN or infinity")
    return found


def channel_axes(use: Use, block: ScaleBlock) -> list[int]:
    """The leaf's axes that a statistic of the use's inputs has, in order."""
    layers = [a for layer in use.view.layers for a in along([layer.axis])]
    read = [a for a in block.axes if a not in layers and a not in use.batch]
    if use.kind == "dot":
        read = list(use.contracted)
    return [*layers, *use.batch, *read]


def _laid_out(
    each: UseStatistics, block: ScaleBlock, value: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    axes = channel_axes(each.use, block)
    own = [a for a in axes if shape[a] != 1]
    if value.shape != tuple(shape[a] for a in axes) or sorted(own) != list(block.axes):
        raise PartlyDescribed(
            f"statistics of the inputs of {block.leaf!r} have the shape {value.shape}, its channels {block.shape}: "
            "a kernel that is used in part, or a grouped convolution's, cannot be scaled by them"
        )
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    return value.transpose(order).reshape(block.shape)
