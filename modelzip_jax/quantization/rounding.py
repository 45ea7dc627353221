"""Rounding to a uniform groups, with the exact gradients of learned step sizes.

With the code q = clip(round(w / s + z), low, high), the network computes with

    ŵ = (q - z) s

written as a difference and one product, which eager, jitted and packed code compute alike.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from modelzip_jax.quantization.granularity import Granularity

__all__ = ["codes", "dequantize", "fake_quantize"]

_EDGE = 1e-4
"""The largest weight of a range is the last code times its step: within rounding, and not to be taken for clipped."""


def codes(
    w: jax.Array, step: jax.Array, zero: jax.Array, low: int, high: int, groups: Granularity
) -> jax.Array:
    """The integer codes q of the weights, as floats of `w`'s dtype and shape.

    Args:
      w: weights. step: positive `(groups, channels)`. zero: the code of 0.0, `(groups, channels)`.
      low, high: the smallest and largest code. groups: which weights share a step.

    >>> groups = Granularity("tensor", -1, 1)
    >>> codes(jnp.array([-9.0, 0.4, 1.2]), jnp.ones((1, 1)), jnp.zeros((1, 1)), -2, 1, groups)
    Array([-2.,  0.,  1.], dtype=float32)
    """
    q = jnp.clip(jnp.round(_position(w, step, zero, groups)), low, high)
    # Rounding gives -0.0 to small negative weights; packed codes know one zero only.
    return jnp.where(q == 0, jnp.zeros_like(q), q)


def _position(w: jax.Array, step: jax.Array, zero: jax.Array, groups: Granularity) -> jax.Array:
    # The barrier keeps XLA from turning a division by a constant step into a product with its
    # reciprocal, which rounds to another code on some ties.
    step = jax.lax.optimization_barrier(step)
    return w / groups.expand(step, w.shape) + groups.expand(zero, w.shape)


def dequantize(q: jax.Array, step: jax.Array, zero: jax.Array, groups: Granularity) -> jax.Array:
    """`(q - z) s`: codes (float, the leaf's shape) to weights."""
    return (q - groups.expand(zero, q.shape)) * groups.expand(step, q.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def fake_quantize(
    w: jax.Array, step: jax.Array, zero: jax.Array, low: int, high: int, groups: Granularity
) -> jax.Array:
    """Quantize and dequantize; arguments as in `codes`.

    Gradients, with v = w / s + z (Esser et al. 2020, LSQ, eqs. 1-5; the zero point as in Bhalgat
    et al. 2020, LSQ+):

        ∂ŵ/∂w = 1 inside [low, high], 0 outside
        ∂ŵ/∂s = q - v inside, q - z outside (clipped weights count), summed over each group
        ∂ŵ/∂z = 0 inside, -s outside

    The gradients of s and z are scaled by 1 / sqrt(weights in the group · max(high, 1)).

    >>> groups = Granularity("tensor", -1, 1)
    >>> one, none = jnp.ones((1, 1)), jnp.zeros((1, 1))
    >>> jax.grad(lambda s: fake_quantize(jnp.array([5.0]), s, none, -2, 1, groups).sum())(one)
    Array([[1.]], dtype=float32)
    """
    return dequantize(codes(w, step, zero, low, high, groups), step, zero, groups)


def _forward(w, step, zero, low, high, groups):  # type: ignore[no-untyped-def]
    return fake_quantize(w, step, zero, low, high, groups), (w, step, zero)


def _backward(low, high, groups, saved, g):  # type: ignore[no-untyped-def]
    w, step, zero = saved
    v = _position(w, step, zero, groups)
    q = jnp.clip(jnp.round(v), low, high)
    inside = (v >= low - _EDGE) & (v <= high + _EDGE)
    ds = g * jnp.where(inside, q - v, q - groups.expand(zero, w.shape))
    dz = jnp.where(inside, 0.0, -g * groups.expand(step, w.shape))
    count = groups.reduce(jnp.sum, jnp.ones_like(w))
    scale = jax.lax.rsqrt(jnp.maximum(count * max(high, 1), 1.0))
    return jnp.where(inside, g, 0.0), scale * groups.reduce(jnp.sum, ds), scale * groups.reduce(jnp.sum, dz)


fake_quantize.defvjp(_forward, _backward)
