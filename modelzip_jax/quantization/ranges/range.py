"""The protocol of ranges: how far the codes of each group of weights reach."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.quantization.granularity import Granularity, max_abs

__all__ = ["Fit", "Range", "limits"]


class Fit(Protocol):
    """A leaf's grid without its scales, as ranges see it.

    groups: which weights share a step. symmetric: whether a group reaches as far below zero as above. above: codes
    above zero.
    """

    @property
    def groups(self) -> Granularity: ...

    @property
    def symmetric(self) -> bool: ...

    @property
    def above(self) -> int: ...

    def steps(self, top: jax.Array, bottom: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The least step sizes, and zero points, that reach from `-bottom` to `top`, `(groups, channels)` each."""
        ...

    def fake(self, w: jax.Array, step: jax.Array, zero: jax.Array) -> jax.Array:
        """The weights, rounded to nearest."""
        ...


@dataclasses.dataclass(frozen=True)
class Range:
    """How far the codes of a group reach. Subclasses are frozen dataclasses that define `limits`, or `choose`.

    decay: of the running mean that step sizes are, where the range is one; None without. of_extremes: whether the least
    and the largest value are all it reads, so that of activations these suffice.

    Twice the mean magnitude, whatever lies beyond:

    >>> @dataclasses.dataclass(frozen=True)
    ... class TwiceTheMean(Range):
    ...     def limits(self, w, fit):
    ...         counts = fit.groups.counts(w.shape)
    ...         reach = 2.0 * fit.groups.reduce(jnp.sum, jnp.abs(w)) / counts
    ...         return reach, reach
    >>> import modelzip_jax as mz
    >>> w = {"w": jnp.array([[0.5], [-0.5], [2.0]])}
    >>> [round(float(x), 1) for x in mz.decoded(w, mz.quantize(8, range=TwiceTheMean()))["w"].ravel()]
    [0.5, -0.5, 2.0]
    """

    decay: ClassVar[float | None] = None
    of_extremes: ClassVar[bool] = False

    def limits(self, w: jax.Array, fit: Fit) -> tuple[jax.Array, jax.Array]:
        """How far each group reaches above and below zero, not negative: `(groups, channels)` each.

        Args:
          w: the leaf's weights. fit: its grid.
        """
        raise TransformError(f"{type(self).__name__} defines neither limits() nor choose()")

    def choose(self, w: jax.Array, fit: Fit, importance: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Step sizes and zero points, `(groups, channels)` each. importance: of each squared error, or None."""
        return fit.steps(*self.limits(w, fit))


def limits(w: jax.Array, groups: Granularity) -> tuple[jax.Array, jax.Array]:
    """Each group's largest weight and its smallest one's magnitude, at least 0: `(groups, channels)` each."""
    zero: Any = jnp.zeros((), w.dtype)
    return groups.reduce(max_abs, jnp.maximum(w, zero)), groups.reduce(max_abs, jnp.minimum(w, zero))
