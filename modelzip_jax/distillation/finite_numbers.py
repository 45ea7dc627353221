"""Hyperparameters that must be finite numbers within bounds."""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import DistillationError

__all__ = ["check_count", "check_number"]


def check_number(
    value: Any,
    argument: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
) -> float:
    """The value as a float; raises `DistillationError` naming the argument if it is not finite or out of bounds.

    Args:
      above: an open lower bound. least: a closed one. below: an open upper bound.

    >>> check_number(float("nan"), "temperature", above=0)
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: temperature must be a finite number > 0, not nan
    """
    bounds = [(" > ", above), (" >= ", least), (" < ", below)]
    if isinstance(value, jax.Array | np.ndarray) and jnp.ndim(value) == 0:
        if isinstance(value, jax.core.Tracer):
            raise DistillationError(
                f"{argument} must be a number when a step is compiled, not a traced one; pass it from outside jit"
            )
        value = value.item()
    wanted = " and".join(f"{sign}{bound:g}" for sign, bound in bounds if bound is not None)
    fits = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if fits:
        fits = (
            (above is None or value > above)
            and (least is None or value >= least)
            and (below is None or value < below)
        )
    if not fits:
        raise DistillationError(f"{argument} must be a finite number{wanted}, not {value!r:.100}")
    return float(value)


def check_count(value: Any, argument: str) -> int:
    """The value as an int of at least 1; raises `DistillationError` naming the argument if it is none.

    >>> check_count(2.5, "every")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: every must be an integer of at least 1, not 2.5
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise DistillationError(f"{argument} must be an integer of at least 1, not {value!r:.100}")
    return int(value)
