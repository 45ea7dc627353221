"""Which weights share a step size: per tensor, per channel, or per group within a channel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modelzip_jax.errors import TransformError
from modelzip_jax.meshes import is_sharded_in_type, spec_of

__all__ = ["GRANULARITIES", "Granularity", "check_granularity", "check_stored_groups"]

GRANULARITIES = ("tensor", "channel", "group")
_WORTH_FOLDING = 1 << 14


@dataclasses.dataclass(frozen=True)
class Granularity:
    """The assignment of a leaf's weights to step sizes.

    Step sizes form an array `(groups, channels)`: `(1, 1)` per tensor, `(1, channels)` per
    channel, `(ceil(fan / group_size), channels)` per group, where fan is the number of weights of a
    channel in C order. The last group may be shorter.

    kind: one of `GRANULARITIES`. axis: the channel axis, or several, as `(0, -1)` of stacked kernels, whose indices
    together number the channels. A leaf of no more axes than that has no channels along the last of them: a bias is
    one channel, a stacked bias one a layer. group_size: weights in a group.
    """

    kind: str
    axis: int | tuple[int, ...]
    group_size: int

    def axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes of a leaf whose indices number its channels, ascending; none per tensor.

        >>> Granularity("channel", (0, -1), 1).axes((2, 3, 4)), Granularity("channel", (0, -1), 1).axes((2, 4))
        ((0, 2), (0,))
        """
        if self.kind == "tensor":
            return ()
        given = (self.axis,) if isinstance(self.axis, int) else self.axis
        given = given[: max(min(len(given), len(shape) - 1), 0)] if len(shape) <= len(given) else given
        return tuple(sorted({axis % len(shape) for axis in given}))

    def steps_spec(self, x: jax.Array) -> PartitionSpec:
        """How step sizes of a leaf lie over an Explicit mesh: as what is reduced over its groups."""
        return spec_of(self.reduce(max_abs, x)) if is_sharded_in_type(x) else PartitionSpec()

    def steps_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The shape of the leaf's array of step sizes.

        >>> Granularity("group", -1, 64).steps_shape((100, 3))
        (2, 3)
        """
        channels = self._channels(shape)
        if self.kind != "group":
            return 1, channels
        return -(-self._fan(shape) // self.group_size), channels

    def _fan(self, shape: tuple[int, ...]) -> int:
        """Weights of one channel."""
        axes = self.axes(shape)
        return math.prod(n for a, n in enumerate(shape) if a not in axes)

    def _channels(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[axis] for axis in self.axes(shape))

    def expand(self, steps: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Steps `(groups, channels)` in a shape that broadcasts against the leaf."""
        channels = self._channels(shape)
        if self.kind != "group":
            return steps.reshape(self._broadcast_shape(shape)) if channels != 1 else steps.reshape(())
        groups = steps.shape[0]
        fan = self._fan(shape)
        size = min(self.group_size, fan)
        spread = jnp.broadcast_to(steps[:, None, :], (groups, size, channels))
        rows = spread.reshape(groups * size, channels)[:fan]
        return self._from_rows(rows, shape)

    def reduce(self, function: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
        """`function` (a jnp reduction that ignores zeros: sum, max |·|) over each group.

        Returns:
          `(groups, channels)`, float dtype of `x`.
        """
        shape, channels = x.shape, self._channels(x.shape)
        if self.kind != "group":
            own = self.axes(shape)
            return function(x, axis=tuple(a for a in range(len(shape)) if a not in own)).reshape(1, channels)
        return function(self.blocks(x), axis=1)

    def blocks(self, x: jax.Array) -> jax.Array:
        """The weights of each group: `(groups, size, channels)`, zeros behind the end of a shorter last group.

        >>> Granularity("group", -1, 2).blocks(jnp.array([[1.0], [2.0], [3.0]]))[..., 0]
        Array([[1., 2.],
               [3., 0.]], dtype=float32)
        """
        groups, channels = self.steps_shape(x.shape)
        rows = self._to_rows(x)
        size = self.group_size if self.kind == "group" else rows.shape[0]
        rows = jnp.pad(rows, ((0, groups * size - rows.shape[0]), (0, 0)))
        return rows.reshape(groups, size, channels)

    def sums(self, x: jax.Array) -> jax.Array:
        """The sum of each group, `(groups, channels)`; of `x`, which may be what XLA has yet to compute.

        >>> Granularity("channel", -1, 1).sums(jnp.ones((3, 2)))
        Array([[3., 3.]], dtype=float32)
        """
        if self.kind != "channel" or self.axes(x.shape) != (x.ndim - 1,):
            return self.reduce(jnp.sum, x)
        return jnp.sum(_folded(x.reshape(self._fan(x.shape), x.shape[-1])), axis=0, keepdims=True)

    def counts(self, shape: tuple[int, ...]) -> np.ndarray:
        """Weights of each group, `(groups, 1)` integers.

        >>> Granularity("group", 0, 4).counts((2, 10)).tolist()
        [[4], [4], [2]]
        """
        if self.kind != "group":
            return np.full((1, 1), self._fan(shape))
        starts = self.group_size * np.arange(self.steps_shape(shape)[0])
        return np.minimum(self.group_size, self._fan(shape) - starts)[:, None]

    def _broadcast_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = self.axes(shape)
        return tuple(n if a in axes else 1 for a, n in enumerate(shape))

    def _to_rows(self, x: jax.Array) -> jax.Array:
        """`(fan, channels)`."""
        axes = self.axes(x.shape)
        moved = jnp.moveaxis(x, axes, tuple(range(x.ndim - len(axes), x.ndim)))
        return moved.reshape(self._fan(x.shape), self._channels(x.shape))

    def _from_rows(self, rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        axes = self.axes(shape)
        rest = [n for a, n in enumerate(shape) if a not in axes]
        split = rows.reshape(*rest, *(shape[a] for a in axes))
        return jnp.moveaxis(split, tuple(range(len(rest), len(shape))), axes)


def _folded(rows: jax.Array) -> jax.Array:
    """Half as many rows, of the same sums.

    XLA:CPU fuses nothing into sums of columns, but into a sum of two rows: what is summed up is written at half its
    size. Three halves are faster still, but slower behind a mask. Of several devices, halves would change places.
    """
    half = len(rows) // 2
    if rows.size < _WORTH_FOLDING or half == 0 or jax.device_count() > 1:
        return rows
    both = rows[:half] + rows[half : 2 * half]
    return both if len(rows) % 2 == 0 else both.at[:1].add(rows[2 * half :])


def check_granularity(granularity: str) -> None:
    """Raises `TransformError` for an unknown granularity."""
    if granularity not in GRANULARITIES:
        raise TransformError(f"granularity must be one of {GRANULARITIES}, not {granularity!r}")


def check_stored_groups(groups: Granularity, shape: tuple[int, ...], *arrays: Any) -> None:
    """Raises `ValueError` where what a file holds for each group does not fit a leaf of `shape`; None fits."""
    axes = (groups.axis,) if isinstance(groups.axis, int) else groups.axis
    rank = max(len(shape), len(axes))
    if not all(isinstance(axis, int) and -rank <= axis < rank for axis in axes):
        raise ValueError(f"channel axes {axes} for a leaf of {shape}")
    if groups.group_size < 1 or groups.kind not in GRANULARITIES or any(
        x is not None and x.shape != groups.steps_shape(shape) for x in arrays
    ):  # fmt: skip
        raise ValueError(
            f"{groups.kind} steps of {[x.shape for x in arrays if x is not None]} for a leaf of {shape}"
        )


def max_abs(x: jax.Array, axis: Any = None) -> jax.Array:
    """max |x|, 0 for an empty array."""
    return jnp.max(jnp.abs(x), axis=axis, initial=0.0)
