"""Clips and steps of activations that are trained with the network: PACT, LSQ and LSQ+."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_flag
from modelzip_jax.quantization.activations.calibrated_steps import (
    WHOLE,
    as_range,
    chosen_from,
    names_of_steps,
)
from modelzip_jax.quantization.activations.operand import (
    ActivationQuantizer,
    Coded,
    Own,
    Seen,
    check_width,
    divided,
    unsigned,
)
from modelzip_jax.quantization.fits import UniformFit
from modelzip_jax.quantization.ranges.range import Range
from modelzip_jax.quantization.ranges.searched import LeastSquares
from modelzip_jax.quantization.steps import code_range
from modelzip_jax.quantization.uniform_codes import codes, fake_quantize
from modelzip_jax.recipe import recordable

__all__ = ["ClippedActivations", "LearnedStep", "learned_step", "pact"]

_LEAST = 2.0**-30


@recordable
@dataclasses.dataclass(frozen=True)
class ClippedActivations(ActivationQuantizer):
    """See `pact`."""

    bits: int
    clip: float | None

    weights = None
    holds = True  # type: ignore[assignment]
    kept = ("clip",)  # type: ignore[assignment]

    def coded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> Coded:
        clip = _positive(own["clip"])
        step = clip / ((1 << self.bits) - 1)
        found, zero = unsigned(jnp.round(divided(jnp.clip(x, 0.0, clip), step)), None, self.bits)
        return Coded(found, step, zero)

    def rounded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> jax.Array:
        value = lax.stop_gradient(self.coded(x, own, axes).values())
        clip = _positive(own["clip"]).astype(x.dtype)
        clipped = jnp.where(x >= clip, clip, jnp.where(x < 0.0, 0.0, x))
        return value + (clipped - lax.stop_gradient(clipped))

    def calibrated(self, seen: Seen) -> dict[str, jax.Array]:
        largest = jnp.max(seen.highs)
        found = jnp.where(largest > 0, largest, 1.0) if self.clip is None else jnp.full((), self.clip)
        return {"clip": found.astype(jnp.float32)}


@recordable
@dataclasses.dataclass(frozen=True)
class LearnedStep(ActivationQuantizer):
    """See `learned_step`."""

    bits: int
    symmetric: bool
    range: Range | None

    weights = None
    holds = True  # type: ignore[assignment]

    @property
    def kept(self) -> tuple[str, ...]:
        return names_of_steps(self.symmetric)

    @property
    def meaning(self) -> str:
        return f"steps of {self.bits} bits"

    def coded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> Coded:
        step, zero = self._current(own, x)
        found = codes(x, step, zero, *code_range(self.bits, self.symmetric), WHOLE)
        if self.symmetric:
            return Coded(found, step.reshape(()))
        found, moved = unsigned(found, zero.reshape(()), self.bits)
        return Coded(found, step.reshape(()), moved)

    def rounded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> jax.Array:
        # `fake_quantize` counts all elements; LSQ those of an example.
        more = math.sqrt(x.size / max(math.prod(x.shape[a] for a in axes), 1))
        step, zero = (_slower(n, more) for n in self._current(own, x))
        return fake_quantize(x, step, zero, *code_range(self.bits, self.symmetric), WHOLE)

    def _current(self, own: Own, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        step = _positive(own["step"]).astype(x.dtype).reshape(1, 1)
        zero = jnp.asarray(own.get("zero", 0.0), x.dtype).reshape(1, 1)
        return step, lax.stop_gradient(jnp.round(zero)) + (zero - lax.stop_gradient(zero))

    def calibrated(self, seen: Seen) -> dict[str, jax.Array]:
        if self.range is None and self.symmetric:
            high = code_range(self.bits, True)[1]
            step = 2.0 * jnp.mean(jnp.abs(seen.values)) / math.sqrt(high)
            return {"step": jnp.where(step > 0, step, 1.0)}
        fit = UniformFit(self.bits, self.symmetric, WHOLE)
        step, zero = chosen_from(seen, self.range or LeastSquares(), fit)
        return {"step": step} if self.symmetric else {"step": step, "zero": zero}


@jax.custom_vjp
def _positive(x: Any) -> jax.Array:
    """At least 2^-30; there, only a gradient that raises it passes."""
    return jnp.maximum(x, _LEAST)


_positive.defvjp(
    lambda x: (_positive(x), x),
    lambda x, g: (jnp.where((x > _LEAST) | (g < 0), g, jnp.zeros_like(g)),),
)


@jax.custom_vjp
def _slower(x: jax.Array, factor: Any) -> jax.Array:
    """`x`, its gradient times a factor."""
    return x


_slower.defvjp(lambda x, factor: (x, factor), lambda factor, g: (g * factor, None))


def pact(bits: int, *, clip: float | None = None) -> ClippedActivations:
    """PACT: activations clipped to [0, α], and α of each product trained.

        y = 0.5 (|x| - |x - α| + α),  rounded to  round(y (2^bits - 1) / α) α / (2^bits - 1)     (eqs. 1, 2)
        ∂y/∂α = 1 where x ≥ α, else 0;  ∂y/∂x = 1 where 0 ≤ x < α                                (eq. 3)

    It takes the place of a ReLU, and inputs below 0 become 0: name products after one by `only=`. What `calibrate`
    gives are the α, `{leaf: {"clip": α}}`: train them beside the parameters, with L2 regularization, for which the
    paper takes the weights' own. An α that falls to 0 is held at 2^-30.

    Args:
      bits: 1 to 8.
      clip: of all products at first; the largest input in calibration if None.

    Raises:
      TransformError: another number of bits; a clip that is not positive.

    Weights stay as they are unless `quantize_activations` is told: `mz.wrap` quantizes them.

    Choi et al. 2018, arXiv:1805.06085.

    >>> import modelzip_jax as mz
    >>> how, alpha = pact(2), {"w": {"clip": jnp.float32(3.0)}}
    >>> def model(alpha, x):
    ...     return mz.rewrites.quantize_activations(lambda p, x: x @ p["w"], how, alpha)({"w": jnp.ones((1, 1))}, x)
    >>> model(alpha, jnp.array([[-1.0], [1.2], [9.0]])).ravel()
    Array([0., 1., 3.], dtype=float32)
    >>> jax.grad(lambda a: model(a, jnp.array([[-1.0], [1.2], [9.0]])).sum())(alpha)
    {'w': {'clip': Array(1., dtype=float32)}}
    """
    if clip is not None and (
        isinstance(clip, bool) or not isinstance(clip, int | float) or not 0 < clip < math.inf
    ):
        raise TransformError(f"a clip is a positive number, not {clip!r}")
    return ClippedActivations(check_width(bits, 1), None if clip is None else float(clip))


def learned_step(bits: int, *, symmetric: bool = True, range: Range | str | None = None) -> LearnedStep:
    """LSQ: the step of each product's activations trained; with `symmetric=False` its zero point, too, as in LSQ+.

    With v = x / s + z and the code q = round(clip(v)):

        ∂x̂/∂s = q - v inside, q - z where clipped;  ∂x̂/∂z = -s where clipped;  ∂x̂/∂x = 1 inside

    each summed over all activations and scaled by 1 / sqrt(N · largest code), N the activations of a row (an image of a
    convolution). The zero point is trained as a number and used rounded, so that products stay on integers: of LSQ+ the
    offset is a multiple of the step. A step never falls below 2^-30.

    Args:
      bits: 2 to 8.
      symmetric: codes of both signs. Otherwise codes from 0, with a zero point: after a ReLU.
      range: what steps begin with, of `mz.ranges`, "max" or "mse". None: 2 E|x| / sqrt(largest code) (LSQ,
        section 2.1), or, with zero points, `least_squares()`.

    Raises:
      TransformError: another number of bits; no range; a flag that is none.

    What `calibrate` gives is trained beside the parameters, without weight decay. Weights stay as they are unless
    `quantize_activations` is told: `mz.wrap` quantizes them.

    Esser et al. 2020, arXiv:1902.08153; Bhalgat et al. 2020 (LSQ+), arXiv:2004.09576.

    >>> found = learned_step(2).rounded(jnp.array([[-9.0, 0.3, 0.8]]), {"step": jnp.float32(0.5)}, (1,))
    >>> found
    Array([[-1. ,  0.5,  0.5]], dtype=float32)
    """
    return LearnedStep(
        check_width(bits, 2), as_flag(symmetric, "symmetric"), as_range(range, "learned_step()")
    )
