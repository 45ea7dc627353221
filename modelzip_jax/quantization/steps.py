"""Step sizes and zero points from the weights' ranges."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view, placed
from modelzip_jax.quantization.granularity import Granularity, max_abs
from modelzip_jax.quantization.host_codes import step_bounds, steps_on_host

__all__ = ["choose_step", "code_range", "covering_step", "initial_step", "reciprocal"]


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
    if symmetric and bits == 1:
        count = np.maximum(groups.counts(w.shape), 1).astype(w.dtype)
        step = 2.0 * groups.reduce(jnp.sum, jnp.abs(w)) / count
        return _positive(step), jnp.full_like(step, 0.5)
    top = groups.reduce(max_abs, w if symmetric else jnp.maximum(w, 0.0))
    bottom = top if symmetric else groups.reduce(max_abs, jnp.minimum(w, 0.0))
    return covering_step(top, bottom, bits, symmetric)


def covering_step(
    top: jax.Array, bottom: jax.Array, bits: int, symmetric: bool
) -> tuple[jax.Array, jax.Array]:
    """The least step sizes, and zero points, with which codes reach from `-bottom` to `top`; shapes as these.

    >>> covering_step(jnp.float32(7.0), jnp.float32(3.5), 4, True)
    (Array(1., dtype=float32), Array(0., dtype=float32))
    """
    low, high = code_range(bits, symmetric)
    if symmetric and bits == 1:
        step = _positive(2.0 * jnp.maximum(top, bottom))
        return step, jnp.full_like(step, 0.5)
    if symmetric:
        step = _positive(jnp.maximum(top, bottom) * reciprocal(high, top.dtype))
        return step, jnp.zeros_like(step)
    # One sum and one product, which XLA has nothing to rearrange in.
    step = _positive(jnp.minimum(top + bottom, jnp.finfo(top.dtype).max) * reciprocal(high, top.dtype))
    return step, jnp.clip(jnp.round(bottom / step), low, high)


def reciprocal(high: int, dtype: Any) -> np.generic:
    """1 / high, rounded. XLA divides by a constant so; written as a product, every backend and NumPy do."""
    kind = np.dtype(dtype).type
    return kind(1) / kind(high)


def _positive(step: jax.Array) -> jax.Array:
    """Normal and with a normal reciprocal, see `step_bounds`. 1 for zeros."""
    return jnp.where(step > 0, jnp.clip(step, *step_bounds(step.dtype)), 1.0)


def choose_step(w: jax.Array, bits: int, symmetric: bool, groups: Granularity) -> tuple[jax.Array, jax.Array]:
    """`initial_step`; of weights that can be read on the host nothing is compiled for their shape."""
    by_sums = (symmetric and bits == 1) or len(groups.axes(w.shape)) > 1
    seen = None if by_sums or w.dtype not in (jnp.float32, jnp.float64) else host_view(w)
    if seen is None:
        return _initial_step(w, bits, symmetric, groups)
    scale = reciprocal(code_range(bits, symmetric)[1], w.dtype)
    step, zero = steps_on_host(seen, *code_range(bits, symmetric), scale, groups)
    return placed(step), placed(zero)


_initial_step = jax.jit(initial_step, static_argnums=(1, 2, 3))
