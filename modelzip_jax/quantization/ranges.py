"""Step sizes and zero points from the weights' ranges."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view, placed
from modelzip_jax.quantization.granularity import Granularity, max_abs
from modelzip_jax.quantization.host_codes import step_bounds, steps_on_host
from modelzip_jax.quantization.rounding import fake_quantize

__all__ = ["RANGES", "choose_step", "code_range", "initial_step", "reciprocal", "search_step"]

RANGES = ("max", "mse")
_SHRINKS = 48


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """The smallest and largest code.

    Symmetric: [-2^(b-1), 2^(b-1) - 1], except one bit: {0, 1} around z = 1/2, the values ± s/2.
    Asymmetric: [0, 2^b - 1].

    >>> code_range(4, True), code_range(4, False), code_range(1, True)
    ((-8, 7), (0, 15), (0, 1))
    """
    if symmetric and bits > 1:
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def initial_step(
    w: jax.Array, bits: int, symmetric: bool, groups: Granularity
) -> tuple[jax.Array, jax.Array]:
    """Step sizes and zero points that cover each group's range without clipping.

    One symmetric bit takes ± mean |w| instead (Rastegari et al. 2016, XNOR-Net, eq. 6).

    Args:
      w: weights, floating point. bits: 1 to 8. groups: which weights share a step.

    Returns:
      (step, zero), each `(groups, channels)`, of `w`'s dtype; steps are positive, normal numbers.

    >>> step, zero = initial_step(jnp.array([-1.0, 3.0]), 2, False, Granularity("tensor", -1, 1))
    >>> float(step[0, 0]), float(zero[0, 0])
    (1.3333333730697632, 1.0)
    """
    low, high = code_range(bits, symmetric)
    if symmetric and bits == 1:
        count = np.maximum(groups.counts(w.shape), 1).astype(w.dtype)
        step = 2.0 * groups.reduce(jnp.sum, jnp.abs(w)) / count
        return _positive(step), jnp.full_like(step, 0.5)
    if symmetric:
        step = _positive(groups.reduce(max_abs, w) * reciprocal(high, w.dtype))
        return step, jnp.zeros_like(step)
    top = groups.reduce(max_abs, jnp.maximum(w, 0.0))
    bottom = groups.reduce(max_abs, jnp.minimum(w, 0.0))
    # One sum and one product, which XLA has nothing to rearrange in.
    step = _positive(jnp.minimum(top + bottom, jnp.finfo(w.dtype).max) * reciprocal(high, w.dtype))
    return step, jnp.clip(jnp.round(bottom / step), low, high)


def reciprocal(high: int, dtype: Any) -> np.generic:
    """1 / high, rounded. XLA divides by a constant so; written as a product, every backend and NumPy do."""
    kind = np.dtype(dtype).type
    return kind(1) / kind(high)


def _positive(step: jax.Array) -> jax.Array:
    """Normal and with a normal reciprocal, see `step_bounds`. 1 for zeros."""
    return jnp.where(step > 0, jnp.clip(step, *step_bounds(step.dtype)), 1.0)


def search_step(
    w: jax.Array, step: jax.Array, zero: jax.Array, low: int, high: int, groups: Granularity
) -> jax.Array:
    """Each group's step among 48 shrinks of `step`, down to a quarter, of least squared error.

    Clipping a few outliers for a finer groups (Banner et al. 2019; Nagel et al. 2021, section 3.1).
    """

    def better(best: tuple[jax.Array, jax.Array], shrink: jax.Array) -> tuple[tuple, None]:
        trial = _positive(step * shrink)
        error = groups.reduce(jnp.sum, jnp.square(fake_quantize(w, trial, zero, low, high, groups) - w))
        wins = error < best[1]
        return (jnp.where(wins, trial, best[0]), jnp.where(wins, error, best[1])), None

    start = (step, jnp.full_like(step, jnp.inf))
    (step, _), _ = jax.lax.scan(better, start, jnp.linspace(1.0, 0.25, _SHRINKS, dtype=step.dtype))
    return step


def choose_step(
    w: jax.Array, bits: int, symmetric: bool, groups: Granularity, method: str
) -> tuple[jax.Array, jax.Array]:
    """Step sizes and zero points by one of `RANGES`: "max" or "mse".

    Weights that can be read on the host are, by "max": nothing is compiled for their shape.
    """
    by_sums = (symmetric and bits == 1) or method == "mse" or len(groups.axes(w.shape)) > 1
    seen = None if by_sums or w.dtype not in (jnp.float32, jnp.float64) else host_view(w)
    if seen is None:
        return _choose_step(w, bits, symmetric, groups, method)
    scale = reciprocal(code_range(bits, symmetric)[1], w.dtype)
    step, zero = steps_on_host(seen, *code_range(bits, symmetric), scale, groups)
    return placed(step), placed(zero)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _choose_step(
    w: jax.Array, bits: int, symmetric: bool, groups: Granularity, method: str
) -> tuple[jax.Array, jax.Array]:
    step, zero = initial_step(w, bits, symmetric, groups)
    if method == "mse" and not (symmetric and bits == 1):
        step = search_step(w, step, zero, *code_range(bits, symmetric), groups)
    return step, zero
