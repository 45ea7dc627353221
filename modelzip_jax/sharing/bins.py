"""The map of weights to the bins of a histogram: fine where the weights are, and none beyond its ends."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.sharing.scaling import TOP, power, scaled

__all__ = ["BINS", "FAR", "Binning"]

BINS = 1 << 16
FAR = 1024.0
"""Scales from the centre to where a tail begins."""
_SHIFT = 18
"""Of a float32's bits, which leaves 32 bins an octave of the tails."""
_HALF = BINS // 2
_FIRST = (127 + 10) << (23 - _SHIFT)
_TAIL = 118 << (23 - _SHIFT)
_INNER = _HALF - _TAIL
_STRETCH = (_INNER - 0.5) * (FAR + 1.0) / FAR


class Binning(NamedTuple):
    """A companding map, y ↦ y / (|y| + scale) with y = x - centre, and beyond 1,024 scales the logarithm.

    Most bins are where the weights are, and outliers, however far out, meet only their like in a bin. The
    centre is in the middle of a bin. centre, scale: scalars, in a unit of 2**length.
    """

    centre: jax.Array
    scale: jax.Array
    length: jax.Array

    def offset(self, x: jax.Array) -> jax.Array:
        """Of each value from the centre, in the unit."""
        return scaled(x, -self.length) - self.centre

    def __call__(self, x: jax.Array) -> jax.Array:
        """The bin of each value: int32, 0 to `BINS` - 1, ascending with the value."""
        y = self.offset(x)
        ratio = jnp.abs(y) * (1.0 / self.scale)
        inner = ratio / (ratio + 1.0) * _STRETCH + 0.5
        bits = jax.lax.bitcast_convert_type(ratio.astype(jnp.float32), jnp.int32)
        outer = jnp.minimum((bits >> _SHIFT) - (_FIRST - _INNER), _HALF - 1)
        place = jnp.where(ratio < FAR, inner.astype(jnp.int32), outer)
        return jnp.where(y < 0, _HALF - place, _HALF + place)

    def coarse(self, x: jax.Array) -> jax.Array:
        """Bins without tails, which is less to compute: int32, 0 to `BINS` - 1, ascending with the value."""
        y = x * power(-self.length, x.dtype) - self.centre
        distance = (1.0 - self.scale / (jnp.abs(y) + self.scale)) * (_HALF - 1)  # Of inf, the furthest bin.
        return (jnp.where(y < 0, -distance, distance) + _HALF).astype(jnp.int32)

    def middle(self, place: jax.Array) -> jax.Array:
        """The value, less the centre, in the middle of a bin; no more than any weight that is scaled."""
        signed = place - _HALF
        distance = jnp.minimum(jnp.abs(signed), _HALF - 1)
        u = jnp.minimum(distance, _INNER - 1).astype(self.scale.dtype) / _STRETCH
        bits = ((distance + (_FIRST - _INNER)) << _SHIFT) + (1 << (_SHIFT - 1))
        outer = jax.lax.bitcast_convert_type(bits, jnp.float32).astype(self.scale.dtype)
        ratio = jnp.where(distance < _INNER, u / (1.0 - u), outer)
        # Bins further out are empty, and twice the largest weight less the centre has a square.
        value = jnp.minimum(ratio * self.scale, 2.0 ** (TOP + 1))
        return jnp.where(signed < 0, -value, value)
