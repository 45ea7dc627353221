"""What every quantizer does with step sizes, fixed or learned: all but how they are chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.by_shape import map_by_shape
from modelzip_jax.concrete import zeros_like
from modelzip_jax.errors import TransformError
from modelzip_jax.host_unpacking import unpacked
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_floating
from modelzip_jax.packed import Dense, is_packed
from modelzip_jax.quantization.blank_groups import is_blank, replaced
from modelzip_jax.quantization.channel_axis import find_axis
from modelzip_jax.quantization.fits import FoundSteps, LevelLeaf, UniformLeaf
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.levelled import Levelled
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.quantization.steps import initial_step
from modelzip_jax.stacking import LayerAxes, check_layers, stacked_axes
from modelzip_jax.transform import Context, Encoded, Rate, Transform
from modelzip_jax.tree import PyTree, Static

__all__ = ["Offsets", "QuantizeState", "Quantizer"]

_FLOOR = 1e-3
"""A learned step never falls below this share of its base."""

QuantizedLeaf = UniformLeaf | LevelLeaf


class Offsets(NamedTuple):
    """Learned relative changes of a leaf's step sizes and zero points; zero at first.

    step: `(groups, channels)`: s = base (1 + step). zero: z = base + zero, rounded unless there is an offset; or None.
    """

    step: jax.Array
    zero: jax.Array | None


class QuantizeState(NamedTuple):
    """A leaf's base step sizes (scales, of a grid of levels) and zero points, `(groups, channels)` each.

    blank: booleans of the same shape: groups of zeros at `init`, which have no range; their steps follow the largest
    latent. levels: `(k,)`, those of a grid that follows the weights, or None. gain: scalar that all steps are times, or
    None. axis: of the channels, or several (static). dtype: before encoding (static).
    """

    step: jax.Array
    zero: jax.Array
    blank: jax.Array
    levels: jax.Array | None
    gain: jax.Array | None
    axis: Static
    dtype: Static


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

    def chosen(
        self, name: str, w: jax.Array, groups: Granularity, importance: jax.Array | None
    ) -> FoundSteps:
        """Step sizes and zero points of a leaf, and what else its grid takes from the weights."""
        raise TransformError(f"{type(self).__name__} chooses no steps")

    @property
    def least_step(self) -> float:
        """The step of a group of zeros, until it has a range."""
        return float(jnp.finfo(jnp.float32).tiny)

    @property
    def shifted(self) -> bool:
        """Whether zero points are offsets, which need not be integers."""
        return False

    def leaf_of(self, s: QuantizeState, step: jax.Array, zero: jax.Array) -> QuantizedLeaf:
        """How a leaf is quantized at these steps and zero points."""
        return UniformLeaf(step, zero, self._groups(s.axis.value), self.bits, self.symmetric)

    def rounded(
        self, name: str, w: jax.Array, s: QuantizeState, layers: tuple[int, ...], context: Context
    ) -> tuple[jax.Array, QuantizeState]:
        """The latents of a leaf, and its state, once its codes are chosen. context: its trees are the leaf's parts."""
        return w, s

    def _groups(self, axis: int | tuple[int, ...]) -> Granularity:
        """How a leaf of these channels is grouped: a tensor for each layer is a channel for each layer."""
        layered = self.granularity == "tensor" and not isinstance(axis, int)
        return Granularity("channel" if layered else self.granularity, axis, self.group_size)

    def _map(self, function: Callable[..., Any], encoded: Encoded, *rest: PyTree) -> PyTree:
        """Maps over leaves: `function(w, state, leaf, *rest)`, `leaf` being how it is quantized now."""

        def call(w: Any, s: QuantizeState, e: Offsets | None, *r: Any) -> Any:
            step, zero = (s.step, s.zero) if e is None else self._current(e, s)
            return function(w, s, self.leaf_of(s, step, zero), *r)

        if self.learned:
            return jax.tree.map(call, encoded.latents, encoded.state, encoded.offsets, *rest)
        return jax.tree.map(lambda w, s, *r: call(w, s, None, *r), encoded.latents, encoded.state, *rest)

    def _current(self, offsets: Offsets, state: QuantizeState) -> tuple[jax.Array, jax.Array]:
        """The learned step and zero point; a step never falls below a thousandth of its base."""
        step = state.step * _floored(1.0 + offsets.step)
        if offsets.zero is None:
            return step, state.zero
        zero = state.zero + offsets.zero
        if self.shifted:
            return step, zero
        return step, jax.lax.stop_gradient(jnp.round(zero)) + (zero - jax.lax.stop_gradient(zero))

    def init(self, weights: PyTree, context: Context) -> Encoded:
        check_floating(weights, "quantize")
        check_layers(self.layers, weights)
        begun = [self._begun(*leaf) for leaf in context.by_leaf(weights)]
        treedef = jax.tree.structure(weights)
        encoded, state = (treedef.unflatten([pair[i] for pair in begun]) for i in (0, 1))
        return Encoded(encoded, self._zero_offsets(weights, state), state)

    def _begun(self, name: str, w: Any, context: Context) -> tuple[jax.Array, QuantizeState]:
        layers = stacked_axes(self.layers, name, jnp.shape(w))
        axis = find_axis(name, w, self.axis, self.granularity, layers)
        groups, value = self._groups(axis), latent(w)
        found = self.chosen(name, value, groups, context.importance)
        step, blank = found.step, zeros_like(found.step, bool)
        if self.ranged:
            blank = is_blank(value, groups)
            step = replaced(step, blank, self.least_step)
        state = QuantizeState(
            step, found.zero, blank, found.levels, found.gain, Static(axis), Static(str(jnp.result_type(w)))
        )
        return self.rounded(name, value, state, layers, context)

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
        structure = jax.tree.structure(encoded.latents)
        states = structure.flatten_up_to(encoded.state)
        if states:
            states = self.followed(jax.tree.leaves(encoded.latents), states, context)
        return encoded._replace(offsets=offsets, state=structure.unflatten(states))

    def followed(
        self, latents: list[jax.Array], states: list[QuantizeState], context: Context
    ) -> list[QuantizeState]:
        """The states in which steps of blank groups reach their largest latent."""
        # One condition for all leaves: without blank groups, which is usual, no leaf is read.
        any_blank = jnp.stack([jnp.any(s.blank) for s in states]).any()
        moving = [self.moving(s) for s in states]
        found = jax.lax.cond(
            any_blank,
            lambda latents, _: self.widened(latents, states),
            lambda _, moving: moving,
            latents,
            moving,
        )
        return [s._replace(**new) for s, new in zip(states, found, strict=True)]

    def moving(self, state: QuantizeState) -> dict[str, jax.Array]:
        """What of a leaf's state `widened` may change."""
        return {"step": state.step} if self.symmetric else {"step": state.step, "zero": state.zero}

    def widened(self, latents: list[jax.Array], states: list[QuantizeState]) -> list[dict[str, jax.Array]]:
        """`moving` of each leaf, with steps of blank groups that reach their largest latent."""

        def wider(axis: Any, w: jax.Array, blank: jax.Array, step: jax.Array, zero: jax.Array) -> Any:
            groups = self._groups(axis)
            new, place = initial_step(w, self.bits, self.symmetric, groups)
            grows = blank & ~is_blank(w, groups) & (new > step)
            step = jnp.where(grows, new, step)
            return {"step": step} if self.symmetric else {"step": step, "zero": jnp.where(grows, place, zero)}

        rows = ([getattr(s, name) for s in states] for name in ("blank", "step", "zero"))
        return map_by_shape(wider, latents, *rows, labels=[s.axis.value for s in states])

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        return self._map(lambda w, s, leaf: leaf.packed(w, s.dtype.value, self.shifted), encoded)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def state(p: Quantized | Levelled, values: Dense) -> QuantizeState:
            levelled = isinstance(p, Levelled)
            step = jnp.asarray(p.scale).astype(p.scales().dtype) if levelled else jnp.asarray(p.step)  # type: ignore[union-attr]
            zero = zeros_like(step) if p.zero is None else jnp.asarray(p.zero)
            # A group that is still all zero has had no range yet.
            blank = is_blank(values.array, p.groups) if self.ranged else zeros_like(step, bool)
            axis = p.axis if isinstance(p.axis, int) or p.granularity != "tensor" else -1
            levels, gain = self.resumed_levels(p) if levelled else (None, None)  # type: ignore[arg-type]
            return QuantizeState(step, zero, blank, levels, gain, Static(axis), Static(p.dtype))

        def over(function: Callable[..., Any], *rest: PyTree) -> PyTree:
            return jax.tree.map(function, packed, *rest, is_leaf=is_packed)

        inner = over(lambda p: Dense(latent(unpacked(p)), p.shape))
        states = over(state, inner)
        return self._zero_offsets(over(lambda _: 0), states), states, inner

    def resumed_levels(self, packed: Levelled) -> tuple[jax.Array | None, jax.Array | None]:
        """The levels, if they follow the weights, and the gain of a leaf on a grid of levels."""
        return None, None if packed.gain is None else jnp.asarray(packed.gain)

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        return self._map(
            lambda w, s, leaf: Rate(leaf.code_bits(w), jnp.float32(leaf.side_bits(self.shifted))), encoded
        )


@jax.custom_vjp
def _floored(share: jax.Array) -> jax.Array:
    """At least the floor; there, only what raises it passes."""
    return jnp.maximum(share, _FLOOR)


def _floored_backward(share: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    return (jnp.where((share > _FLOOR) | (g < 0), g, jnp.zeros_like(g)),)


_floored.defvjp(lambda share: (_floored(share), share), _floored_backward)
