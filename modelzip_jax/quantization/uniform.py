"""Uniform quantization as a transform: fixed or learned step sizes, 1 to 8 bits."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.host_unpacking import unpacked
from modelzip_jax.packed import Bits, Dense, is_packed
from modelzip_jax.quantization.granularity import GRANULARITIES, Grid
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.quantization.ranges import RANGES, choose_step, code_range
from modelzip_jax.quantization.rounding import fake_quantize, stored_codes
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Encoded, Rate, Transform
from modelzip_jax.tree import Static

__all__ = ["Offsets", "Quantize", "QuantizeState", "quantize"]

PyTree = Any


class Offsets(NamedTuple):
    """Learned relative changes of a leaf's step sizes and zero points; zero at first.

    step: `(groups, channels)`: s = base (1 + step). zero: z = round(base + zero), or None.
    """

    step: jax.Array
    zero: jax.Array | None


class QuantizeState(NamedTuple):
    """A leaf's base step size and zero point, `(groups, channels)` each, and its dtype (static)."""

    step: jax.Array
    zero: jax.Array
    dtype: Static


@recordable
@dataclasses.dataclass(frozen=True)
class Quantize(Transform):
    """See `quantize`."""

    bits: int
    granularity: str
    group_size: int
    axis: int
    symmetric: bool
    learned: bool
    range: str

    terminal: ClassVar[bool] = True

    @property
    def grid(self) -> Grid:
        """Which weights share a step size."""
        return Grid(self.granularity, self.axis, self.group_size)

    @property
    def _codes(self) -> tuple[int, int]:
        return code_range(self.bits, self.symmetric)

    def _map(self, function: Any, values: PyTree, extras: PyTree, state: PyTree, *rest: PyTree) -> PyTree:
        """Maps over leaves with their current step and zero: `function(w, step, zero, s, *rest)`."""
        if not self.learned:
            return jax.tree.map(lambda w, s, *r: function(w, s.step, s.zero, s, *r), values, state, *rest)
        return jax.tree.map(
            lambda w, e, s, *r: function(w, *_current(e, s), s, *r), values, extras, state, *rest
        )

    def init(self, values: PyTree, **extra: Any) -> Encoded:
        trees.check_floating(values, "quantize")

        def begin(name: str, w: jax.Array) -> QuantizeState:
            rank = jnp.ndim(w)
            if rank > 1 and not -rank <= self.axis < rank:
                raise LeafError(f"leaf {name!r} has {rank} axes, so it has no channel axis {self.axis}")
            step, zero = choose_step(trees.latent(w), self.bits, self.symmetric, self.grid, self.range)
            return QuantizeState(step, zero, Static(str(jnp.result_type(w))))

        state = trees.map_named(begin, values)
        latents = jax.tree.map(trees.latent, values)
        return Encoded(latents, self._zero_offsets(latents, state), state)

    def _zero_offsets(self, values: PyTree, state: PyTree) -> PyTree:
        if not self.learned:
            return ()

        def zeros(_: Any, s: QuantizeState) -> Offsets:
            return Offsets(jnp.zeros_like(s.step), None if self.symmetric else jnp.zeros_like(s.zero))

        return jax.tree.map(zeros, values, state)

    def decode(self, values: PyTree, extras: PyTree, state: PyTree) -> PyTree:
        def decode(w: jax.Array, step: jax.Array, zero: jax.Array, s: QuantizeState) -> jax.Array:
            return fake_quantize(w, step, zero, *self._codes, self.grid).astype(s.dtype.value)

        return self._map(decode, values, extras, state)

    def pack(self, values: PyTree, extras: PyTree, state: PyTree, inner: PyTree) -> PyTree:
        def pack(w: jax.Array, step: jax.Array, zero: jax.Array, s: QuantizeState) -> Quantized:
            symbols = stored_codes(w, step, zero, *self._codes, self.grid)
            kept = None if self.symmetric and self.bits > 1 else zero
            return Quantized(
                Bits.pack(symbols, self.bits), step, kept, self._codes[0], tuple(jnp.shape(w)),
                s.dtype.value, self.granularity, self.axis, self.group_size,
            )  # fmt: skip

        return self._map(pack, values, extras, state)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def state(p: Quantized) -> QuantizeState:
            return QuantizeState(
                p.step, jnp.zeros_like(p.step) if p.zero is None else p.zero, Static(p.dtype)
            )

        def values(p: Quantized) -> Dense:
            return Dense(trees.latent(unpacked(p)), p.shape)

        states = jax.tree.map(state, packed, is_leaf=is_packed)
        inner = jax.tree.map(values, packed, is_leaf=is_packed)
        return self._zero_offsets(jax.tree.map(lambda _: 0, packed, is_leaf=is_packed), states), states, inner

    def rate(self, values: PyTree, extras: PyTree, state: PyTree, inner: PyTree) -> PyTree:
        def bits(w: jax.Array, step: jax.Array, zero: jax.Array, s: QuantizeState) -> Rate:
            side = 8.0 * step.dtype.itemsize * step.size
            if not (self.symmetric and self.bits > 1):
                side = 2.0 * side
            return Rate(_laplace_bits(w / self.grid.expand(step, w.shape)), jnp.float32(side))

        return self._map(bits, values, extras, state)


