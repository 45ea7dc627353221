"""Which weights share a step size: per tensor, per channel, or per group within a channel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["GRANULARITIES", "Grid"]

GRANULARITIES = ("tensor", "channel", "group")


@dataclasses.dataclass(frozen=True)
class Grid:
    """The assignment of a leaf's weights to step sizes.

    Step sizes form an array `(groups, channels)`: `(1, 1)` per tensor, `(1, channels)` per
    channel, `(ceil(fan / group_size), channels)` per group, where fan is the number of weights of a
    channel in C order. The last group may be shorter. A leaf of fewer than two axes is one channel.

    granularity: one of `GRANULARITIES`. axis: the channel axis. group_size: weights in a group.
    """

    granularity: str
    axis: int
    group_size: int

    def steps_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The shape of the leaf's array of step sizes.

        >>> Grid("group", -1, 64).steps_shape((100, 3))
        (2, 3)
        """
        channels = self._channels(shape)
        if self.granularity != "group":
            return 1, channels
        return -(-self._fan(shape) // self.group_size), channels

    def _fan(self, shape: tuple[int, ...]) -> int:
        """Weights of one channel."""
        if self.granularity == "tensor" or len(shape) < 2:
            return math.prod(shape)
        axis = self.axis % len(shape)
        return math.prod(n for a, n in enumerate(shape) if a != axis)

    def _channels(self, shape: tuple[int, ...]) -> int:
        return 1 if self.granularity == "tensor" or len(shape) < 2 else shape[self.axis]

    def expand(self, steps: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Steps `(groups, channels)` in a shape that broadcasts against the leaf."""
        channels = self._channels(shape)
        if self.granularity != "group":
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
        if self.granularity != "group":
            if channels == 1 and (len(shape) < 2 or self.granularity == "tensor"):
                return function(x).reshape(1, 1)
            axes = tuple(a for a in range(len(shape)) if a != self.axis % len(shape))
            return function(x, axis=axes).reshape(1, channels)
        rows = self._to_rows(x)
        groups, _ = self.steps_shape(shape)
        rows = jnp.pad(rows, ((0, groups * self.group_size - rows.shape[0]), (0, 0)))
        return function(rows.reshape(groups, self.group_size, channels), axis=1)

    def _broadcast_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = self.axis % len(shape)
        return tuple(n if a == axis else 1 for a, n in enumerate(shape))

    def _to_rows(self, x: jax.Array) -> jax.Array:
        """`(fan, channels)`."""
        if x.ndim < 2:
            return x.reshape(x.size, 1)
        moved = jnp.moveaxis(x, self.axis, -1)
        return moved.reshape(self._fan(x.shape), moved.shape[-1])

    def _from_rows(self, rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if len(shape) < 2:
            return rows.reshape(shape)
        axis = self.axis % len(shape)
        rest = tuple(n for a, n in enumerate(shape) if a != axis)
        return jnp.moveaxis(rows.reshape(*rest, shape[axis]), -1, axis)


def max_abs(x: jax.Array, axis: Any = None) -> jax.Array:
    """max |x|, 0 for an empty array."""
    return jnp.max(jnp.abs(x), axis=axis, initial=0.0)
