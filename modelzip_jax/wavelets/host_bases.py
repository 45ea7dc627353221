"""Bases in NumPy: the coefficients of `bases`, to rounding, by no compiled program.

Trying thirty bases on a tensor once takes less time than XLA takes to compile one of them. What is stored is
computed by the transform itself; here it is only looked at.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from modelzip_jax.wavelets.bases import Basis
from modelzip_jax.wavelets.block_cosines import dct_matrix
from modelzip_jax.wavelets.filters import LIFTING, Lifting, highpass, lowpass
from modelzip_jax.wavelets.multilevel import check_axes

__all__ = ["analysed", "synthesized"]

_HALF = np.float32(np.sqrt(0.5))
Bands = tuple[np.ndarray, np.ndarray]


def analysed(x: np.ndarray, basis: Basis) -> np.ndarray:
    """`basis.analysis` of float32 weights.

    >>> analysed(np.float32([4.0, 2.0, 5.0, 5.0]), Basis("wavelet", "haar", 1, (0,))).round(4)
    array([4.2426, 7.0711, 1.4142, 0.    ], dtype=float32)
    """
    axes = check_axes(basis.axes, x.ndim)
    if not x.size:
        return x
    if basis.kind == "wavelet":
        return _descend(x, basis.filter, basis.size, axes)
    for axis in axes:
        dct = basis.kind == "dct"
        x = _cosines(x, basis.size, axis) if dct else _packets(x, basis.filter, basis.size, axis, False)
    return x


def synthesized(y: np.ndarray, basis: Basis) -> np.ndarray:
    """`basis.synthesis` of float32 coefficients; compiled, but for wavelets by lifting.

    An orthonormal basis need not be synthesized to know the error of the weights: it is that of the coefficients.
    """
    if basis.kind != "wavelet" or basis.filter not in LIFTING or not y.size:
        return np.asarray(basis.synthesis(jnp.asarray(y)))
    return _ascend(y, LIFTING[basis.filter], basis.size, check_axes(basis.axes, y.ndim))


def _cut(x: np.ndarray, axis: int, start: int | None, stop: int | None, stride: int = 1) -> np.ndarray:
    return x[(slice(None),) * axis + (slice(start, stop, stride),)]


def _descend(x: np.ndarray, name: str, levels: int, axes: tuple[int, ...]) -> np.ndarray:
    live = [axis for axis in axes if x.shape[axis] > 1]
    if not levels or not live:
        return x
    for axis in live:
        x = np.concatenate(_split(x, name, axis), axis)
    corner = tuple(slice(-(-n // 2) if axis in live else n) for axis, n in enumerate(x.shape))
    x[corner] = _descend(x[corner], name, levels - 1, axes)
    return x


def _ascend(y: np.ndarray, lifting: Lifting, levels: int, axes: tuple[int, ...]) -> np.ndarray:
    live = [axis for axis in axes if y.shape[axis] > 1]
    if not levels or not live:
        return y
    y = y.copy()
    corner = tuple(slice(-(-n // 2) if axis in live else n) for axis, n in enumerate(y.shape))
    y[corner] = _ascend(y[corner], lifting, levels - 1, axes)
    for axis in reversed(live):
        half = -(-y.shape[axis] // 2)
        even, odd = _unlift(_cut(y, axis, 0, half), _cut(y, axis, half, None), lifting, axis)
        y = np.empty_like(y)
        _cut(y, axis, 0, None, 2)[...] = even
        _cut(y, axis, 1, None, 2)[...] = odd
    return y


def _packets(x: np.ndarray, name: str, levels: int, axis: int, mirrored: bool) -> np.ndarray:
    if not levels or x.shape[axis] < 2:
        return x
    low, high = _split(x, name, axis)
    low = _packets(low, name, levels - 1, axis, mirrored)
    high = _packets(high, name, levels - 1, axis, not mirrored)
    return np.concatenate([high, low] if mirrored else [low, high], axis)


def _split(x: np.ndarray, name: str, axis: int) -> Bands:
    """`banks.split`."""
    if name in LIFTING:
        return _lift(x, LIFTING[name], axis)
    n = x.shape[axis] // 2 * 2
    if name == "haar":
        even, odd = _cut(x, axis, 0, n, 2), _cut(x, axis, 1, n, 2)
        low, high = (even + odd) * _HALF, (even - odd) * _HALF
    else:
        h, g = lowpass(name).astype(x.dtype), highpass(name).astype(x.dtype)
        before = h.size // 2 - 1
        padded = np.take(x, np.arange(-before, n + h.size - 2 - before) % n, axis)
        taps = [_cut(padded, axis, m, m + n - 1, 2) for m in range(h.size)]
        low, high = _weighted(h, taps), _weighted(g, taps)
    return (low if n == x.shape[axis] else np.concatenate([low, _cut(x, axis, n, None)], axis)), high


def _weighted(weights: np.ndarray, arrays: list[np.ndarray]) -> np.ndarray:
    total = weights[0] * arrays[0]
    for weight, array in zip(weights[1:], arrays[1:], strict=True):
        total += weight * array
    return total


def _lift(x: np.ndarray, lifting: Lifting, axis: int) -> Bands:
    even, odd = _cut(x, axis, 0, None, 2), _cut(x, axis, 1, None, 2)
    even, odd = _lifted(even, odd, list(enumerate(lifting.steps)), axis)
    return even * np.float32(lifting.low), odd * np.float32(lifting.high)


def _unlift(low: np.ndarray, high: np.ndarray, lifting: Lifting, axis: int) -> Bands:
    even, odd = low * np.float32(1.0 / lifting.low), high * np.float32(1.0 / lifting.high)
    return _lifted(even, odd, [(index, -weight) for index, weight in enumerate(lifting.steps)][::-1], axis)


def _lifted(even: np.ndarray, odd: np.ndarray, steps: list[tuple[int, float]], axis: int) -> Bands:
    for index, weight in steps:
        if index % 2 == 0:
            odd = odd + np.float32(weight) * _neighbours(even, odd.shape[axis], 0, axis)
        else:
            even = even + np.float32(weight) * _neighbours(odd, even.shape[axis], 1, axis)
    return even, odd


def _neighbours(x: np.ndarray, count: int, shift: int, axis: int) -> np.ndarray:
    """x[k - shift] + x[k - shift + 1] for k < count, each index held within the array."""
    places, last = np.arange(count) - shift, x.shape[axis] - 1
    return np.take(x, np.clip(places, 0, last), axis) + np.take(x, np.clip(places + 1, 0, last), axis)


def _cosines(x: np.ndarray, block: int, axis: int) -> np.ndarray:
    """`block_cosines.dct` along one axis."""
    moved = np.moveaxis(x, axis, 0)
    (blocks, rest), width = divmod(moved.shape[0], block), x.size // moved.shape[0]
    columns = np.ascontiguousarray(moved).reshape(moved.shape[0], width)
    found, cut = np.empty_like(columns), rest * (blocks + 1)
    # Coefficient k of every block lies together, and the shorter last block joins the first `rest` of them.
    mixed = found[:cut].reshape(rest, blocks + 1, width)
    if blocks:
        body = (
            columns[: blocks * block]
            .reshape(blocks, block, width)
            .swapaxes(0, 1)
            .reshape(block, blocks * width)
        )
        whole = (dct_matrix(block).astype(x.dtype) @ body).reshape(block, blocks, width)
        mixed[:, :blocks] = whole[:rest]
        found[cut:].reshape(block - rest, blocks, width)[...] = whole[rest:]
    if rest:
        mixed[:, blocks] = dct_matrix(rest).astype(x.dtype) @ columns[blocks * block :]
    return np.moveaxis(found.reshape(moved.shape), 0, axis)
