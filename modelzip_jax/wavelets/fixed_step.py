"""Quantization with a given step size: the end of a chain that was fitted to a distortion."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view, placed
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.quantization.blank_groups import is_blank, replaced
from modelzip_jax.quantization.channel_axis import check_axis
from modelzip_jax.quantization.fits import FoundSteps
from modelzip_jax.quantization.granularity import Granularity, check_granularity
from modelzip_jax.quantization.quantizer import Quantizer
from modelzip_jax.quantization.steps import choose_step
from modelzip_jax.recipe import recordable

__all__ = ["StepQuantize", "quantize_step"]


@recordable
@dataclasses.dataclass(frozen=True)
class StepQuantize(Quantizer):
    """See `quantize_step`. range: has no meaning; files of version 1 have it."""

    step: float
    range: str = "max"

    ranged: ClassVar[bool] = False

    def chosen(
        self, name: str, w: jax.Array, groups: Granularity, importance: jax.Array | None
    ) -> FoundSteps:
        if groups.kind == "tensor":
            self._check_reach(name, w)
            step = jnp.full(groups.steps_shape(w.shape), self.step, w.dtype)
            return FoundSteps(step, jnp.zeros_like(step))
        least, zero = choose_step(w, self.bits, True, groups)
        return FoundSteps(self._widened(replaced(least, is_blank(w, groups), self.step)), zero)

    def _widened(self, least: jax.Array) -> jax.Array:
        """The step, or where codes would not reach a group's largest weight the least that does."""
        step, seen = np.asarray(self.step, least.dtype), host_view(least)
        return jnp.maximum(least, step) if seen is None else placed(np.maximum(seen, step))

    def _check_reach(self, name: str, w: jax.Array) -> None:
        if isinstance(w, jax.core.Tracer) or not w.size:
            return
        reach, seen = self.step * ((1 << (self.bits - 1)) - 0.5), host_view(w)
        with jax.ensure_compile_time_eval():
            largest = float(jnp.max(jnp.abs(w)) if seen is None else np.max(np.abs(seen)))
        if largest > reach:
            raise LeafError(
                f"leaf {name!r} has magnitudes up to {largest:.4g}, and {self.bits} bits of step {self.step:.4g} "
                f"reach {reach:.4g}; take more bits, a larger step, or steps of channels or groups"
            )


def quantize_step(
    step: float,
    bits: int = 8,
    *,
    granularity: str = "tensor",
    group_size: int = 128,
    axis: int | tuple[int, ...] | str = "auto",
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
      LeafError (at `init`): the codes do not reach the largest weight, by "tensor"; a leaf has no such axis.

    >>> import modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([0.6, -1.9])}, quantize_step(0.5))
    {'w': Array([ 0.5, -2. ], dtype=float32)}
    """
    if not 0.0 < step < math.inf:
        raise TransformError(f"a step size is positive and finite, not {step!r}")
    bits, group_size = as_whole(bits, "bits", 2, 8), as_whole(group_size, "group_size", 1)
    check_granularity(granularity)
    return StepQuantize(bits, granularity, group_size, check_axis(axis), True, False, float(step))
