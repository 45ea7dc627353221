"""Quantization with a given step size: the end of a chain that was fitted to a distortion."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.concrete import host_view, placed
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.quantization.granularity import GRANULARITIES
from modelzip_jax.quantization.uniform import Quantize
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Encoded

__all__ = ["StepQuantize", "quantize_step"]

PyTree = Any


@recordable
@dataclasses.dataclass(frozen=True)
class StepQuantize(Quantize):
    """See `quantize_step`."""

    step: float

    def init(self, values: PyTree, **extra: Any) -> Encoded:
        encoded = super().init(values, **extra)
        if self.granularity == "tensor":
            self._check_reach(values)
            widened = lambda s: jnp.full_like(s, self.step)  # noqa: E731
        else:
            widened = self._widened
        state = jax.tree.map(lambda _, s: s._replace(step=widened(s.step)), values, encoded.state)
        return encoded._replace(state=state)

    def _widened(self, least: jax.Array) -> jax.Array:
        """The step, or where codes would not reach a group's largest weight the least that does."""
        seen = host_view(least)
        if seen is None:
            return jnp.maximum(least, jnp.asarray(self.step, least.dtype))
        return placed(np.maximum(seen, np.asarray(self.step, seen.dtype)))

    def _check_reach(self, values: PyTree) -> None:
        reach = self.step * ((1 << (self.bits - 1)) - 0.5)
        for name, leaf in trees.named_leaves(values):
            if isinstance(leaf, jax.core.Tracer):
                continue
            largest = float(np.max(np.abs(np.asarray(leaf, np.float32)), initial=0.0))
            if largest > reach:
                raise LeafError(
                    f"leaf {name!r} has magnitudes up to {largest:.4g}, and {self.bits} bits of step "
                    f"{self.step:.4g} reach {reach:.4g}; take more bits, a larger step, or steps of channels or groups"
                )


def quantize_step(
    step: float, bits: int = 8, *, granularity: str = "tensor", group_size: int = 128, axis: int = -1
) -> StepQuantize:
    """Rounds to multiples of `step`, one step size for each whole leaf, unless codes do not reach.

    Where `quantize` fits step sizes to the range of the weights, this takes the one that a distortion asks
    for: a uniform quantizer of step Δ has a squared error of Δ² / 12 a weight, and an entropy coder makes
    short work of the codes that are then rarely used.

    Args:
      step: positive. bits: 2 to 8, that a code takes in memory.
      granularity, group_size, axis: as for `mz.quantize`. By "channel" or "group" whatever the codes do not reach
        with this step takes a larger one: the least that reaches its largest weight.

    Raises:
      TransformError: a step that is not positive and finite, bits outside 2-8, an unknown granularity, groups below 1.
      LeafError (at `init`): the codes do not reach the largest weight, by "tensor".

    >>> t = quantize_step(0.5)
    >>> t.decode(*t.init({"w": jnp.array([0.6, -1.9])}))
    {'w': Array([ 0.5, -2. ], dtype=float32)}
    """
    if not 0.0 < step < math.inf:
        raise TransformError(f"a step size is positive and finite, not {step!r}")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise TransformError(f"bits must be an integer from 2 to 8, not {bits!r}")
    if granularity not in GRANULARITIES or group_size < 1:
        raise TransformError(
            f"steps are of one of {GRANULARITIES}, groups of 1 or more: {granularity!r}, {group_size}"
        )
    return StepQuantize(bits, granularity, group_size, axis, True, False, "max", float(step))
