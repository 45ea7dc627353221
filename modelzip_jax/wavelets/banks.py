"""One level of a two-channel filter bank along one axis: n samples to ceil(n / 2) low and floor(n / 2) high ones.

The form of these few lines was chosen by what XLA vectorizes on CPU (2,048² floats, one core): strided slices
of one padded array that is materialized first; bands joined by `stack` instead of `concatenate`, over all axes
before the only reshape.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.wavelets.filters import LIFTING, Lifting, highpass, lowpass

__all__ = ["interleave", "join", "merge_bands", "phases", "split", "split_bands"]

_HALF = 1.0 / math.sqrt(2.0)
"""A Python number, so that samples keep their dtype."""


def split(x: jax.Array, name: str, axis: int) -> tuple[jax.Array, jax.Array]:
    """Low and high-pass coefficients along `axis` (not negative), of a length of 2 at least.

    Orthonormal filters continue the samples periodically; the last of an odd number of samples stands
    outside of that and joins the low-pass band as it is, which keeps the transform orthonormal.
    Biorthogonal ones continue them by whole-sample symmetry, as JPEG 2000 does (ITU-T T.800, annex F).
    """
    if name in LIFTING:
        return _lift(x, LIFTING[name], axis)
    even = x.shape[axis] // 2 * 2
    low, high = _split_even(_cut(x, 0, even, axis), name, axis)
    if even < x.shape[axis]:
        low = jnp.concatenate([low, _cut(x, even, None, axis)], axis)
    return low, high


def join(low: jax.Array, high: jax.Array, name: str, axis: int) -> jax.Array:
    """The inverse of `split`."""
    return interleave(list(phases(low, high, name, axis)), (axis,))


def phases(low: jax.Array, high: jax.Array, name: str, axis: int) -> tuple[jax.Array, jax.Array]:
    """Samples 0, 2, … and 1, 3, … of the inverse of `split`."""
    if name in LIFTING:
        return _unlift(low, high, LIFTING[name], axis)
    half = high.shape[axis]
    even, odd = _join_even(_cut(low, 0, half, axis), high, name, axis)
    if half < low.shape[axis]:
        even = jnp.concatenate([even, _cut(low, half, None, axis)], axis)
    return even, odd


def merge_bands(bands: list[jax.Array], axes: tuple[int, ...]) -> jax.Array:
    """Low and high bands, one after the other along each axis; those of the last axis are neighbours in the list."""
    return _joined(bands, axes, 0, lambda low, high, axis: jnp.concatenate([low, high], axis))


def interleave(parts: list[jax.Array], axes: tuple[int, ...]) -> jax.Array:
    """Samples 0, 2, … and 1, 3, …, which may be one fewer, of each axis; those of the last are neighbours."""
    return _joined(parts, axes, 1, _interleave)


def _joined(
    parts: list[jax.Array], axes: tuple[int, ...], after: int, uneven: Callable[..., jax.Array]
) -> jax.Array:
    """Neighbours stacked before (0) or after (1) the axis, if all have one shape.

    Reshaped once, at the end: between two stacks, a reshape makes XLA's loop on CPU 1.7 to 3 × slower.
    """
    shape = parts[0].shape
    same = all(part.shape == shape for part in parts)
    for axis in reversed(axes):
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [jnp.stack(pair, axis + after) if same else uneven(*pair, axis) for pair in pairs]
    return parts[0].reshape([n << (axis in axes) for axis, n in enumerate(shape)]) if same else parts[0]


def split_bands(y: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """The inverse of `merge_bands` for the bands of `split`."""
    half = -(-y.shape[axis] // 2)
    return _cut(y, 0, half, axis), _cut(y, half, None, axis)


def _cut(x: jax.Array, start: int, stop: int | None, axis: int, stride: int = 1) -> jax.Array:
    stop = x.shape[axis] if stop is None else stop
    if (start, stop, stride) == (0, x.shape[axis], 1):
        return x
    return jax.lax.slice_in_dim(x, start, stop, stride, axis)


def _interleave(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    pairs = odd.shape[axis]
    body = interleave([_cut(even, 0, pairs, axis), odd], (axis,))
    return body if pairs == even.shape[axis] else jnp.concatenate([body, _cut(even, pairs, None, axis)], axis)


def _split_even(x: jax.Array, name: str, axis: int) -> tuple[jax.Array, jax.Array]:
    n = x.shape[axis]
    if name == "haar":
        even, odd = _cut(x, 0, n, axis, 2), _cut(x, 1, n, axis, 2)
        return (even + odd) * _HALF, (even - odd) * _HALF
    h, g = lowpass(name).astype(x.dtype), highpass(name).astype(x.dtype)
    before = h.size // 2 - 1
    padded = _periodic(x, before, h.size - 2 - before, axis)
    taps = [_cut(padded, m, m + n - 1, axis, 2) for m in range(h.size)]
    return _weighted(h, taps), _weighted(g, taps)


def _join_even(low: jax.Array, high: jax.Array, name: str, axis: int) -> tuple[jax.Array, jax.Array]:
    """The adjoint of `_split_even`: x[2j + p] = Σ h[m] low[j - i] + g[m] high[j - i], m - before = 2i + p."""
    n = low.shape[axis]
    if name == "haar":
        return (low + high) * _HALF, (low - high) * _HALF
    h, g = lowpass(name).astype(low.dtype), highpass(name).astype(low.dtype)
    before = h.size // 2 - 1
    places = [divmod(m - before, 2) for m in range(h.size)]
    first, last = places[-1][0], -places[0][0]
    lows, highs = (_periodic(band, first, last, axis) for band in (low, high))
    found = []
    for phase in (0, 1):
        taps = [m for m in range(h.size) if places[m][1] == phase]
        cut = [(first - places[m][0], first - places[m][0] + n) for m in taps]
        found.append(
            _weighted(h[taps], [_cut(lows, *ends, axis) for ends in cut])
            + _weighted(g[taps], [_cut(highs, *ends, axis) for ends in cut])
        )
    return found[0], found[1]


def _weighted(weights: np.ndarray, arrays: list[jax.Array]) -> jax.Array:
    total = weights[0] * arrays[0]
    for weight, array in zip(weights[1:], arrays[1:], strict=True):
        total = total + weight * array
    return total


def _periodic(x: jax.Array, before: int, after: int, axis: int) -> jax.Array:
    """Continued periodically, and materialized: fused into the taps, the padding's branches cost 1.2 to 1.8 ×."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return jax.lax.optimization_barrier(jnp.pad(x, widths, mode="wrap"))


