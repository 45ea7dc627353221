"""Small floating-point formats as grids: fp8, and the block formats MX and NVFP4."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.quantization.grids.grid import Grid
from modelzip_jax.recipe import recordable

__all__ = ["Microscaled", "Minifloat", "NvidiaFp4", "fp8", "mx", "nvfp4"]

_FORMATS: dict[str, Any] = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
_BITS = {"e2m1": 4, "e2m3": 6, "e3m2": 6, "e4m3": 8, "e5m2": 8, "int8": 8}


def _format_levels(name: str) -> np.ndarray:
    codes = np.arange(1 << _BITS[name], dtype=np.uint8)
    values = codes.view(_FORMATS[name]).astype(np.float32)
    return np.unique(values[np.isfinite(values)] + np.float32(0))


def _to_even(levels: np.ndarray) -> np.ndarray:
    """Ties go to the even mantissa, which is every second level from zero on."""
    place = np.arange(levels.size) - int(np.flatnonzero(levels == 0)[0])
    return place[1:] % 2 == 0


def _rounded(u: jax.Array, name: str) -> jax.Array:
    """The nearest number of the format, the largest for what is beyond: by the exponent's bits, no search."""
    info = ml_dtypes.finfo(_FORMATS[name])
    size = jnp.minimum(jnp.abs(u), np.float32(info.max))
    bits = jax.lax.bitcast_convert_type(size, jnp.uint32)
    exponent = jnp.maximum(bits & jnp.uint32(0x7F800000), jnp.uint32(int(info.minexp) + 127 << 23))
    # 2^-e: with it a mantissa is an integer and a half, and rounding to an integer rounds to nearest, ties to even.
    inverse = jax.lax.bitcast_convert_type(jnp.uint32(254 << 23) - exponent, jnp.float32)
    power = jax.lax.bitcast_convert_type(exponent, jnp.float32)
    steps = np.float32(2.0**info.nmant)
    rounded = jnp.round(size * inverse * steps) * (power * (1 / steps))
    return jnp.where(u < 0, 0.0 - rounded, rounded)


@dataclasses.dataclass(frozen=True)
class _Format(Grid):
    element: str

    @property
    def bits(self) -> int:  # type: ignore[override]
        return _BITS[self.element]

    def levels(self, bits: int) -> np.ndarray:
        return _format_levels(self.element)

    def ties(self, levels: np.ndarray) -> np.ndarray:
        return _to_even(levels)

    def project(self, u: jax.Array, bits: int) -> jax.Array:
        return _rounded(u, self.element)


@recordable
@dataclasses.dataclass(frozen=True)
class Minifloat(_Format):
    """See `fp8`."""


@recordable
@dataclasses.dataclass(frozen=True)
class Microscaled(_Format):
    """See `mx`."""

    group_size = 32
    scale = "power of two"

    def levels(self, bits: int) -> np.ndarray:
        if self.element == "int8":
            return np.arange(-127, 128, dtype=np.float32) / 64
        return _format_levels(self.element)

    def project(self, u: jax.Array, bits: int) -> jax.Array:
        if self.element == "int8":
            size = jnp.round(jnp.clip(u, -127 / 64, 127 / 64) * 64) * np.float32(1 / 64)
            return jnp.where(size == 0, 0.0, size)
        return _rounded(u, self.element)

    def covering(self, top: jax.Array, bottom: jax.Array, levels: np.ndarray) -> jax.Array:
        """2^(⌊log2 max⌋ - e), e being the exponent of the largest level (the specification's rule)."""
        largest = jnp.maximum(top, bottom)
        _, exponent = jnp.frexp(largest)
        own = int(np.frexp(levels[-1])[1])
        return jnp.where(largest > 0, jnp.ldexp(jnp.ones_like(largest), exponent - own), 0.0)


@recordable
@dataclasses.dataclass(frozen=True)
class NvidiaFp4(_Format):
    """See `nvfp4`."""

    element: str = "e2m1"
    group_size = 16
    scale = "fp8"


def fp8(element: str = "e4m3") -> Minifloat:
    """8-bit floats, "e4m3" or "e5m2": relative precision, for tensors of a wide range.

    Rounding is that of a conversion to `jnp.float8_e4m3fn` or `jnp.float8_e5m2` (to nearest, ties to even), but for
    what is beyond the largest number, which becomes that.

    Micikevicius et al. 2022, arXiv:2209.05433.

    >>> float(fp8().levels(8)[-1]), float(fp8("e5m2").levels(8)[-1])
    (448.0, 57344.0)
    """
    if element not in ("e4m3", "e5m2"):
        raise TransformError(f"fp8() takes 'e4m3' or 'e5m2', not {element!r}")
    return Minifloat(element)


def mx(element: str = "e2m1") -> Microscaled:
    """Microscaling: groups of 32 along the channel with one power of two, stored as its exponent in a byte.

    Args:
      element: "e2m1" (4 bits), "e2m3", "e3m2" (6 bits), "e4m3", "e5m2" or "int8" (8 bits).

    The scale is the largest power of two in the group over that of the format, as the specification says, so that
    what is beyond the format's largest number is clipped; `range=mz.ranges.least_squares()` weighs that.

    OCP Microscaling Formats 1.0, 2023, section 6.3; Rouhani et al. 2023, arXiv:2310.10537.

    >>> mx().levels(4)[8:].tolist()
    [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    if element not in _BITS:
        raise TransformError(f"mx() takes one of {tuple(_BITS)}, not {element!r}")
    return Microscaled(element)


def nvfp4() -> NvidiaFp4:
    """4-bit floats (e2m1) in groups of 16 along the channel, whose scales are e4m3 bytes times one float of the leaf.

    NVIDIA 2025, arXiv:2509.25149, section 2.

    >>> nvfp4().bits, nvfp4().group_size
    (4, 16)
    """
    return NvidiaFp4()
