"""Multi-level wavelet transforms and wavelet packets over any axes, in place: n weights, n coefficients.

Coefficients keep the array's shape, in Mallat's layout: along each transformed axis the low-pass half
comes first, and the next level transforms the corner that is low in every axis:

    [A2 | D2 |  D1   ]        a row of 8, two levels: 2 + 2 + 4 coefficients

Packets transform every band again, along each axis by itself, and order them by frequency.
"""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Float

from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.wavelets.banks import interleave, join, merge_bands, phases, split, split_bands
from modelzip_jax.wavelets.filters import LIFTING, check_filter
from modelzip_jax.wavelets.orthonormal import orthonormal_pair

__all__ = ["check_axes", "dwt", "idwt"]


def check_axes(axes: int | tuple[int, ...], ndim: int, what: str = "the array") -> tuple[int, ...]:
    """The axes as sorted indices from 0.

    Raises:
      LeafError: an axis that is not there, or one that is named twice.

    >>> check_axes((-1, 0), 3)
    (0, 2)
    """
    given = (axes,) if isinstance(axes, int) else tuple(axes)
    if not all(-ndim <= axis < ndim for axis in given):
        raise LeafError(f"{what} has {ndim} axes, so it cannot be transformed along the axes {given}")
    found = sorted(axis % ndim for axis in given)
    if len(set(found)) < len(found):
        raise LeafError(f"{what} has {ndim} axes, and {given} names one of them twice")
    return tuple(found)


def _check(x: jax.Array, filter: str, levels: int, axes: int | tuple[int, ...]) -> tuple[int, ...]:
    check_filter(filter)
    if isinstance(levels, bool) or operator.index(levels) < 0:
        raise TransformError(f"levels must be 0 or more, not {levels!r}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise LeafError(f"wavelets transform floating-point arrays, not {x.dtype}")
    return check_axes(axes, x.ndim)


@functools.partial(jax.jit, static_argnames=("filter", "levels", "axes", "packets"))
def dwt(
    x: Float[jax.Array, "*shape"], filter: str = "haar", levels: int = 1, axes: int | tuple[int, ...] = -1,
    packets: bool = False,
) -> Float[jax.Array, "*shape"]:  # fmt: skip
    """Wavelet coefficients of an array, of its shape and dtype; linear and differentiable.

    Orthonormal filters (haar, dbN, symN, coifN) keep squared errors: ‖dwt(x)‖ = ‖x‖. On even lengths they
    equal PyWavelets' "periodization". Of an odd length, the last sample joins the low-pass band as it is.
    The biorthogonal bior2.2 and bior4.4 continue their samples by symmetry. A band of one sample is not
    split further, so that any length takes any number of levels, and always gives as many coefficients.

    Args:
      x: floating-point array.
      filter: one of `FILTERS`.
      levels: how often to split.
      axes: the axis, or axes, which are transformed together (separably).
      packets: split the high-pass bands, too, giving up to 2^levels bands an axis by growing frequency
        (Coifman & Wickerhauser 1992).

    Raises:
      TransformError: an unknown filter, or levels below 0.
      LeafError: an axis that is not there, or integers.

    Mallat 1989, https://doi.org/10.1109/34.192463.

    >>> (dwt(jnp.array([4.0, 2.0, 5.0, 5.0])) * 2**0.5).round(4)
    Array([ 6., 10.,  2.,  0.], dtype=float32)
    """
    chosen = _check(x, filter, levels, axes)
    transform = _split_all if filter in LIFTING else _orthonormal_dwt
    return transform(x, chosen, filter=filter, levels=levels, packets=packets)


@functools.partial(jax.jit, static_argnames=("filter", "levels", "axes", "packets"))
def idwt(
    y: Float[jax.Array, "*shape"], filter: str = "haar", levels: int = 1, axes: int | tuple[int, ...] = -1,
    packets: bool = False,
) -> Float[jax.Array, "*shape"]:  # fmt: skip
    """The inverse of `dwt`, with the same arguments.

    >>> bool(jnp.allclose(idwt(dwt(jnp.arange(5.0), "db2", 2), "db2", 2), jnp.arange(5.0), atol=1e-5))
    True
    """
    chosen = _check(y, filter, levels, axes)
    transform = _join_all if filter in LIFTING else _orthonormal_idwt
    return transform(y, chosen, filter=filter, levels=levels, packets=packets)


def _split_all(x: jax.Array, axes: tuple[int, ...], filter: str, levels: int, packets: bool) -> jax.Array:
    if not packets:
        return _descend(x, filter, levels, axes)
    for axis in axes:
        x = _packets(x, filter, levels, axis, False)
    return x


def _join_all(y: jax.Array, axes: tuple[int, ...], filter: str, levels: int, packets: bool) -> jax.Array:
    if not packets:
        return _ascend(y, filter, levels, axes)
    for axis in reversed(axes):
        y = _unpackets(y, filter, levels, axis, False)
    return y


_orthonormal_dwt, _orthonormal_idwt = orthonormal_pair(_split_all, _join_all, "orthonormal_wavelet")


def _splittable(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in axes if x.shape[axis] > 1)


def _descend(x: jax.Array, filter: str, levels: int, axes: tuple[int, ...]) -> jax.Array:
    live = _splittable(x, axes)
    if levels == 0 or not live or x.size == 0:
        return x

    bands = [x]
    for axis in live:
        bands = [band for part in bands for band in split(part, filter, axis)]
    if levels > 1:  # The barriers keep loops of the levels apart: a tenth less time on CPU.
        bands[0] = _descend(jax.lax.optimization_barrier(bands[0]), filter, levels - 1, axes)
    return merge_bands(bands, live)


def _ascend(y: jax.Array, filter: str, levels: int, axes: tuple[int, ...]) -> jax.Array:
    live = _splittable(y, axes)
    if levels == 0 or not live or y.size == 0:
        return y

    bands = [y]
    for axis in live:
        bands = [band for part in bands for band in split_bands(part, axis)]
    if levels > 1:
        bands[0] = jax.lax.optimization_barrier(_ascend(bands[0], filter, levels - 1, axes))
    for axis in reversed(live):
        pairs = zip(bands[::2], bands[1::2], strict=True)
        found = [phases(low, high, filter, axis) for low, high in pairs]
        # Turned round: neighbours now differ along the axis before.
        bands = [even for even, _ in found] + [odd for _, odd in found]
    return interleave(bands, live)


def _packets(x: jax.Array, filter: str, levels: int, axis: int, mirrored: bool) -> jax.Array:
    """Sub-sampling mirrors the spectrum of a high-pass band, so that its own bands change places (Gray code)."""
    if levels == 0 or x.shape[axis] < 2:
        return x
    low, high = split(x, filter, axis)
    low = _packets(low, filter, levels - 1, axis, mirrored)
    high = _packets(high, filter, levels - 1, axis, not mirrored)
    if mirrored:
        return jnp.concatenate([high, low], axis)
    return merge_bands([low, high], (axis,))


def _unpackets(y: jax.Array, filter: str, levels: int, axis: int, mirrored: bool) -> jax.Array:
    if levels == 0 or y.shape[axis] < 2:
        return y
    n = y.shape[axis]
    at = n // 2 if mirrored else n - n // 2
    first, second = jnp.split(y, [at], axis)
    low, high = (second, first) if mirrored else (first, second)
    low = _unpackets(low, filter, levels - 1, axis, mirrored)
    return join(low, _unpackets(high, filter, levels - 1, axis, not mirrored), filter, axis)
