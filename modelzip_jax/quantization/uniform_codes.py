"""Rounding to a uniform grid, with the exact gradients of learned step sizes.

With the code q = round(clip(w · (1 / s), low - z, high - z) + z), the network computes with

    ŵ = (q - z) s

written so that eager, jitted and packed code compute alike, on every backend. Of a division by a broadcast step XLA
makes a product with its reciprocal, here and there: so it is one. A product next to a sum becomes one fused
operation, which rounds once, here and there: so the clip is between them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modelzip_jax.concrete import host_views, traced_once
from modelzip_jax.meshes import under_any_mesh
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.host_codes import codes_on_host

__all__ = ["codes", "dequantize", "fake_quantize", "stored_codes"]

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
    zero = groups.expand(zero, w.shape)
    q = jnp.round(jnp.clip(_quotient(w, step, groups), low - zero, high - zero) + zero)
    # Rounding gives -0.0 to small negative weights; packed codes know one zero only.
    return jnp.where(q == 0, jnp.zeros_like(q), q)


def stored_codes(
    w: jax.Array, step: jax.Array, zero: jax.Array, low: int, high: int, groups: Granularity
) -> np.ndarray | jax.Array:
    """The codes as a file stores them: unsigned, from 0, 1-D uint8; arguments as in `codes`.

    Weights that can be read on the host are: nothing is compiled for their shape.

    >>> groups = Granularity("tensor", -1, 1)
    >>> stored_codes(jnp.array([-9.0, 0.4, 1.2]), jnp.ones((1, 1)), jnp.zeros((1, 1)), -2, 1, groups)
    array([0, 2, 3], dtype=uint8)
    """
    wide = w.dtype in (jnp.float32, jnp.float64) and len(groups.axes(w.shape)) < 2
    seen = host_views(w, step, zero) if wide else None
    if seen is None or not all(x.dtype == w.dtype for x in seen):
        return _stored_codes(w, step, zero, low, high, groups)
    weights, steps, zeros = seen
    return codes_on_host(weights, steps, zeros, low, high, groups)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _stored_codes(
    w: jax.Array, step: jax.Array, zero: jax.Array, low: int, high: int, groups: Granularity
) -> jax.Array:
    found = (codes(w, step, zero, low, high, groups) - low).astype(jnp.uint8)
    return under_any_mesh(lambda q: q.reshape(-1), (found,), PartitionSpec())


def _quotient(w: jax.Array, step: jax.Array, groups: Granularity) -> jax.Array:
    return w * groups.expand(1.0 / step, w.shape)


def dequantize(q: jax.Array, step: jax.Array, zero: jax.Array, groups: Granularity, bits: int) -> jax.Array:
    """`(q - z) s`: codes (float, the leaf's shape) to weights."""
    values = (q - groups.expand(zero, q.shape)) * groups.expand(step, q.shape)
    if bits > 1:
        return values
    # Half of the least step is no normal number: a zero, on some devices of its sign, which no code would come back to.
    return jnp.where(jnp.abs(values) < jnp.finfo(values.dtype).tiny, jnp.zeros_like(values), values)


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
    return _rounded(w, step, zero, low, high, groups)


@traced_once(3, 4, 5)
def _rounded(
    w: jax.Array, step: jax.Array, zero: jax.Array, low: int, high: int, groups: Granularity
) -> jax.Array:
    return dequantize(codes(w, step, zero, low, high, groups), step, zero, groups, (high - low).bit_length())


def _forward(w, step, zero, low, high, groups):  # type: ignore[no-untyped-def]
    return fake_quantize(w, step, zero, low, high, groups), (w, step, zero)


def _backward(low, high, groups, saved, g):  # type: ignore[no-untyped-def]
    w, step, zero = saved
    return _gradients(w, step, zero, g, low, high, groups)


@traced_once(4, 5, 6)
def _gradients(
    w: jax.Array, step: jax.Array, zero: jax.Array, g: jax.Array, low: int, high: int, groups: Granularity
) -> tuple[jax.Array, jax.Array, jax.Array]:
    u, z = _quotient(w, step, groups), groups.expand(zero, w.shape)
    q = jnp.round(jnp.clip(u, low - z, high - z) + z)
    inside = (u >= low - z - _EDGE) & (u <= high - z + _EDGE)
    ds = g * jnp.where(inside, q - (u + z), q - z)
    dz = jnp.where(inside, 0.0, -g * groups.expand(step, w.shape))
    scale = jnp.asarray(1.0 / np.sqrt(np.maximum(groups.counts(w.shape) * max(high, 1), 1)), w.dtype)
    return jnp.where(inside, g, 0.0), scale * groups.sums(ds), scale * groups.sums(dz)


fake_quantize.defvjp(_forward, _backward)
