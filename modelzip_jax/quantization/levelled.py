"""The stored form of a leaf on a grid of levels: codes of exactly b bits, the levels, and scales."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.packed import Bits, Elementwise, packed_kind, static
from modelzip_jax.quantization.granularity import Granularity, check_stored_groups
from modelzip_jax.quantization.level_codes import level_values, values_of_levels_on_host

__all__ = ["Levelled"]


@packed_kind("levels")
class Levelled(Elementwise):
    """`(levels[code] - zero) scale gain`.

    codes: `bits` bits each, C order. levels: float32 `(k,)`, ascending, k at most 2^bits. scale: `(groups, channels)`,
    of the latents' dtype, or of one byte: float8_e8m0fnu, a power of two, or float8_e4m3fn. gain: float32 scalar that
    all scales are times, or None. zero: of the shape of `scale`, in units of it, or None. dtype: of what is unpacked.
    """

    element_field = "codes"
    since = 4

    codes: Bits
    levels: jax.Array
    scale: jax.Array
    gain: jax.Array | None
    zero: jax.Array | None
    shape: tuple[int, ...] = static()
    dtype: str = static()
    granularity: str = static()
    axis: int | tuple[int, ...] = static()
    group_size: int = static()

    @property
    def groups(self) -> Granularity:
        """Which weights share a scale."""
        return Granularity(self.granularity, self.axis, self.group_size)

    def scales(self) -> jax.Array:
        """What levels are times: float32, or float64 if the scales are."""
        wide = jnp.asarray(self.scale).astype(_wide(self.scale.dtype))
        return wide if self.gain is None else wide * jnp.asarray(self.gain).astype(wide.dtype)

    def elements(self) -> jax.Array:
        return self.codes.unpack()

    def with_elements(self, elements: jax.Array) -> Levelled:
        return dataclasses.replace(self, codes=Bits.pack(elements, self.codes.bits))

    def check(self) -> None:
        super().check()
        check_stored_groups(self.groups, self.shape, self.scale, self.zero)
        k = self.levels.shape[0] if self.levels.ndim == 1 else 0
        if not 2 <= k <= 1 << self.codes.bits or (self.gain is not None and self.gain.shape != ()):
            raise ValueError(f"{self.levels.shape} levels for codes of {self.codes.bits} bits")
        if self.codes.count and k < 1 << self.codes.bits and int(self.codes.unpack_host().max()) >= k:
            raise ValueError(f"a code beyond the {k} levels")

    def assemble(self, elements: jax.Array) -> jax.Array:
        scale = self.scales()
        v = jnp.asarray(self.levels).astype(scale.dtype)[elements].reshape(self.shape)
        return level_values(v, scale, self.zero, self.groups).astype(self.dtype)

    def assemble_host(self, elements: np.ndarray) -> np.ndarray | None:
        if self.zero is not None or len(self.groups.axes(self.shape)) > 1:
            return None
        scale = np.asarray(self.scale)
        scale = scale.astype(_wide(scale.dtype))
        if self.gain is not None:
            scale = scale * np.asarray(self.gain).astype(scale.dtype)
        levels = np.asarray(self.levels)
        found = values_of_levels_on_host(elements, levels, scale, self.shape, self.groups)
        return found.astype(jnp.dtype(self.dtype))


def _wide(dtype: Any) -> Any:
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
