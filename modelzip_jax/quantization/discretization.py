"""Whether the values of a grid stay or follow the weights in training."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.quantization.blank_groups import is_blank
from modelzip_jax.quantization.ranges.range import Range
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Context

if TYPE_CHECKING:
    from modelzip_jax.quantization.quantizer import QuantizeState
    from modelzip_jax.quantization.quantizing import Quantize

__all__ = ["Discretization", "Dynamic", "ErrorControlled", "error_controlled", "resolved_discretization"]


@dataclasses.dataclass(frozen=True)
class Discretization:
    """How a leaf's steps, and what else its grid takes from the weights, change in every optimizer step."""

    def __call__(self, how: Quantize, w: jax.Array, s: QuantizeState, context: Context) -> QuantizeState:
        """The leaf's new state. how: the quantizer. w: latents."""
        raise TransformError(f"{type(self).__name__} defines no __call__()")


@dataclasses.dataclass(frozen=True)
class Dynamic(Discretization):
    """Values that follow the latents: chosen anew, as at `init`. decay: of a running mean of the steps, or None."""

    decay: float | None = None

    def __call__(self, how: Quantize, w: jax.Array, s: QuantizeState, context: Context) -> QuantizeState:
        groups = how._groups(s.axis.value)
        found = how.chosen("", w, groups, context.importance)
        blank = is_blank(w, groups)
        step = found.step
        if self.decay is not None:
            mean = self.decay * s.step + (1.0 - self.decay) * step
            step = jnp.where(s.blank, step, mean)
        step = jnp.where(blank, jnp.asarray(how.least_step, step.dtype), step)
        return s._replace(step=step, zero=found.zero, blank=blank, levels=found.levels, gain=found.gain)


@recordable
@dataclasses.dataclass(frozen=True)
class ErrorControlled(Discretization):
    """See `error_controlled`."""

    target: float
    gain: float
    finest: float
    coarsest: float
    name: str

    def __call__(self, how: Quantize, w: jax.Array, s: QuantizeState, context: Context) -> QuantizeState:
        value = context.user.get(self.name)
        if value is None:
            raise TransformError(
                f"steps that follow the training error need it: tx.update(grads, state, params, {self.name}=loss)"
            )
        covering = how.chosen("", w, how._groups(s.axis.value), context.importance).step
        error = jnp.asarray(value, s.step.dtype)
        ratio = jnp.clip(jnp.log(self.target / jnp.maximum(error, 1e-30)), -1.0, 1.0)
        moved = s.step * jnp.exp(self.gain * ratio)
        bounded = jnp.clip(moved, self.finest * covering, self.coarsest * covering)
        # A loss that is not finite, of a step that is skipped, changes nothing.
        step = jnp.where(jnp.isfinite(error) & ~is_blank(w, how._groups(s.axis.value)), bounded, s.step)
        return s._replace(step=step)


def error_controlled(
    target: float, *, gain: float = 0.01, finest: float = 0.25, coarsest: float = 4.0, name: str = "value"
) -> ErrorControlled:
    """Steps that follow the training error: finer while the loss is above the target, coarser while it is below.

    In every optimizer step s ← s · exp(gain · ln(target / loss)), the logarithm within ± 1, and s within bounds: an
    integral controller. Coarser steps give fewer codes that are used, so a smaller file at the loss that was asked for.

    Args:
      target: of the training loss, positive. gain: how fast steps move, positive; 0.01 is at most one per cent a step.
      finest, coarsest: the bounds, in units of the step that covers the latents' range.
      name: of the loss among the extra arguments of `tx.update(grads, state, params, value=loss)`.

    >>> import modelzip_jax as mz
    >>> mz.quantize(8, discretization=error_controlled(0.1)).discretization.target
    0.1
    """
    for what, x in (("target", target), ("gain", gain), ("finest", finest), ("coarsest", coarsest)):
        if isinstance(x, bool) or not isinstance(x, int | float) or not 0.0 < x < float("inf"):
            raise TransformError(f"{what} is a positive number, not {x!r}")
    if finest > coarsest:
        raise TransformError(f"the finest step, {finest}, is above the coarsest, {coarsest}")
    return ErrorControlled(float(target), float(gain), float(finest), float(coarsest), str(name))


def resolved_discretization(given: Any, kind: Range) -> Discretization | None:
    """What moves the steps: None where they stay."""
    if isinstance(given, Discretization):
        return given
    return Dynamic(kind.decay) if given == "dynamic" else None
