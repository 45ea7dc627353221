"""The step size that meets a target: of bytes, or of a drop in quality."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from modelzip_jax.errors import TransformError

__all__ = ["Found", "within_bytes", "within_drop"]

_SHARE = 0.99
"""Of the bytes that are asked for, which is near enough."""
_AIM = 0.9965
_TRIES = 100
_NEAREST, _FAR = 1e-4, 3.0
"""Octaves between two tries: the least, and the most where only one side is known."""
_OCTAVES = 24
"""How far from the first step others are looked for."""
_CLOSE = 0.05
"""Octaves between a step that keeps within the drop and one that does not, which is near enough."""


class Found(NamedTuple):
    """What a step size gives. step: the step size. result: what was made with it. figure: bytes, or the drop."""

    step: float
    result: Any
    figure: float


def within_bytes(make: Callable[[float], tuple[Any, int]], first: float, target: int, weights: int) -> Found:
    """The result of at most `target` bytes and no less than 99 % of them.

    A step twice as large saves a bit a weight, or less where many are zero already: by that, and then by the line
    through the two nearest, the next step is guessed, between those that are known to be too large and too small.

    Args:
      make: from a step to what it gives, and the bytes of that, which fall as the step grows; 0 for a step that is
        too coarse to give anything. first: the step to begin with. target: bytes. weights: how many are encoded.

    Returns:
      Less than 99 % only where the finest steps that are looked for, 2⁻²⁴ of the first, need no more.

    Raises:
      TransformError: the coarsest steps need more than `target`; the least is named.

    >>> within_bytes(lambda step: (None, int(1000 - 100 * math.log2(step))), 1.0, 900, 800).figure
    896
    """
    least, most = math.log2(first) - _OCTAVES, math.log2(first) + _OCTAVES
    fine: tuple[float, int] | None = None
    coarse: tuple[float, int] | None = None
    best: Found | None = None
    smallest = math.inf
    at, slope = math.log2(first), -max(weights, 1) / 8.0
    for _ in range(_TRIES):
        result, size = make(2.0**at)
        if size > target:
            fine = at, size
        elif coarse is None or at < coarse[0]:
            coarse = at, size
        if size > 0:
            smallest = min(size, smallest)
            if size <= target and (best is None or size > best.figure):
                best = Found(2.0**at, result, size)
        if best is not None and best.figure >= _SHARE * target:
            return best
        if at <= least or (at >= most and best is None):
            break
        if fine is not None and coarse is not None:
            if coarse[0] - fine[0] < _NEAREST:
                break
            share = (fine[1] - _AIM * target) / (fine[1] - coarse[1])
            at = fine[0] + min(max(share, 0.05), 0.95) * (coarse[0] - fine[0])
        else:
            guess = at + (_AIM * target - size) / slope
            at = min(guess, at - _NEAREST) if fine is None else max(guess, at + _NEAREST)
            # Beyond a few octaves the slope is another.
            at = min(max(at, (coarse or fine)[0] - _FAR), (coarse or fine)[0] + _FAR)  # type: ignore[index]
            at = min(max(at, least), most)
    if best is None:
        # Of the coarsest steps, if they give a file: those that other targets meet as well.
        least_bytes = size if at >= most and size else smallest
        raise TransformError(
            f"the smallest file that there can be of this model has {least_bytes:,} bytes, more than the {target:,} "
            "that it may have: besides codes there are leaves that stay lossless, step sizes and names"
        )
    return best


def within_drop(make: Callable[[float], tuple[Any, float]], first: float, limit: float) -> Found:
    """The result of the largest step whose drop is within the limit, to a twentieth of an octave.

    A squared error, and with it most drops, is four times as large at twice the step: by that the next one is guessed.

    Args:
      make: from a step to what it gives, and its drop. first: the step to begin with. limit: of the drop; positive.

    Raises:
      TransformError: no step within 24 octaves of the first keeps within it, or all of them do.

    >>> round(within_drop(lambda step: (None, step**2), 1.0, 0.04).step, 2)
    0.2
    """
    low, high = -math.inf, math.inf
    best: Found | None = None
    at = start = math.log2(first)
    for _ in range(_TRIES):
        result, drop = make(2.0**at)
        if drop <= limit:
            low, best = at, Found(2.0**at, result, drop)
        else:
            high = at
        if (high - low <= _CLOSE or at < start - _OCTAVES) and best is not None:
            return best
        if at > start + _OCTAVES:
            raise TransformError(
                f"the drop stays within {limit:g} however coarse the weights are, at last {drop:.3g} with none left: "
                "scores are higher where a model is better, and depend on the params that measure= is given"
            )
        if at < start - _OCTAVES:
            break
        guess = at + (
            0.5 * math.log2(limit / drop) if 0 < drop < math.inf else math.copysign(1.0, limit - drop)
        )
        guess = at + max(min(guess - at, 2.0), -2.0)
        if low > -math.inf and high < math.inf:
            at = min(max(guess, low + 0.3 * (high - low)), high - 0.3 * (high - low))
        else:
            at = min(guess, high - _CLOSE / 2) if high < math.inf else max(guess, low + _CLOSE / 2)
    raise TransformError(
        f"no step size keeps the drop within {limit:g}: with the finest steps it is {drop:.3g}; measure= should give "
        "the float model the same scores twice"
    )
