"""The coarsest step sizes with which codes of eight bits meet a squared error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.host_codes import blank_on_host, spread_on_host, steps_on_host

__all__ = ["BITS", "WHOLE", "Trial", "fit_steps"]

BITS = 8
WHOLE = Granularity("tensor", -1, 128)
"""One step size for all."""
_HIGH = (1 << (BITS - 1)) - 1
_REACH = _HIGH + 0.5 - 1e-3
_TOLERANCE = 2e-4
"""How far below the target the error of a step size may lie, relatively."""
_TRIES = 16


class Trial(NamedTuple):
    """step: of every group whose weights it reaches. steps: `(groups, channels)`. error: squared, of the weights.

    codes: uint8 from 1 to 255, of the coefficients' shape.
    """

    step: float
    steps: np.ndarray
    error: float
    codes: np.ndarray


def _smallest_steps(y: np.ndarray, groups: Granularity) -> np.ndarray:
    """With which codes of eight bits reach each group's largest magnitude: float32 `(groups, channels)`; 0 of zeros."""
    if groups == WHOLE:
        return np.full((1, 1), np.max(np.abs(y), initial=0.0) / _REACH, np.float32)
    steps, _ = steps_on_host(y, -_HIGH - 1, _HIGH, np.float32(1) / np.float32(_HIGH), groups)
    return np.where(blank_on_host(y, groups), np.float32(0), steps)


def fit_steps(
    y: np.ndarray, target: float, groups: Granularity, error: Callable[[np.ndarray], float] | None = None
) -> Trial | None:
    """The largest step whose squared error meets the target; None if eight bits cannot.

    A group that the step does not reach takes its own `_smallest_steps`; the others make up for it.

    Args:
      y: weights or coefficients, float32. target: most squared error. groups: which of them share a step.
      error: of the weights, from that of the coefficients; the same without.
    """
    least = _smallest_steps(y, groups)
    if not least.any():
        return None
    smallest = float(least[least > 0].min())
    step = max(math.sqrt(12.0 * target / y.size), smallest)
    low, high = smallest, math.inf
    trial, before = None, None
    for _ in range(_TRIES):
        steps = np.maximum(least, np.float32(step))
        codes, off = _coded(y, steps, groups)
        found = _squares(off) if error is None else error(off)
        if found <= target and (trial is None or step > trial.step):
            trial = Trial(step, steps, found, codes)
        if (found <= target and found > target * (1.0 - _TOLERANCE)) or (found > target and step <= smallest):
            break
        low, high = (max(low, step), high) if found <= target else (low, step)
        aim = _next(step, found, before, (1.0 - 0.5 * _TOLERANCE) * target)
        if not low < aim < high:
            aim = 2.0 * low if high == math.inf else math.sqrt(low * high) if trial else low
        if aim == step:
            break
        before, step = (step, found), aim
    return trial


def _next(step: float, error: float, before: tuple[float, float] | None, aim: float) -> float:
    """The step of that error, had errors the form a + b step²; a = 0 unless two are known."""
    if before is not None and error != before[1]:
        square = step**2 + (aim - error) * (before[0] ** 2 - step**2) / (before[1] - error)
        if square > 0.0:
            return math.sqrt(square)
    return step * math.sqrt(aim / max(error, 1e-30))


def _coded(y: np.ndarray, steps: np.ndarray, groups: Granularity) -> tuple[np.ndarray, np.ndarray]:
    """Codes as bytes, and by how much the values that they stand for are off."""
    if groups == WHOLE:
        step, scale = steps[0, 0], np.float32(1) / steps[0, 0]
    else:
        step = spread_on_host(steps, y.shape, groups)
        scale = np.float32(1) / step
    q = y * scale
    np.rint(q, out=q)
    np.clip(q, -_HIGH, _HIGH, out=q)
    codes = (q + np.float32(128)).astype(np.uint8)
    q *= step
    q -= y
    return codes, q


def _squares(x: np.ndarray) -> float:
    flat = x.reshape(-1)
    return float(np.dot(flat, flat))