def _neighbours(x: jax.Array, count: int, shift: int, axis: int) -> jax.Array:
    """x[k - shift] + x[k - shift + 1] for k < count, each index held within the array."""
    padded = jnp.concatenate([_cut(x, 0, 1, axis), x, _cut(x, x.shape[axis] - 1, None, axis)], axis)
    start = 1 - shift
    return _cut(padded, start, start + count, axis) + _cut(padded, start + 1, start + 1 + count, axis)


def _lifted(
    even: jax.Array, odd: jax.Array, steps: list[tuple[int, float]], axis: int
) -> tuple[jax.Array, jax.Array]:
    for index, weight in steps:
        w = np.asarray(weight, even.dtype)
        if index % 2 == 0:
            odd = odd + w * _neighbours(even, odd.shape[axis], 0, axis)
        else:
            even = even + w * _neighbours(odd, even.shape[axis], 1, axis)
        even, odd = jax.lax.optimization_barrier((even, odd))
    return even, odd


def _lift(x: jax.Array, lifting: Lifting, axis: int) -> tuple[jax.Array, jax.Array]:
    even, odd = _cut(x, 0, None, axis, 2), _cut(x, 1, None, axis, 2)
    low, high = _lifted(even, odd, list(enumerate(lifting.steps)), axis)
    return low * np.asarray(lifting.low, x.dtype), high * np.asarray(lifting.high, x.dtype)


def _unlift(low: jax.Array, high: jax.Array, lifting: Lifting, axis: int) -> tuple[jax.Array, jax.Array]:
    even = low * np.asarray(1.0 / lifting.low, low.dtype)
    odd = high * np.asarray(1.0 / lifting.high, low.dtype)
    steps = [(index, -weight) for index, weight in enumerate(lifting.steps)][::-1]
    return _lifted(even, odd, steps, axis)
