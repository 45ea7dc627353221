"""Quantization with a given step size: the end of a chain that was fitted to a distortion."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.uniform import Quantizer
from modelzip_jax.recipe import recordable

__all__ = ["StepQuantize", "quantize_step"]


@recordable
@dataclasses.dataclass(frozen=True)
class StepQuantize(Quantizer):
    """See `quantize_step`. range: has no meaning; files of version 1 have it."""

    step: float
    range: str = "max"

    ranged: ClassVar[bool] = False

    def chosen(self, name: str, w: jax.Array, groups: Granularity) -> tuple[jax.Array, jax.Array]:
        reach = self.step * ((1 << (self.bits - 1)) - 0.5)
        if not isinstance(w, jax.core.Tracer) and w.size and float(jnp.max(jnp.abs(w))) > reach:
            raise LeafError(
                f"leaf {name!r} has magnitudes up to {float(jnp.max(jnp.abs(w))):.4g}, and {self.bits} "
                f"bits of step {self.step:.4g} reach {reach:.4g}; take more bits or a larger step"
            )
        step = jnp.full(groups.steps_shape(w.shape), self.step, w.dtype)
        return step, jnp.zeros_like(step)


def quantize_step(step: float, bits: int = 8) -> StepQuantize:
    """Rounds to multiples of `step`, one step size for each whole leaf.

    Where `quantize` fits step sizes to the range of the weights, this takes the one that a distortion asks
    for: a uniform quantizer of step Δ has a squared error of Δ² / 12 a weight, and an entropy coder makes
    short work of the codes that are then rarely used.

    Args:
      step: positive. bits: 2 to 8, that a code takes in memory.

    Raises:
      TransformError: a step that is not positive and finite, bits outside 2-8.
      LeafError (at `init`): the codes do not reach the largest weight.

    >>> import modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([0.6, -1.9])}, quantize_step(0.5))
    {'w': Array([ 0.5, -2. ], dtype=float32)}
    """
    if not 0.0 < step < math.inf:
        raise TransformError(f"a step size is positive and finite, not {step!r}")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise TransformError(f"bits must be an integer from 2 to 8, not {bits!r}")
    return StepQuantize(bits, "tensor", 128, -1, True, False, float(step))
