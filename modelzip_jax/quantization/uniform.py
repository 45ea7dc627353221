"""Uniform quantization as a transform: fixed or learned step sizes, 1 to 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.by_shape import map_by_shape
from modelzip_jax.concrete import zeros_like
from modelzip_jax.errors import TransformError
from modelzip_jax.host_unpacking import unpacked
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_floating
from modelzip_jax.packed import Bits, Dense, is_packed
from modelzip_jax.quantization.blank_groups import is_blank, replaced
from modelzip_jax.quantization.channel_axis import check_axis, find_axis
from modelzip_jax.quantization.code_length import laplace_bits
from modelzip_jax.quantization.granularity import Granularity, check_granularity
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.quantization.ranges import RANGES, choose_step, code_range, initial_step
from modelzip_jax.quantization.rounding import fake_quantize, stored_codes
from modelzip_jax.recipe import recordable
from modelzip_jax.stacking import LayerAxes, as_layers, check_layers, stacked_axes
from modelzip_jax.transform import Context, Encoded, Rate, Transform
from modelzip_jax.tree import PyTree, Static

__all__ = ["Offsets", "Quantize", "QuantizeState", "Quantizer", "quantize"]

_FLOOR = 1e-3
"""A learned step never falls below this share of its base."""


class Offsets(NamedTuple):
    """Learned relative changes of a leaf's step sizes and zero points; zero at first.

    step: `(groups, channels)`: s = base (1 + step). zero: z = round(base + zero), or None.
    """

    step: jax.Array
    zero: jax.Array | None


class QuantizeState(NamedTuple):
    """A leaf's base step sizes and zero points, `(groups, channels)` each.

    blank: booleans of the same shape: groups of zeros at `init`, which have no range; their steps follow the largest
    latent. axis: of the channels, or several (static). dtype: before encoding (static).
    """

    step: jax.Array
    zero: jax.Array
    blank: jax.Array
    axis: Static
    dtype: Static


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """How one leaf is quantized now."""

    step: jax.Array
    zero: jax.Array
    groups: Granularity
    low: int
    high: int

    def fake(self, w: jax.Array) -> jax.Array:
        return fake_quantize(w, self.step, self.zero, self.low, self.high, self.groups)

    def symbols(self, w: Any) -> jax.Array:
        return stored_codes(w, self.step, self.zero, self.low, self.high, self.groups)


@dataclasses.dataclass(frozen=True)
class Quantizer(Transform):
    """Base of quantizers with steps: all but how steps are chosen, `chosen`."""

    bits: int
    granularity: str
    group_size: int
    axis: int | tuple[int, ...] | str
    symmetric: bool
    learned: bool
    layers: LayerAxes = dataclasses.field(default=(), kw_only=True)

    terminal: ClassVar[bool] = True
    ranged: ClassVar[bool] = True
    """Whether steps come from the range of the weights, so that a group of zeros has none."""

    def chosen(self, name: str, w: jax.Array, groups: Granularity) -> tuple[jax.Array, jax.Array]:
        """Step sizes and zero points of a leaf, `(groups, channels)` each."""
        raise TransformError(f"{type(self).__name__} chooses no steps")

    @property
    def _codes(self) -> tuple[int, int]:
        return code_range(self.bits, self.symmetric)

    def _groups(self, axis: int | tuple[int, ...]) -> Granularity:
        """How a leaf of these channels is grouped: a tensor for each layer is a channel for each layer."""
        layered = self.granularity == "tensor" and not isinstance(axis, int)
        return Granularity("channel" if layered else self.granularity, axis, self.group_size)

    def _map(self, function: Callable[..., Any], encoded: Encoded, *rest: PyTree) -> PyTree:
        """Maps over leaves: `function(w, state, leaf, *rest)`, `leaf` being how it is quantized now."""

        def call(w: Any, s: QuantizeState, e: Offsets | None, *r: Any) -> Any:
            step, zero = (s.step, s.zero) if e is None else _current(e, s)
            return function(w, s, _Leaf(step, zero, self._groups(s.axis.value), *self._codes), *r)

        if self.learned:
            return jax.tree.map(call, encoded.latents, encoded.state, encoded.offsets, *rest)
        return jax.tree.map(lambda w, s, *r: call(w, s, None, *r), encoded.latents, encoded.state, *rest)

    def init(self, weights: PyTree, context: Context) -> Encoded:
        check_floating(weights, "quantize")
        check_layers(self.layers, weights)

        def begin(name: str, w: jax.Array) -> QuantizeState:
            layers = stacked_axes(self.layers, name, jnp.shape(w))
            axis = find_axis(name, w, self.axis, self.granularity, layers)
            groups = self._groups(axis)
            value = latent(w)
            step, zero = self.chosen(name, value, groups)
            if self.ranged:
                blank = is_blank(value, groups)
                step = replaced(step, blank, jnp.finfo(step.dtype).tiny)
            else:
                blank = zeros_like(step, bool)
            return QuantizeState(step, zero, blank, Static(axis), Static(str(jnp.result_type(w))))

        state = trees.map_named(begin, weights)
        return Encoded(jax.tree.map(latent, weights), self._zero_offsets(weights, state), state)

    def _zero_offsets(self, weights: PyTree, state: PyTree) -> PyTree:
        if not self.learned:
            return ()

        def zeros(_: Any, s: QuantizeState) -> Offsets:
            return Offsets(zeros_like(s.step), None if self.symmetric else zeros_like(s.zero))

        return jax.tree.map(zeros, weights, state)

    def decode(self, encoded: Encoded) -> PyTree:
        return self._map(lambda w, s, leaf: leaf.fake(w).astype(s.dtype.value), encoded)

    def update(self, encoded: Encoded, context: Context) -> Encoded:
        offsets = encoded.offsets
        if self.learned:  # What pushes a step below its floor is forgotten, so that it can come back at once.
            offsets = jax.tree.map(
                lambda _, e: e._replace(step=jnp.maximum(e.step, _FLOOR - 1.0)), encoded.latents, offsets
            )
        return encoded._replace(offsets=offsets, state=self._followed(encoded))

    def _followed(self, encoded: Encoded) -> PyTree:
        """The state in which steps of blank groups reach their largest latent."""
        structure = jax.tree.structure(encoded.latents)
        states = structure.flatten_up_to(encoded.state)
        if not states:
            return encoded.state

        axes = [s.axis.value for s in states]
        blank, steps, zeros = ([getattr(s, name) for s in states] for name in ("blank", "step", "zero"))

        def widened(axis: Any, w: jax.Array, blank: jax.Array, step: jax.Array, zero: jax.Array) -> Any:
            groups = self._groups(axis)
            new, place = initial_step(w, self.bits, self.symmetric, groups)
            wider = blank & ~is_blank(w, groups) & (new > step)
            step = jnp.where(wider, new, step)
            return step if self.symmetric else (step, jnp.where(wider, place, zero))

        def follow(latents: list[jax.Array], steps: list[jax.Array], zeros: list[jax.Array]) -> list[Any]:
            return map_by_shape(widened, latents, blank, steps, zeros, labels=axes)

        def rest(latents: list[jax.Array], steps: list[jax.Array], zeros: list[jax.Array]) -> list[Any]:
            return steps if self.symmetric else list(zip(steps, zeros, strict=True))

        # One condition for all leaves: without blank groups, which is usual, no leaf is read.
        any_blank = jnp.stack([jnp.any(x) for x in blank]).any()
        found = jax.lax.cond(any_blank, follow, rest, jax.tree.leaves(encoded.latents), steps, zeros)
        if self.symmetric:
            found = zip(found, zeros, strict=True)
        pairs = zip(states, found, strict=True)
        return structure.unflatten([s._replace(step=step, zero=zero) for s, (step, zero) in pairs])

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def pack(w: jax.Array, s: QuantizeState, leaf: _Leaf) -> Quantized:
            zero = None if self.symmetric and self.bits > 1 else leaf.zero
            return Quantized(
                Bits.pack(leaf.symbols(w), self.bits), leaf.step, zero, leaf.low, tuple(jnp.shape(w)), s.dtype.value,
                leaf.groups.kind, s.axis.value, self.group_size,
            )  # fmt: skip

        return self._map(pack, encoded)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def state(p: Quantized, values: Dense) -> QuantizeState:
            zero = zeros_like(p.step) if p.zero is None else p.zero
            # A group that is still all zero has had no range yet.
            blank = is_blank(values.array, p.groups) if self.ranged else zeros_like(p.step, bool)
            axis = p.axis if isinstance(p.axis, int) or p.granularity != "tensor" else -1
            return QuantizeState(jnp.asarray(p.step), jnp.asarray(zero), blank, Static(axis), Static(p.dtype))

        def over(function: Callable[..., Any], *rest: PyTree) -> PyTree:
            return jax.tree.map(function, packed, *rest, is_leaf=is_packed)

        inner = over(lambda p: Dense(latent(unpacked(p)), p.shape))
        states = over(state, inner)
        return self._zero_offsets(over(lambda _: 0), states), states, inner

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def bits(w: jax.Array, s: QuantizeState, leaf: _Leaf) -> Rate:
            side = 8.0 * leaf.step.dtype.itemsize * leaf.step.size
            if not (self.symmetric and self.bits > 1):
                side = 2.0 * side
            return Rate(laplace_bits(w / leaf.groups.expand(leaf.step, w.shape)), jnp.float32(side))

        return self._map(bits, encoded)


@recordable
@dataclasses.dataclass(frozen=True)
class Quantize(Quantizer):
    """See `quantize`."""

    range: str

    def chosen(self, name: str, w: jax.Array, groups: Granularity) -> tuple[jax.Array, jax.Array]:
        return choose_step(w, self.bits, self.symmetric, groups, self.range)


def _current(offsets: Offsets, state: QuantizeState) -> tuple[jax.Array, jax.Array]:
    """The learned step and zero point; a step never falls below a thousandth of its base."""
    step = state.step * _floored(1.0 + offsets.step)
    if offsets.zero is None:
        return step, state.zero
    zero = state.zero + offsets.zero
    rounded = jax.lax.stop_gradient(jnp.round(zero)) + (zero - jax.lax.stop_gradient(zero))
    return step, rounded


@jax.custom_vjp
def _floored(share: jax.Array) -> jax.Array:
    """At least the floor; there, only what raises it passes."""
    return jnp.maximum(share, _FLOOR)


def _floored_backward(share: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where((share > _FLOOR) | (g < 0), g, jnp.zeros_like(g)),)


_floored.defvjp(lambda share: (_floored(share), share), _floored_backward)


def quantize(
    bits: int = 8,
    *,
    granularity: str = "channel",
    group_size: int = 128,
    axis: int | tuple[int, ...] | str = "auto",
    symmetric: bool = True,
    learned: bool = False,
    range: str = "max",
    layers: int | tuple[int, ...] | Mapping[str, Any] | None = None,
) -> Quantize:
    """Rounds weights to 2^bits evenly spaced values; the network computes with what is stored.

    Args:
      bits: 1 to 8. Codes take exactly that many bits in memory, their entropy in a file.
      granularity: "tensor", "channel" (a step size for each index of `axis`), or "group" (one for
        every `group_size` weights of a channel, in C order; the last group may be shorter). A leaf of
        fewer than two axes counts as one channel.
      group_size: weights in a group, for "group".
      axis: the channel axis: -1, the outputs of Flax kernels; 0, those of PyTorch's and the rows of an embedding;
        several, such as `(0, -1)`, whose indices together number the channels.
        "auto" takes for each leaf, of its first and last axis, the one that by the channels' ranges has the smaller
        squared error for its bytes, steps included, and records it; under `jit`, where values cannot be looked at,
        the last.
      symmetric: zero point 0; one bit takes ± the mean magnitude. Otherwise the grid spans each
        group's own minimum and maximum (0 included) with an integer zero point.
      learned: train the step sizes (and zero points) by the exact LSQ gradient, as relative offsets
        with an optimizer of their own (`mz.wrap(..., offsets_tx=)`). Advised below 4 bits, where
        training at fixed steps often diverges.
      range: "max" covers every weight; "mse" clips outliers where that lowers the squared error.
      layers: axes that count layers, of leaves that hold many tensors (`nn.scan`, vmapped experts), each of which is
        quantized as a tensor of its own, `axis` being one of its axes: an axis, several, or those of each path
        pattern, `{"blocks/**": 0}`; `modelzip_jax.trace.layer_axes` finds them.

    Raises:
      TransformError: bits outside 1–8, an unknown granularity or range, an axis that is none.
      LeafError (at `init`): a selected leaf is not floating-point, or has no such axis.

    A group of zeros has no range: its step grows with its largest latent, so that layers that start at zero train.

    Jacob et al. 2018, arXiv:1712.05877; Esser et al. 2020 (LSQ), arXiv:1902.08153.

    >>> import modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([[-1.0], [0.2], [0.9]])}, quantize(bits=2, granularity="tensor"))["w"].ravel()
    Array([-1.,  0.,  1.], dtype=float32)
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise TransformError(f"bits must be an integer from 1 to 8, not {bits!r}")
    check_granularity(granularity, group_size)
    if group_size != 128 and granularity != "group":
        raise TransformError(
            f"group_size={group_size} goes with granularity='group', not with {granularity!r}"
        )
    if range not in RANGES:
        raise TransformError(f"range must be one of {RANGES}, not {range!r}")
    return Quantize(
        bits, granularity, int(group_size), check_axis(axis), bool(symmetric), bool(learned), range,
        layers=as_layers(layers),
    )  # fmt: skip
