"""Step sizes, codes and values of weights that can be read on the host, as the jitted functions compute them.

The same operations in the same order, each of which NumPy and XLA round alike: maxima, one product with a constant,
one with a reciprocal, a clip, a sum and rounding to even; a difference and one product. XLA flushes subnormal
numbers on CPU and NumPy does not, so they are flushed where they could make a difference. Sums depend on their order:
what needs one (the squared errors of `search_step`, the mean magnitude of one bit) is left to the jitted functions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from modelzip_jax.quantization.granularity import Granularity

__all__ = [
    "blank_on_host",
    "by_pieces_on_host",
    "codes_on_host",
    "flushed",
    "scaled_on_host",
    "spread_on_host",
    "step_bounds",
    "steps_on_host",
    "values_on_host",
]

_PIECE = 1 << 18
"""Weights at a time: what is in between stays in the cache."""
_SMALL = 1e-30
"""Of a larger step a subnormal weight is nothing anyway."""
Slices = tuple[slice, slice, slice]


def steps_on_host(
    w: np.ndarray, low: int, high: int, scale: np.generic, groups: Granularity
) -> tuple[np.ndarray, np.ndarray]:
    """`initial_step` of more than one symmetric bit: step sizes and zero points, `(groups, channels)`.

    Args:
      w: weights, float32 or float64. low, high: smallest and largest code; symmetric ones begin below 0.
      scale: 1 / high, rounded to `w`'s dtype.
    """
    top, bottom = (flushed(edge) for edge in _range(w, groups))
    if low < 0:
        step = _positive(np.maximum(top, bottom) * scale)
        return step, np.zeros_like(step)
    with np.errstate(over="ignore"):
        step = _positive(np.minimum(top + bottom, np.finfo(w.dtype).max) * scale)
    return step, np.clip(np.rint(bottom / step), low, high).astype(w.dtype)


def blank_on_host(w: np.ndarray, groups: Granularity) -> np.ndarray:
    """Which groups are all zero: booleans `(groups, channels)`; none of a leaf without weights."""
    top, bottom = (flushed(edge) for edge in _range(w, groups))
    return (top == 0) & (bottom == 0) & (w.size > 0)


def codes_on_host(
    w: np.ndarray, step: np.ndarray, zero: np.ndarray, low: int, high: int, groups: Granularity
) -> np.ndarray:
    """`codes`, counted from 0: 1-D uint8. Arguments as there, `step` and `zero` of `w`'s dtype."""
    cube = _cube(w, groups)
    found = np.empty(cube.shape, np.uint8)
    with np.errstate(all="ignore"):
        scale, least, most = flushed(1 / step), low - zero, high - zero
        tiny = step.size > 0 and float(step.min()) < _SMALL
        symmetric = not zero.any()
        for piece in _pieces(cube.shape):
            v = flushed(cube[piece]) if tiny else cube[piece]
            v = v * _spread(scale, piece, groups, cube.shape)
            if symmetric:
                np.clip(v, low, high, out=v)
            else:
                bounds = (_spread(edge, piece, groups, cube.shape) for edge in (least, most))
                np.clip(v, *bounds, out=v)
                v += _spread(zero, piece, groups, cube.shape)
            np.rint(v, out=v)
            v -= low
            found[piece] = v
    return found.reshape(-1)


def values_on_host(
    elements: np.ndarray, step: np.ndarray, zero: np.ndarray | None, low: int, shape: tuple[int, ...],
    groups: Granularity, dtype: np.dtype,
) -> np.ndarray:  # fmt: skip
    """`dequantize` of codes from 0, 1-D uint8: the leaf's values, of `shape` and `dtype`."""
    cube = _cube(elements.reshape(shape), groups)
    found = np.empty(cube.shape, dtype)
    tiny = np.finfo(step.dtype).tiny
    # Half a step may be subnormal, see `dequantize`.
    halved = zero is not None and step.size > 0 and float(step.min()) < 2.0 * tiny
    for piece in _pieces(cube.shape):
        q = cube[piece].astype(step.dtype)
        q += low
        if zero is not None:
            q -= _spread(zero, piece, groups, cube.shape)
        q *= _spread(step, piece, groups, cube.shape)
        if halved:
            q = np.where(np.abs(q) < tiny, np.zeros((), q.dtype), q)
        found[piece] = q
    return found.reshape(shape)


def scaled_on_host(x: np.ndarray, steps: np.ndarray, groups: Granularity) -> np.ndarray:
    """Each value times the step of its group, `(groups, channels)`: of `x`'s shape and the dtype of the product."""
    return by_pieces_on_host(x, steps, groups, lambda product: product, np.result_type(x, steps))