def _current(offsets: Offsets, state: QuantizeState) -> tuple[jax.Array, jax.Array]:
    """The learned step and zero point; a step never falls below a thousandth of its base."""
    step = state.step * jnp.maximum(1.0 + offsets.step, 1e-3)
    if offsets.zero is None:
        return step, state.zero
    zero = state.zero + offsets.zero
    rounded = jax.lax.stop_gradient(jnp.round(zero)) + (zero - jax.lax.stop_gradient(zero))
    return step, rounded


def _laplace_bits(u: jax.Array) -> jax.Array:
    """Code length in bits of round(u), had u a Laplace density of scale mean |u|.

    -log2 of the density's integral over [u - 1/2, u + 1/2], in closed form on either side of 1/2.
    """
    size = jnp.abs(u)
    scale = jnp.maximum(jnp.mean(size) if u.size else jnp.ones(()), 1e-2)
    half = 0.5 / scale
    log_sinh = half + jnp.log(-jnp.expm1(-2.0 * half)) - jnp.log(2.0)
    near = jnp.minimum(size, 0.5) / scale
    inner = -jnp.log(jnp.maximum(1.0 - 0.5 * (jnp.exp(near - half) + jnp.exp(-near - half)), 1e-6))
    return jnp.where(size > 0.5, size / scale - log_sinh, inner) / jnp.log(2.0)


def quantize(
    bits: int = 8,
    *,
    granularity: str = "channel",
    group_size: int = 128,
    axis: int = -1,
    symmetric: bool = True,
    learned: bool = False,
    range: str = "max",
) -> Quantize:
    """Rounds weights to 2^bits evenly spaced values; the network computes with what is stored.

    Args:
      bits: 1 to 8. Codes take exactly that many bits in memory, their entropy in a file.
      granularity: "tensor", "channel" (a step size for each index of `axis`), or "group" (one for
        every `group_size` weights of a channel, in C order; the last group may be shorter). A leaf of
        fewer than two axes counts as one channel.
      group_size: weights in a group, for "group".
      axis: the channel axis: -1, the outputs of Flax kernels; 0 for the rows of an embedding.
      symmetric: zero point 0; one bit takes ± the mean magnitude. Otherwise the grid spans each
        group's own minimum and maximum (0 included) with an integer zero point.
      learned: train the step sizes (and zero points) by the exact LSQ gradient, as relative offsets
        with an optimizer of their own (`mz.wrap(..., extras_tx=)`). Advised below 4 bits, where
        training at fixed steps often diverges.
      range: "max" covers every weight; "mse" clips outliers where that lowers the squared error.

    Raises:
      TransformError: bits outside 1–8, an unknown granularity or range.
      LeafError (at `init`): a selected leaf is not floating-point.

    Jacob et al. 2018, arXiv:1712.05877; Esser et al. 2020 (LSQ), arXiv:1902.08153.

    >>> t = quantize(bits=2, granularity="tensor")
    >>> t.decode(*t.init({"w": jnp.array([[-1.0], [0.2], [0.9]])}))["w"].ravel()
    Array([-1.,  0.,  1.], dtype=float32)
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise TransformError(f"bits must be an integer from 1 to 8, not {bits!r}")
    if granularity not in GRANULARITIES:
        raise TransformError(f"granularity must be one of {GRANULARITIES}, not {granularity!r}")
    if range not in RANGES:
        raise TransformError(f"range must be one of {RANGES}, not {range!r}")
    if group_size < 1:
        raise TransformError(f"group_size must be at least 1, not {group_size}")
    return Quantize(bits, granularity, int(group_size), int(axis), symmetric, learned, range)
