"""Quantization with a given step size: the end of a chain that was fitted to a distortion."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
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
        reach = self.step * ((1 << (self.bits - 1)) - 0.5)
        for name, leaf in trees.named_leaves(values):
            if not isinstance(leaf, jax.core.Tracer) and leaf.size and float(jnp.max(jnp.abs(leaf))) > reach:
                raise LeafError(
                    f"leaf {name!r} has magnitudes up to {float(jnp.max(jnp.abs(leaf))):.4g}, and {self.bits} "
                    f"bits of step {self.step:.4g} reach {reach:.4g}; take more bits or a larger step"
                )
        state = jax.tree.map(
            lambda _, s: s._replace(step=jnp.full_like(s.step, self.step)), values, encoded.state
        )
        return encoded._replace(state=state)


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

    >>> t = quantize_step(0.5)
    >>> t.decode(*t.init({"w": jnp.array([0.6, -1.9])}))
    {'w': Array([ 0.5, -2. ], dtype=float32)}
    """
    if not 0.0 < step < math.inf:
        raise TransformError(f"a step size is positive and finite, not {step!r}")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise TransformError(f"bits must be an integer from 2 to 8, not {bits!r}")
    return StepQuantize(bits, "tensor", 128, -1, True, False, "max", float(step))