def by_pieces_on_host(
    x: np.ndarray, steps: np.ndarray, groups: Granularity, f: Callable[[np.ndarray], np.ndarray], dtype: Any
) -> np.ndarray:
    """A function of each value times its group's step, in pieces that stay in the cache: of `x`'s shape and `dtype`."""
    cube = _cube(x, groups)
    found = np.empty(cube.shape, dtype)
    for piece in _pieces(cube.shape):
        product = cube[piece] * _spread(steps, piece, groups, cube.shape)
        found[piece] = f(product).reshape(product.shape)
    return found.reshape(x.shape)


def spread_on_host(steps: np.ndarray, shape: tuple[int, ...], groups: Granularity) -> np.ndarray:
    """`Granularity.expand`: steps `(groups, channels)` in a shape that broadcasts against the leaf."""
    if groups.kind != "group":
        return groups.expand(steps, shape)  # type: ignore[arg-type, return-value]  # One reshape.
    cube = _cube_shape(shape, groups)
    whole = (slice(0, cube[0]), slice(0, cube[1]), slice(0, cube[2]))
    return _spread(steps, whole, groups, cube).reshape(shape)


def step_bounds(dtype: Any) -> tuple[np.generic, np.generic]:
    """Between these a step and its reciprocal are normal numbers: others are flushed to zero on some devices.

    Below 2**125, so that -8 steps are a number, in bfloat16, too: masks hold the smallest float there is.

    >>> [round(float(np.log2(bound)), 2) for bound in step_bounds(np.float32)]
    [-126.0, 124.99]
    """
    tiny = np.finfo(dtype).tiny
    return tiny, np.dtype(dtype).type(0.5 - 2.0**-9) / tiny


def flushed(x: np.ndarray) -> np.ndarray:
    """Subnormal numbers as zeros, as XLA takes them on CPU."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.zeros((), x.dtype), x)


def _positive(step: np.ndarray) -> np.ndarray:
    step = flushed(step)
    return np.where(step > 0, np.clip(step, *step_bounds(step.dtype)), np.ones((), step.dtype))


def _range(w: np.ndarray, groups: Granularity) -> tuple[np.ndarray, np.ndarray]:
    """How far each group reaches above 0 and below it, `(groups, channels)` each, not negative."""
    cube = _cube(w, groups)
    count, channels = groups.steps_shape(w.shape)
    zero = w.dtype.type(0)
    if groups.kind != "group":
        edges = cube.max(axis=(0, 2), initial=zero), cube.min(axis=(0, 2), initial=zero)
    else:
        rows = cube.transpose(0, 2, 1).reshape(cube.shape[0] * cube.shape[2], channels)
        whole = rows.shape[0] // groups.group_size * groups.group_size
        parts = [rows[:whole].reshape(whole // groups.group_size, groups.group_size, channels)]
        parts += [rows[whole:][None]] if whole < rows.shape[0] else []
        edges = (
            np.concatenate([part.max(axis=1, initial=zero) for part in parts]),
            np.concatenate([part.min(axis=1, initial=zero) for part in parts]),
        )
    top, bottom = (np.abs(edge).reshape(count, channels) for edge in edges)
    return top, bottom


def _cube(x: np.ndarray, groups: Granularity) -> np.ndarray:
    """The leaf as (before, channels, behind the channel axis); a leaf of one channel lies along the last axis."""
    return x.reshape(_cube_shape(x.shape, groups))


def _cube_shape(shape: tuple[int, ...], groups: Granularity) -> tuple[int, int, int]:
    axes = groups.axes(shape)
    if not axes:
        return 1, 1, math.prod(shape)
    (axis,) = axes  # Leaves whose channels several axes number are left to the jitted functions.
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _pieces(cube: tuple[int, ...]) -> Iterator[Slices]:
    """Boxes of some 2**18 weights that cover the cube."""
    if math.prod(cube) == 0:
        return
    sizes, room = [], _PIECE
    for length in reversed(cube):
        sizes.append(max(min(length, room), 1))
        room //= length
    cuts = [
        [slice(at, min(at + size, length)) for at in range(0, length, size)]
        for length, size in zip(cube, reversed(sizes), strict=True)
    ]
    yield from itertools.product(*cuts)  # type: ignore[misc]


def _spread(steps: np.ndarray, piece: Slices, groups: Granularity, cube: tuple[int, ...]) -> np.ndarray:
    """Steps `(groups, channels)` for a box of the cube, in a shape that broadcasts against it."""
    before, channels, behind = piece
    if groups.kind != "group":
        return steps[0, channels][None, :, None]
    # A channel's weights are counted in C order: first by what is before its axis, then by what is behind it.
    places = np.arange(before.start, before.stop)[:, None] * cube[2] + np.arange(behind.start, behind.stop)
    return steps[places // groups.group_size, channels].transpose(0, 2, 1)
