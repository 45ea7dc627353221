"""Grids whose values are made by shifts: powers of two, sums of two of them, and integers with such a step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.quantization.grids.grid import Grid
from modelzip_jax.recipe import recordable

__all__ = ["Halving", "PowerOfTwo", "halving", "power_of_two"]


@recordable
@dataclasses.dataclass(frozen=True)
class PowerOfTwo(Grid):
    """See `power_of_two`."""

    terms: int

    default_bits = 4

    def levels(self, bits: int) -> np.ndarray:
        if bits < 2:
            raise TransformError("powers of two need 2 bits: a sign, and one power or zero")
        if self.terms == 1 and bits > 6:
            raise TransformError(
                "single powers of two take up to 6 bits, which reach down to 2^-30; take terms=2"
            )
        sizes = [0.0]
        for term in range(self.terms):
            count = (1 << (bits - 1 + self.terms - 1 - term) // self.terms) - 1
            powers = [0.0] + [2.0 ** -(self.terms * i + term) for i in range(count)]
            sizes = [a + b for a in sizes for b in powers]
        top = np.unique(np.asarray(sizes, np.float32))
        return np.concatenate([-top[:0:-1], top]) / top[-1]

    def project(self, u: jax.Array, bits: int) -> jax.Array:
        if self.terms > 1:
            return super().project(u, bits)
        count = (1 << (bits - 1)) - 1
        # Half of what a mantissa can hold, added to it, carries over into the exponent from 1.5 on: half way.
        raw = jax.lax.bitcast_convert_type(jnp.minimum(jnp.abs(u), 1.0), jnp.uint32) + jnp.uint32(1 << 22)
        size = jax.lax.bitcast_convert_type(raw & jnp.uint32(0x7F800000), jnp.float32)
        least = np.float32(2.0 ** (1 - count))
        # Between zero and the least power the middle is half of it, below which the exponent says less.
        size = jnp.where(
            jnp.abs(u) >= least, jnp.minimum(size, 1.0), jnp.where(jnp.abs(u) >= least / 2, least, 0.0)
        )
        return jnp.where(u < 0, 0.0 - size, size)


@recordable
@dataclasses.dataclass(frozen=True)
class Halving(Grid):
    """See `halving`."""

    scale = "power of two"

    def levels(self, bits: int) -> np.ndarray:
        if bits < 2:
            raise TransformError("halving() needs 2 bits: one bit has no zero to round to")
        return np.arange(-(1 << (bits - 1)), 1 << (bits - 1), dtype=np.float32)

    def ties(self, levels: np.ndarray) -> np.ndarray:
        return levels[1:] % 2 == 0

    def project(self, u: jax.Array, bits: int) -> jax.Array:
        half = 1 << (bits - 1)
        q = jnp.round(jnp.clip(u, -half, half - 1))
        return jnp.where(q == 0, 0.0, q)


def power_of_two(terms: int = 1) -> PowerOfTwo:
    """Powers of two, so that a product is a *shift*; or sums of two, two shifts and a sum.

    One term, b bits: 0 and ± 2^0, 2^-1, … 2^(2 - 2^(b-1)). Two terms take the even and the odd exponents in turn,
    so that all their sums are different, scaled to a largest of 1.

    One term takes 2 to 6 bits, two terms up to 8.

    Zhou et al. 2017 (INQ), arXiv:1702.03044, section 2.1; Li et al. 2020 (additive powers of two),
    arXiv:1909.13144, eq. 5.

    >>> power_of_two().levels(3).tolist()
    [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    """
    if terms not in (1, 2):
        raise TransformError(f"power_of_two() takes 1 or 2 terms, not {terms!r}")
    return PowerOfTwo(int(terms))


def halving() -> Halving:
    """*Halving*: weights are multiplied by two (or halved) until they fill the integers of b bits, and rounded.

    A uniform grid whose step is a power of two, stored as its exponent in a byte: decoding is a shift of integers.
    Codes of more bits hold those of fewer: `mz.narrow`.

    >>> import modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([0.875, -0.3, 0.1])}, mz.quantize(4, grid=halving()))["w"]
    Array([ 0.875, -0.25 ,  0.125], dtype=float32)
    """
    return Halving()
