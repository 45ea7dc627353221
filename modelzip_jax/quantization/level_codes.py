"""Rounding to a grid of levels, with the exact gradients of learned scales.

With the level v = project(w · (1 / s) + z) nearest in units of the scale s, the network computes with

    ŵ = (v - z) s

where z is nil but for grids with an offset. Written, as `uniform_codes`, so that eager, jitted and packed code compute
alike: one product of the weight with a reciprocal, a clip before the sum if there is one, and one product.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modelzip_jax.concrete import host_views, traced_once
from modelzip_jax.meshes import place_of_each, under_any_mesh
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.grids.grid import Grid, table
from modelzip_jax.quantization.grids.nearest_level import (
    Levels,
    nearest_on_host,
    project_fitted,
    thresholds_between,
)
from modelzip_jax.quantization.host_codes import by_pieces_on_host, flushed, scaled_on_host, step_bounds

__all__ = [
    "fake_levels",
    "level_values",
    "scale_bounds",
    "scaled_to",
    "stored_levels",
    "values_of_levels_on_host",
]

_EDGE = 1e-5
"""A group's largest weight is an outer level times the scale: within rounding, and not to be taken for clipped."""
_SMALL = 1e-20


def scale_bounds(levels: np.ndarray | None, dtype: Any) -> tuple[np.generic, np.generic]:
    """Between these a scale, its reciprocal, and its product with every level are normal numbers.

    >>> [round(float(np.log2(b))) for b in scale_bounds(np.float32([-1, 0, 0.25, 1]), np.float32)]
    [-124, 125]
    """
    low, high = step_bounds(dtype)
    size = np.ones(1, np.float32) if levels is None else np.abs(levels[levels != 0])
    kind = np.dtype(dtype).type
    return low / kind(min(size.min(), 1)), high / kind(max(size.max(), 1))


def scaled_to(scale: jax.Array, kind: str) -> tuple[jax.Array, jax.Array | None]:
    """Scales as they can be stored, and the factor of the leaf if the kind has one.

    Args:
      scale: positive. kind: of `grids.SCALES`; powers of two are rounded up, so that nothing is clipped.
    """
    if kind == "power of two":
        mantissa, exponent = jnp.frexp(scale)
        return jnp.ldexp(jnp.ones_like(scale), jnp.where(mantissa > 0.5, exponent, exponent - 1)), None
    if kind == "fp8":
        largest = jnp.finfo(jnp.float8_e4m3fn).max.astype(scale.dtype)
        gain = jnp.max(scale, initial=0.0) / largest
        gain = jnp.where(gain > 0, jnp.maximum(gain, jnp.finfo(scale.dtype).tiny), jnp.ones_like(gain))
        least = jnp.asarray(2.0**-9, scale.dtype)  # e4m3's: no group loses its scale altogether.
        held = jnp.clip(scale * (1.0 / gain), least, largest)
        return held.astype(jnp.float8_e4m3fn).astype(scale.dtype), gain
    return scale, None


def _units(
    w: jax.Array, scale: jax.Array, zero: jax.Array | None, ends: tuple[Any, Any], groups: Granularity
) -> jax.Array:
    u = w * groups.expand(1.0 / scale, w.shape)
    if zero is None:
        return u
    z = groups.expand(zero, w.shape)
    return jnp.clip(u, ends[0] - z, ends[1] - z) + z


def _ends(levels: jax.Array | None, grid: Grid, bits: int) -> tuple[Any, Any]:
    held = table(grid, bits).levels if levels is None else levels
    return held[0], held[-1]


def _projected(u: jax.Array, levels: jax.Array | None, grid: Grid, bits: int) -> jax.Array:
    u = u.astype(jnp.float32)
    return grid.project(u, bits) if levels is None else project_fitted(u, levels)


