"""The protocol of grids: the values that a code can stand for, in units of a scale."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.quantization.grids.nearest_level import Levels

__all__ = ["SCALES", "Grid", "check_bits", "table"]

SCALES = ("float", "power of two", "fp8")
"""How scales are stored: in the latents' dtype; as exponents of a byte; as e4m3 bytes, and one factor for the leaf."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values that codes stand for. Subclasses are frozen dataclasses that define `levels`, or `fitted`.

    A weight w with the scale s of its group becomes `value(nearest(w / s)) * s`. All that a grid is, is the table of
    its levels: files hold it, and read without the grid. To compute values by arithmetic instead of looking them up,
    override `project`; it must agree with the table.

    bits: of a code, where the grid has a number of its own. default_bits: unless said otherwise. group_size: of the
    groups that the grid is meant for. scale: of `SCALES`. default_range: what `range` is unless said otherwise.
    follows_weights: whether levels are made of a leaf's weights, by `fitted`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Cubes(Grid):
    ...     def levels(self, bits):
    ...         return np.linspace(-1, 1, 2**bits - 1) ** 3
    >>> Cubes().value(Cubes().nearest(jnp.array([-0.9, 0.02, 0.2]), bits=2), bits=2)
    Array([-1.,  0.,  0.], dtype=float32)
    """

    bits: ClassVar[int | None] = None
    default_bits: ClassVar[int] = 8
    group_size: ClassVar[int | None] = None
    scale: ClassVar[str] = "float"
    default_range: ClassVar[str] = "max"
    follows_weights: ClassVar[bool] = False

    def levels(self, bits: int) -> np.ndarray:
        """The values in ascending order, 2 to 2^bits of them, in units of the scale."""
        raise TransformError(f"{type(self).__name__} defines no levels()")

    def fitted(self, u: jax.Array, importance: jax.Array | None, bits: int) -> jax.Array:
        """The levels for weights in units of their scales, ascending; of `follows_weights` only.

        Args:
          u: the leaf's weights over their scales, within [-1, 1]. importance: of each, not negative, or None.
        """
        raise TransformError(f"{type(self).__name__} defines no fitted()")

    def covering(self, top: jax.Array, bottom: jax.Array, levels: jax.Array | np.ndarray) -> jax.Array:
        """The least scale with which the levels reach a group's limits.

        Args:
          top, bottom: how far weights reach above and below zero, not negative, `(groups, channels)` each.
        """
        above, below = (jnp.where(edge > 0, edge, 1.0).astype(top.dtype) for edge in (levels[-1], -levels[0]))
        over = jnp.where(levels[-1] > 0, top / above, jnp.zeros_like(top))
        under = jnp.where(levels[0] < 0, bottom / below, jnp.zeros_like(bottom))
        return jnp.maximum(over, under)

    def ties(self, levels: np.ndarray) -> np.ndarray:
        """Whether halfway between a level and the next one goes up: booleans, one fewer than levels.

        Away from zero unless overridden.
        """
        return levels[1:] > 0

    def nearest(self, u: jax.Array, bits: int) -> jax.Array:
        """The code of the level nearest to each value: uint8."""
        return table(self, bits).nearest(u)

    def value(self, code: jax.Array, bits: int) -> jax.Array:
        """The level of each code: float32."""
        return table(self, bits).value(code)

    def project(self, u: jax.Array, bits: int) -> jax.Array:
        """`value(nearest(u))`, in the dtype of `u`."""
        return table(self, bits).project(u)


@functools.lru_cache(maxsize=256)
def table(grid: Grid, bits: int) -> Levels:
    """The levels of a grid, checked.

    Raises:
      TransformError: they are no ascending table of 2 to 2^bits finite numbers.
    """
    levels = np.asarray(grid.levels(bits), np.float32)
    if levels.ndim != 1 or not 2 <= levels.size <= 1 << bits or not np.all(np.isfinite(levels)):
        raise TransformError(
            f"{grid} at {bits} bits gives levels of shape {levels.shape}; it takes 2 to {1 << bits} finite numbers"
        )
    if not np.all(np.diff(levels) > 0):
        raise TransformError(f"the levels of {grid} at {bits} bits do not ascend")
    return Levels.of(levels, grid.ties(levels))


def check_bits(bits: Any, grid: Grid | None = None) -> int:
    """The bits of a code: as given, or those of the grid; 8 without one.

    Raises:
      TransformError: not an integer from 1 to 8, or another number than the grid has.
    """
    own = None if grid is None else grid.bits
    bits = (own or (8 if grid is None else grid.default_bits)) if bits is None else bits
    bits = as_whole(bits, "bits", 1, 8)
    if own is not None and bits != own:
        raise TransformError(f"{grid} has codes of {own} bits, not {bits}: leave bits out")
    return bits
