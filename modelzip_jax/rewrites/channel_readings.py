"""The channels that kernels read, and the statistics that describe them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, NonFiniteError, TraceError
from modelzip_jax.trace.measures.input_statistics import Measured, UseStatistics
from modelzip_jax.trace.symmetry.scalable_channels import ScaleBlock, ScaleGroup, ScaleMember, Scales
from modelzip_jax.trace.usage.use import Use
from modelzip_jax.trace.usage.views import along
from modelzip_jax.tree import PyTree

__all__ = [
    "PartlyDescribed",
    "Reading",
    "channel_axes",
    "described",
    "input_values",
    "layer_of",
    "statistics_of",
]


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
