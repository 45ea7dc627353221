"""The nearest of a table of levels: by comparing where they are few, by the first bits of a float where not."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.meshes import place_of_each, take_each

__all__ = ["Levels", "nearest_on_host", "project_fitted"]

_FEW = 32
"""Levels up to which comparing with each is fastest."""
_CELLS = 1 << 16
_BLOCK = 1 << 18
"""Weights in a block of the program that looks codes up, so that it is compiled once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """A table of levels, and from which value on each one is the nearest.

    levels: float32 `(k,)`, ascending. thresholds: float32 `(k - 1,)`: a value has as many below or at it as its code
    says.
    """

    levels: np.ndarray
    thresholds: np.ndarray

    @staticmethod
    def of(levels: np.ndarray, up: np.ndarray) -> Levels:
        """up: whether what is halfway to the next level goes there."""
        middle = (levels[:-1].astype(np.float64) + levels[1:]) / 2
        rounded = middle.astype(np.float32)
        # The least float32 that is past the middle, or on it where ties go up.
        short = np.where(up, rounded < middle, rounded <= middle)
        return Levels(levels, np.where(short, np.nextafter(rounded, np.float32(np.inf)), rounded))

    def nearest(self, u: jax.Array) -> jax.Array:
        """Codes: uint8."""
        if len(self.levels) > _FEW:
            return _looked_up(u, *self.cells)
        code = jnp.zeros(jnp.shape(u), jnp.uint8)
        for threshold in self.thresholds:
            code = code + (u >= threshold).astype(jnp.uint8)
        return code

    def value(self, code: jax.Array) -> jax.Array:
        """Levels of codes: float32."""
        return take_each(jnp.asarray(self.levels), code)

    def project(self, u: jax.Array) -> jax.Array:
        """The nearest level to each value, in the dtype of `u`."""
        if len(self.levels) > _FEW:
            return self.value(self.nearest(u)).astype(u.dtype)
        found = jnp.full_like(u, self.levels[0])
        for threshold, level in zip(self.thresholds, self.levels[1:], strict=True):
            found = jnp.where(u >= threshold, jnp.asarray(level, u.dtype), found)
        return found

    @functools.cached_property
    def cells(self) -> tuple[np.ndarray, np.ndarray, int]:
        """See `_cells`."""
        return _cells(self.thresholds)


def _cells(thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The code at the beginning of each cell, the thresholds with one behind the last, and how many a cell may hold.

    A cell has all float32 of the same first 16 bits.
    """
    starts = _from_order(np.arange(_CELLS, dtype=np.uint32) << 16)
    first = np.searchsorted(thresholds, starts, side="right")
    ends = _from_order((np.arange(_CELLS, dtype=np.uint32) << 16) | 0xFFFF)
    within = np.searchsorted(thresholds, ends, side="right") - first
    finite = np.isfinite(starts) & np.isfinite(ends)
    padded = np.append(thresholds, np.float32(np.inf))
    return first.astype(np.uint8), padded, int(within[finite].max(initial=0))


def _from_order(order: np.ndarray) -> np.ndarray:
    """The float32 of each place in their order."""
    bits = np.where(order >> 31, order & 0x7FFFFFFF, ~order).astype(np.uint32)
    with np.errstate(invalid="ignore"):
        return bits.view(np.float32)


def _looked_up(u: jax.Array, first: jax.Array, thresholds: jax.Array, most: int) -> jax.Array:
    u = u.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(u, jnp.uint32)
    order = jnp.where(bits >> 31 != 0, ~bits, bits | jnp.uint32(1 << 31))
    code = take_each(jnp.asarray(first), order >> 16).astype(jnp.int32)
    bounds = jnp.asarray(thresholds)
    for _ in range(most):
        code = code + (u >= take_each(bounds, code)).astype(jnp.int32)
    return code.astype(jnp.uint8)


_block = jax.jit(_looked_up, static_argnums=3)


@jax.jit
def _counted(u: jax.Array, thresholds: jax.Array) -> jax.Array:
    """How many of 15 ascending thresholds each value has reached: uint8.

    By bisection, a comparison a bit. Thresholds are chosen by selections, which are fast where a gather is not.
    """
    above: list[jax.Array] = []
    for half in (8, 4, 2, 1):
        above.append(u >= _chosen(thresholds[half - 1 :: 2 * half], above))
    code = functools.reduce(lambda code, bit: 2 * code + bit, (bit.astype(jnp.int32) for bit in above))
    return code.astype(jnp.uint8)


def _chosen(thresholds: jax.Array, above: list[jax.Array]) -> jax.Array:
    """For each value the threshold that comparisons led to, the first of them halving the list."""
    if not above:
        return thresholds[0]
    lower, upper = jnp.split(thresholds, 2)
    return jnp.where(above[0], _chosen(upper, above[1:]), _chosen(lower, above[1:]))


def nearest_on_host(u: np.ndarray, levels: Levels) -> np.ndarray:
    """`Levels.nearest` of float32 values that can be read: 1-D uint8.

    Large arrays go through one program for blocks of a size, whatever the levels: nothing is compiled for their shape.
    """
    flat = u.reshape(-1)
    if flat.size < _BLOCK // 8:
        return np.searchsorted(levels.thresholds, flat, side="right").astype(np.uint8)
    few = len(levels.thresholds) < 16
    padded = np.full(15 if few else 256, np.inf, np.float32)
    padded[: len(levels.thresholds)] = levels.thresholds
    found = np.empty(flat.size, np.uint8)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        count = block.size
        if count < _BLOCK:
            block = np.concatenate([block, np.zeros(_BLOCK - count, block.dtype)])
        codes = _counted(block, padded) if few else _block(block, levels.cells[0], padded, levels.cells[2])
        found[start : start + count] = np.asarray(codes)[:count]
    return found


def thresholds_between(levels: jax.Array) -> jax.Array:
    """From where on each level of a table that is not known yet is the nearest: halfway, ties upwards."""
    return levels[:-1] * 0.5 + levels[1:] * 0.5


def project_fitted(u: jax.Array, levels: jax.Array) -> jax.Array:
    """The nearest of levels that are computed: `(k,)`, ascending."""
    if len(levels) <= _FEW:
        found = jnp.full_like(u, levels[0])
        for threshold, level in zip(thresholds_between(levels), levels[1:], strict=True):
            found = jnp.where(u >= threshold, level, found)
        return found
    return take_each(levels, place_of_each(thresholds_between(levels), u))