def level_values(v: jax.Array, scale: jax.Array, zero: jax.Array | None, groups: Granularity) -> jax.Array:
    """`(v - z) s`: levels (the leaf's shape, the scale's dtype) to weights."""
    if zero is None:
        return v * groups.expand(scale, v.shape)
    values = (v - groups.expand(zero, v.shape)) * groups.expand(scale, v.shape)
    return jnp.where(jnp.abs(values) < jnp.finfo(values.dtype).tiny, jnp.zeros_like(values), values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def fake_levels(
    w: jax.Array, scale: jax.Array, zero: jax.Array | None, levels: jax.Array | None,
    grid: Grid, bits: int, groups: Granularity,
) -> jax.Array:  # fmt: skip
    """The weights rounded to levels times scales, in `w`'s dtype.

    Args:
      w: weights. scale: positive, `(groups, channels)`. zero: the same shape, in units of the scale, or None.
      levels: `(k,)`, those of a grid that follows the weights, else None. grid, bits: whose levels. groups: of scales.

    Gradients, with u = w / s (Esser et al. 2020, LSQ, eqs. 1-5, of any grid; the offset: Bhalgat et al. 2020, LSQ+):

        ∂ŵ/∂w = 1 between the outer levels, 0 outside
        ∂ŵ/∂s = (v - z) - u between, v - z outside, summed over each group
        ∂ŵ/∂z = 0 between, -s outside

    The gradients of s and z are scaled by 1 / sqrt(weights in the group · levels above zero). Levels get none.

    >>> from modelzip_jax.quantization.grids import nf4
    >>> groups = Granularity("tensor", -1, 1)
    >>> found = fake_levels(jnp.array([0.9, -0.1, 5.0]), jnp.ones((1, 1)), None, None, nf4(), 4, groups)
    >>> [round(float(x), 3) for x in found]
    [1.0, -0.091, 1.0]
    """
    return _rounded(w, scale, zero, levels, grid, bits, groups)


@traced_once(4, 5, 6)
def _rounded(w, scale, zero, levels, grid, bits, groups):  # type: ignore[no-untyped-def]
    u = _units(w, scale, zero, _ends(levels, grid, bits), groups)
    return level_values(_projected(u, levels, grid, bits).astype(w.dtype), scale, zero, groups)


def _forward(w, scale, zero, levels, grid, bits, groups):  # type: ignore[no-untyped-def]
    return fake_levels(w, scale, zero, levels, grid, bits, groups), (w, scale, zero, levels)


def _backward(grid, bits, groups, saved, g):  # type: ignore[no-untyped-def]
    w, scale, zero, levels = saved
    dw, ds, dz = _gradients(w, scale, zero, levels, g, grid, bits, groups)
    return dw, ds, dz, None if levels is None else jnp.zeros_like(levels)


@traced_once(5, 6, 7)
def _gradients(w, scale, zero, levels, g, grid, bits, groups):  # type: ignore[no-untyped-def]
    low, high = _ends(levels, grid, bits)
    u = w * groups.expand(1.0 / scale, w.shape)
    z = jnp.zeros((), w.dtype) if zero is None else groups.expand(zero, w.shape)
    v = _projected(u if zero is None else jnp.clip(u, low - z, high - z) + z, levels, grid, bits).astype(
        w.dtype
    )
    edge = _EDGE * jnp.maximum(jnp.abs(low), jnp.abs(high)).astype(w.dtype)
    inside = (u >= low - z - edge) & (u <= high - z + edge)
    ds = g * ((v - z) - jnp.where(inside, u, 0.0))
    above = (1 << bits) // 2 if levels is not None else max(int((table(grid, bits).levels > 0).sum()), 1)
    share = jnp.asarray(1.0 / np.sqrt(np.maximum(groups.counts(w.shape) * above, 1)), w.dtype)
    dz = None
    if zero is not None:
        dz = share * groups.sums(jnp.where(inside, 0.0, -g * groups.expand(scale, w.shape)))
    return jnp.where(inside, g, 0.0), share * groups.sums(ds), dz


fake_levels.defvjp(_forward, _backward)


def stored_levels(
    w: jax.Array, scale: jax.Array, zero: jax.Array | None, levels: jax.Array | None,
    grid: Grid, bits: int, groups: Granularity,
) -> np.ndarray | jax.Array:  # fmt: skip
    """The codes as a file stores them, 1-D uint8; arguments as in `fake_levels`.

    Weights that can be read on the host are: nothing is compiled for their shape.
    """
    wide = w.dtype == jnp.float32 and zero is None and len(groups.axes(w.shape)) < 2
    seen = host_views(w, scale) if wide else None
    found = None if levels is None or seen is None else host_views(levels)
    if seen is None or (levels is not None and found is None):
        return _coded(w, scale, zero, levels, grid, bits, groups)
    weights, scales = seen
    held = table(grid, bits) if found is None else _of_fitted(found[0])
    if scales.size and float(scales.min()) < _SMALL:
        weights = flushed(weights)
    nearest = functools.partial(nearest_on_host, levels=held)
    return by_pieces_on_host(weights, 1 / scales, groups, nearest, np.uint8).reshape(-1)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _coded(w, scale, zero, levels, grid, bits, groups):  # type: ignore[no-untyped-def]
    u = _units(w, scale, zero, _ends(levels, grid, bits), groups).astype(jnp.float32)
    u = under_any_mesh(lambda u: u.reshape(-1), (u,), PartitionSpec())
    if levels is None:
        return table(grid, bits).nearest(u)
    return place_of_each(thresholds_between(levels), u).astype(jnp.uint8)


def _of_fitted(levels: np.ndarray) -> Levels:
    half = np.float32(0.5)
    return Levels(levels, levels[:-1] * half + levels[1:] * half)


def values_of_levels_on_host(
    elements: np.ndarray, levels: np.ndarray, scale: np.ndarray, shape: tuple[int, ...], groups: Granularity
) -> np.ndarray:
    """`level_values` of codes, 1-D uint8, without an offset: `shape`, the dtype of `scale`."""
    return scaled_on_host(levels.astype(scale.dtype)[elements].reshape(shape), scale, groups)
