"""A leaf's grid with and without its scales: what ranges choose for, what rounding and packing work with."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modelzip_jax.meshes import place_of_each, take_each, under_any_mesh
from modelzip_jax.packed import Bits, static
from modelzip_jax.quantization.code_length import laplace_bits, level_bits
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.grids.grid import Grid, table
from modelzip_jax.quantization.level_codes import fake_levels, scale_bounds, scaled_to, stored_levels
from modelzip_jax.quantization.levelled import Levelled
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.quantization.ranges.range import Range
from modelzip_jax.quantization.steps import code_range, covering_step
from modelzip_jax.quantization.uniform_codes import fake_quantize, stored_codes

__all__ = ["FoundSteps", "LevelFit", "LevelLeaf", "UniformFit", "UniformLeaf", "chosen_by"]


class FoundSteps(NamedTuple):
    """step, zero: step sizes and zero points, `(groups, channels)` each. levels: `(k,)` if they follow the weights.

    gain: scalar that all step sizes are times, or None.
    """

    step: jax.Array
    zero: jax.Array
    levels: jax.Array | None = None
    gain: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class UniformFit:
    """Evenly spaced codes. See `ranges.Fit`."""

    bits: int
    symmetric: bool
    groups: Granularity

    @property
    def above(self) -> int:
        """Codes above zero."""
        return max(code_range(self.bits, self.symmetric)[1], 1)

    def steps(self, top: jax.Array, bottom: jax.Array) -> tuple[jax.Array, jax.Array]:
        return covering_step(top, bottom, self.bits, self.symmetric)

    def fake(self, w: jax.Array, step: jax.Array, zero: jax.Array) -> jax.Array:
        return fake_quantize(w, step, zero, *code_range(self.bits, self.symmetric), self.groups)


@dataclasses.dataclass(frozen=True)
class LevelFit:
    """Codes of a table of levels. See `ranges.Fit`."""

    grid: Grid
    bits: int
    groups: Granularity

    symmetric = True

    @property
    def _levels(self) -> np.ndarray:
        """The grid's, or for one that follows the weights, whose scale comes first, the ends of what it may have."""
        return (
            np.array([-1, 1], np.float32) if self.grid.follows_weights else table(self.grid, self.bits).levels
        )

    @property
    def above(self) -> int:
        """Levels above zero."""
        return (1 << self.bits) // 2 if self.grid.follows_weights else int((self._levels > 0).sum())

    def steps(self, top: jax.Array, bottom: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = self.grid.covering(top, bottom, self._levels)
        low, high = scale_bounds(self._levels, scale.dtype)
        scale = jnp.where(scale > 0, jnp.clip(scale, low, high), jnp.ones_like(scale))
        if self.grid.scale == "power of two":
            scale, _ = scaled_to(scale, self.grid.scale)
        return scale, jnp.zeros_like(scale)

    def fake(self, w: jax.Array, step: jax.Array, zero: jax.Array) -> jax.Array:
        if not self.grid.follows_weights:
            return fake_levels(w, step, None, None, self.grid, self.bits, self.groups)
        even = jnp.linspace(-1.0, 1.0, 1 << self.bits, dtype=jnp.float32)
        return fake_levels(w, step, None, even, self.grid, self.bits, self.groups)

    def finished(
        self, w: jax.Array, scale: jax.Array, zero: jax.Array, importance: jax.Array | None
    ) -> FoundSteps:
        """With the levels that follow the weights, and scales as they are stored."""
        held, gain = scaled_to(scale, self.grid.scale)
        if not self.grid.follows_weights:
            return FoundSteps(held, zero, None, gain)
        u = jnp.clip(w * self.groups.expand(1.0 / scale, w.shape), -1.0, 1.0)

        def fitted(u: jax.Array, importance: jax.Array | None) -> jax.Array:
            return self.grid.fitted(u, importance, self.bits)

        return FoundSteps(held, zero, under_any_mesh(fitted, (u, importance), PartitionSpec()), gain)


def chosen_by(
    kind: Range, w: jax.Array, fit: UniformFit | LevelFit, importance: jax.Array | None
) -> FoundSteps:
    """Step sizes of a leaf's weights, and what else its grid takes from them."""
    return _chosen_by(w, importance, kind, fit)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _chosen_by(
    w: jax.Array, importance: jax.Array | None, kind: Range, fit: UniformFit | LevelFit
) -> FoundSteps:
    def choose(w: jax.Array, importance: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return kind.choose(w, fit, importance)

    step, zero = under_any_mesh(choose, (w, importance), fit.groups.steps_spec(w))
    return fit.finished(w, step, zero, importance) if isinstance(fit, LevelFit) else FoundSteps(step, zero)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniformLeaf:
    """How a leaf on evenly spaced codes is quantized now. step, zero: `(groups, channels)` each."""

    step: jax.Array
    zero: jax.Array
    groups: Granularity = static()
    bits: int = static()
    symmetric: bool = static()

    first = 0
    """The least code."""

    @property
    def _range(self) -> tuple[int, int]:
        return code_range(self.bits, self.symmetric)

    def fake(self, w: jax.Array) -> jax.Array:
        """What the network computes with."""
        return fake_quantize(w, self.step, self.zero, *self._range, self.groups)

    def stored(self, w: Any) -> np.ndarray | jax.Array:
        """The codes as a file stores them: 1-D uint8."""
        return stored_codes(w, self.step, self.zero, *self._range, self.groups)

    def packed(self, w: Any, dtype: str, shifted: bool) -> Quantized:
        """The stored form. shifted: whether zero points may differ from those of the grid."""
        zero = None if self.symmetric and self.bits > 1 and not shifted else self.zero
        codes = Bits.pack(self.stored(w), self.bits)
        return Quantized(
            codes, self.step, zero, self._range[0], tuple(jnp.shape(w)), dtype,
            self.groups.kind, self.groups.axis, self.groups.group_size,
        )  # fmt: skip

    def code_bits(self, w: jax.Array) -> jax.Array:
        """An estimate of what an entropy coder takes for each weight."""
        return laplace_bits(w / self.groups.expand(self.step, w.shape))

    def side_bits(self, shifted: bool) -> float:
        """Bits of step sizes and zero points."""
        each = 8.0 * self.step.dtype.itemsize * self.step.size
        return each if self.symmetric and self.bits > 1 and not shifted else 2.0 * each

    def codes(self, w: jax.Array, step: jax.Array, zero: jax.Array) -> jax.Array:
        """The nearest codes, int32 from 0, of weights in any arrangement; the steps and zero points broadcast."""
        low, high = self._range
        q = jnp.round(jnp.clip(w * (1.0 / step), low - zero, high - zero) + zero)
        return (q - low).astype(jnp.int32)

    def values(self, codes: jax.Array, step: jax.Array, zero: jax.Array) -> jax.Array:
        """What codes stand for: the inverse of `codes`."""
        return (codes.astype(step.dtype) + self._range[0] - zero) * step

    @property
    def last(self) -> int:
        """The largest code, counted from 0."""
        return (1 << self.bits) - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LevelLeaf:
    """How a leaf on a table of levels is quantized now.

    scale: `(groups, channels)`. zero: an offset of the same shape, or None. levels: `(k,)` where they follow the
    weights. held, gain: the scale as it is stored.
    """

    scale: jax.Array
    zero: jax.Array | None
    levels: jax.Array | None
    held: jax.Array
    gain: jax.Array | None
    groups: Granularity = static()
    bits: int = static()
    grid: Grid = static()

    first = 0
    """The least code."""

    @property
    def step(self) -> jax.Array:
        """The scale."""
        return self.scale

    def fake(self, w: jax.Array) -> jax.Array:
        """What the network computes with."""
        return fake_levels(w, self.scale, self.zero, self.levels, self.grid, self.bits, self.groups)

    def stored(self, w: Any) -> np.ndarray | jax.Array:
        """The codes as a file stores them: 1-D uint8."""
        return stored_levels(w, self.scale, self.zero, self.levels, self.grid, self.bits, self.groups)

    def packed(self, w: Any, dtype: str, shifted: bool) -> Levelled:
        """The stored form."""
        levels = table(self.grid, self.bits).levels if self.levels is None else self.levels
        stored = {"power of two": jnp.float8_e8m0fnu, "fp8": jnp.float8_e4m3fn}
        held = self.held.astype(stored.get(self.grid.scale, self.held.dtype))
        return Levelled(
            Bits.pack(self.stored(w), self.bits), levels, held, self.gain, self.zero, tuple(jnp.shape(w)), dtype,
            self.groups.kind, self.groups.axis, self.groups.group_size,
        )  # fmt: skip

    def _table(self) -> jax.Array:
        held = table(self.grid, self.bits).levels if self.levels is None else self.levels
        return jnp.asarray(held).astype(self.scale.dtype)

    def code_bits(self, w: jax.Array) -> jax.Array:
        """An estimate of what an entropy coder takes for each weight."""
        return level_bits(w / self.groups.expand(self.scale, w.shape), self._table())

    def side_bits(self, shifted: bool) -> float:
        """Bits of scales, levels and offsets."""
        each = {"power of two": 8.0, "fp8": 8.0}.get(self.grid.scale, 8.0 * self.scale.dtype.itemsize)
        table_bits = 32.0 * (self._table().size + (self.gain is not None))
        return (each + (32.0 if shifted else 0.0)) * self.scale.size + table_bits

    def codes(self, w: jax.Array, step: jax.Array, zero: jax.Array) -> jax.Array:
        """The nearest codes, int32 from 0, of weights in any arrangement; the scales and offsets broadcast."""
        levels = self._table()
        u = jnp.clip(w * (1.0 / step), levels[0] - zero, levels[-1] - zero) + zero
        if self.levels is None:
            return self.grid.nearest(u.astype(jnp.float32), self.bits).astype(jnp.int32)
        return place_of_each(levels[:-1] * 0.5 + levels[1:] * 0.5, u)

    def values(self, codes: jax.Array, step: jax.Array, zero: jax.Array) -> jax.Array:
        """What codes stand for: the inverse of `codes`."""
        return (take_each(self._table(), codes) - zero) * step

    @property
    def last(self) -> int:
        """The largest code, counted from 0."""
        return self._table().size - 1
