"""What `calibrate=` gives: a model, batches that calibrate, and batches to measure a drop on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modelzip_jax.calibrating import checked_pair
from modelzip_jax.errors import TransformError

__all__ = ["calibration_parts"]

_HELD = 4
"""One batch of so many is held out to measure a drop on."""


def calibration_parts(calibrate: Any, hold: bool) -> tuple[Callable[..., Any], list[Any], list[Any]]:
    """The model, the batches that calibrate, and those that are held out, one in four, or none.

    Raises:
      TransformError: it is no `(apply_fn, batches)`, or there are too few batches.
    """
    batches = list(checked_pair(calibrate)[1])
    if not batches:
        raise TransformError("calibrate= needs at least one batch: the sequence of batches was empty")
    if not hold:
        return calibrate[0], batches, []
    if len(batches) < 2:
        raise TransformError("max_drop= holds batches out to measure on: give calibrate= at least two")
    out = range(len(batches))[_HELD - 1 :: _HELD] or range(len(batches) - 1, len(batches))
    parts = [[batch for i, batch in enumerate(batches) if (i in out) == held] for held in (False, True)]
    return calibrate[0], parts[0], parts[1]
