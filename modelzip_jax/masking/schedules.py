"""Sparsity as a function of the optimizer step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.recipe import recordable

__all__ = ["Polynomial", "cubic", "polynomial"]


@recordable
@dataclasses.dataclass(frozen=True)
class Polynomial:
    """`final + (initial - final) (1 - t)^power`, t running from 0 at `begin` to 1 at `end`.

    See `polynomial`. Being a dataclass, it can be recorded in a file's recipe.
    """

    final: float
    begin: int
    end: int
    initial: float
    power: float

    def __call__(self, step: Any) -> jax.Array:
        """The sparsity at a step (int32 scalar): float32 scalar."""
        span = max(self.end - self.begin, 1)
        t = jnp.clip((jnp.asarray(step, jnp.float32) - self.begin) / span, 0.0, 1.0)
        ramp = self.final + (self.initial - self.final) * (1.0 - t) ** self.power
        return jnp.where(t >= 1.0, jnp.float32(self.final), ramp)


def polynomial(final: float, begin: int, end: int, initial: float = 0.0, power: float = 3.0) -> Polynomial:
    """Gradual pruning from `initial` to `final` sparsity (Zhu & Gupta 2017, eq. 1).

    Args:
      final: the sparsity from step `end` on, in [0, 1).
      begin: the last optimizer step at the `initial` sparsity.
      end: the first optimizer step at the `final` sparsity; not before `begin`.
      initial: the sparsity up to `begin`, in [0, 1).
      power: 1 is linear, 3 the paper's cubic.

    Raises:
      TransformError: a sparsity outside [0, 1), or `end` before `begin`.

    >>> schedule = polynomial(0.9, begin=100, end=200, power=1)
    >>> [round(float(schedule(s)), 3) for s in (0, 150, 300)]
    [0.0, 0.45, 0.9]
    """
    for name, value in (("final", final), ("initial", initial)):
        if not 0.0 <= value < 1.0:
            raise TransformError(f"{name} sparsity must be in [0, 1), not {value}")
    if end < begin:
        raise TransformError(f"the schedule ends at step {end}, before it begins at step {begin}")
    return Polynomial(float(final), int(begin), int(end), float(initial), float(power))


def cubic(final: float, begin: int, end: int, initial: float = 0.0) -> Polynomial:
    """Gradual pruning with the cubic ramp of Zhu & Gupta 2017; see `polynomial`.

    >>> round(float(cubic(0.9, begin=0, end=10)(10)), 6)
    0.9
    """
    return polynomial(final, begin, end, initial, power=3.0)
