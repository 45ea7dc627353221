"""Static quantization: steps of activations that calibration has fixed, by any range."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_flag
from modelzip_jax.quantization.activations.operand import (
    ActivationQuantizer,
    Coded,
    Own,
    Seen,
    check_width,
    counted,
    unsigned,
)
from modelzip_jax.quantization.fits import UniformFit
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.ranges.extremes import FixedRange, MinMax
from modelzip_jax.quantization.ranges.range import Range
from modelzip_jax.quantization.ranges.searched import LeastSquares
from modelzip_jax.quantization.steps import code_range
from modelzip_jax.recipe import recordable

__all__ = ["WHOLE", "StaticSteps", "as_range", "chosen_from", "names_of_steps", "static"]

WHOLE = Granularity("tensor", -1, 1)
"""One step for all activations of a product: rows come and go, and channels are summed over."""


@recordable
@dataclasses.dataclass(frozen=True)
class StaticSteps(ActivationQuantizer):
    """See `static`."""

    bits: int
    range: Range
    symmetric: bool

    @property
    def holds(self) -> bool:
        return not isinstance(self.range, FixedRange)

    @property
    def kept(self) -> tuple[str, ...]:
        return names_of_steps(self.symmetric)

    @property
    def positive(self) -> tuple[str, ...]:
        return ("step",)

    @property
    def meaning(self) -> str:
        return f"steps of {self.bits} bits"

    def coded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> Coded:
        if not self.holds:
            own = self.calibrated(Seen(*(jnp.zeros(1, x.dtype) for _ in Seen._fields)))
        zero = own.get("zero")
        codes, inside = counted(
            x, own["step"], 0.0 if zero is None else zero, *code_range(self.bits, self.symmetric)
        )
        if self.symmetric:
            return Coded(codes, own["step"], None, inside)
        codes, zero = unsigned(codes, zero, self.bits)
        return Coded(codes, own["step"], zero, inside)

    def calibrated(self, seen: Seen) -> dict[str, jax.Array]:
        step, zero = chosen_from(seen, self.range, UniformFit(self.bits, self.symmetric, WHOLE))
        return {"step": step} if self.symmetric else {"step": step, "zero": zero}


def names_of_steps(symmetric: bool) -> tuple[str, ...]:
    """The names of the numbers that `chosen_from` is made of."""
    return ("step",) if symmetric else ("step", "zero")


_WORDS: dict[str, Range] = {"max": MinMax(), "mse": LeastSquares()}


def as_range(range: Any, what: str) -> Range | None:
    """A range, by word as of `mz.quantize`, or None.

    Raises:
      TransformError: it is none.

    >>> as_range("mse", "static()")
    LeastSquares(trials=48)
    """
    if isinstance(range, str) and range in _WORDS:
        return _WORDS[range]
    if range is not None and not isinstance(range, Range):
        call = f": call it, {range.__name__}()" if hasattr(range, "__name__") else ""
        raise TransformError(
            f"{what} takes a range, 'max', 'mse' or one of mz.ranges, such as percentile(99.9){call}, not "
            f"{range!r:.100}"
        )
    return range


def chosen_from(seen: Seen, kind: Range, fit: UniformFit) -> tuple[jax.Array, jax.Array]:
    """Step size and zero point of what was seen: scalars."""
    if kind.decay is not None:
        decay = kind.decay
        edges = jnp.stack([jnp.maximum(seen.highs, 0.0), jnp.maximum(-seen.lows, 0.0)], axis=1)
        mean, _ = jax.lax.scan(lambda m, e: (decay * m + (1.0 - decay) * e, None), edges[0], edges[1:])
        step, zero = fit.steps(mean[0], mean[1])
        return step, zero
    values = seen.values
    if kind.of_extremes:
        values = jnp.stack([jnp.min(seen.lows), jnp.max(seen.highs)])
    step, zero = kind.choose(values, fit, None)
    return step.reshape(()), zero.reshape(())


def static(bits: int = 8, *, range: Range | str | None = None, symmetric: bool = True) -> StaticSteps:
    """Static quantization: one step a product, fixed by calibration; what is beyond its range is clipped.

    Args:
      bits: 2 to 8.
      range: of `mz.ranges`, or your own, applied to a sample of each product's inputs: "mse" is `least_squares()`.
        "max", `min_max()`, of all of them, if None. `moving_average(decay)` is the running mean of batches' extremes.
        `fixed(low, high)` needs no calibration.
      symmetric: codes of both signs around 0. Otherwise an integer zero point puts all codes between the ends of the
        range: a bit more after a ReLU. The product then subtracts the zero point times the sums of the weights.

    Raises:
      TransformError: another number of bits; no range; a flag that is none.

    Gradients are straight-through, zero where a value is clipped.

    Jacob et al. 2018, arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342, section 3.

    >>> import modelzip_jax as mz
    >>> how, w, x = static(range=mz.ranges.min_max()), jnp.eye(2), jnp.array([[1.27, -0.5]])
    >>> scales = mz.activations.calibrate(lambda p, x: x @ p["w"], how, {"w": w}, [x])
    >>> scales
    {'w': {'step': Array(0.01, dtype=float32)}}
    >>> model = mz.rewrites.quantize_activations(lambda p, x: x @ p["w"], how, scales)
    >>> model({"w": w}, jnp.array([[3.0, 0.123]])) / 0.01
    Array([[127.,  12.]], dtype=float32)
    """
    return StaticSteps(
        check_width(bits, 2), as_range(range, "static()") or MinMax(), as_flag(symmetric, "symmetric")
    )
