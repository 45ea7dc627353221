"""Taps: where statistics of a use are taken, and how its channels are laid out as the leaf's axes are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from modelzip_jax.trace.jaxpr.programs import Equation
from modelzip_jax.trace.usage.use import Use
from modelzip_jax.trace.usage.views import Axis, Factor

__all__ = ["PLACES", "Place", "Tap", "tap"]

Place = Literal["inputs", "outputs", "activations"]
PLACES: tuple[Place, ...] = ("inputs", "outputs", "activations")


@dataclasses.dataclass(frozen=True)
class Tap:
    """A value to look at, and its channels.

    path: the equation visited. place: "inputs" is an operand of it, else its result is looked at.
    operand: the activation's number among the operands. kept: axes of the value that stay apart for each
    weight matrix (experts). channels: (position in the value, `Axis` of the leaf there). aligned: whether
    the channels are put into the leaf's order; a derived weight's may be in the operand's.
    """

    path: str
    place: Place
    operand: int
    kept: tuple[tuple[int, Axis], ...]
    channels: tuple[tuple[int, Axis], ...]

    @property
    def kept_shape(self) -> list[int]:
        """Sizes of the kept axes, arranged."""
        return _arranged_shape(self.kept)

    @property
    def channel_shape(self) -> list[int]:
        """Sizes of the channels' axes, arranged."""
        return _arranged_shape(self.channels)

    @property
    def ndim(self) -> int:
        """The number of axes of the arranged channels, kept ones included."""
        return len(self.kept_shape) + len(self.channel_shape)

    def arrange(self, x: jax.Array) -> jax.Array:
        """The value as `(..., *kept, *channels)`, channels in the order of the leaf's axes."""
        groups = (self.kept, self.channels)
        positions = [p for group in groups for p, _ in group]
        rows = [i for i in range(x.ndim) if i not in positions]
        x = x.transpose(*rows, *positions)
        x = x[(..., *(slice(a.origin, a.origin + a.length) for group in groups for _, a in group))]
        lead = x.shape[: len(rows)]
        sizes = [f.size for group in groups for f in _factors(group)]
        x = x.reshape(*lead, *sizes)
        order: list[int] = []
        shape = list(lead)
        for group in groups:
            place = len(order)
            order += [place + i for i in _sorting(_factors(group))]
            shape += _arranged_shape(group)
        x = x.transpose(*range(len(rows)), *(len(rows) + i for i in order))
        backwards = [
            len(rows) + i
            for i, f in enumerate(f for group in groups for f in sorted(_factors(group), key=_key))
            if f.step < 0
        ]
        return jnp.flip(x, backwards).reshape(shape) if backwards else x.reshape(shape)

    def rows(self, x: jax.Array, equation: Equation) -> jax.Array:
        """What one output sums over, as `(*kept, rows, n)`: for a convolution its patches."""
        if equation.primitive == "conv_general_dilated":
            return _patches(x, equation)
        return self.matrix(x)

    def matrix(self, x: jax.Array) -> jax.Array:
        """The arranged value as `(*kept, rows, n)`."""
        x = self.arrange(x)
        x = x.reshape(-1, *self.kept_shape, math.prod(self.channel_shape))
        return jnp.moveaxis(x, 0, -2)


def _factors(group: Sequence[tuple[int, Axis]]) -> list[Factor]:
    return [f for _, axis in group for f in axis.factors]


def _key(f: Factor) -> tuple[int, int]:
    return (-1 if f.axis is None else f.axis, -abs(f.step))


def _sorting(factors: Sequence[Factor]) -> list[int]:
    return sorted(range(len(factors)), key=lambda i: _key(factors[i]))


def _arranged_shape(group: Sequence[tuple[int, Axis]]) -> list[int]:
    """Sizes along each of the leaf's axes; what walks along none keeps an axis of its own."""
    shape: list[int] = []
    last: int | None = None
    for f in sorted(_factors(group), key=_key):
        if shape and f.axis is not None and f.axis == last:
            shape[-1] *= f.size
        else:
            shape.append(f.size)
        last = f.axis
    return shape


def tap(use: Use, place: Place, equation: Equation, activations: dict[str, str]) -> Tap:
    """The tap for one place of a use in a product.

    equation: of the use. activations: see `activation_paths`.
    """
    if use.kind == "conv":
        return _conv_tap(use, place, equation, activations)
    contract, batch = equation.params["dimension_numbers"]
    mine, other = use.operand, 1 - use.operand
    axes = use.view.axes
    if place == "inputs":
        kept = tuple((p, axes[q]) for p, q in zip(batch[other], batch[mine], strict=True))
        channels = tuple((p, axes[q]) for p, q in zip(contract[other], contract[mine], strict=True))
        return Tap(use.path, place, other, kept, channels)
    kept = tuple((i, axes[q]) for i, q in enumerate(batch[mine]))
    free = [i for i in range(len(axes)) if i not in contract[mine] and i not in batch[mine]]
    left = len(equation.operand_shapes[0]) - len(contract[0])
    start = len(batch[0]) if mine == 0 else left
    channels = tuple((start + i, axes[q]) for i, q in enumerate(free))
    path = activations.get(use.path, use.path) if place == "activations" else use.path
    return Tap(path, place, other, kept, channels)


def _conv_tap(use: Use, place: Place, equation: Equation, activations: dict[str, str]) -> Tap:
    numbers = equation.params["dimension_numbers"]
    if place == "inputs":
        position, size = numbers.lhs_spec[1], equation.operand_shapes[0][numbers.lhs_spec[1]]
        axis = use.view.axes[numbers.rhs_spec[1]]
        if size != axis.size:  # Grouped: the kernel has the channels of one group.
            axis = Axis(size, 0, (Factor(None, size, 0),))
        return Tap(use.path, place, 0, (), ((position, axis),))
    path = activations.get(use.path, use.path) if place == "activations" else use.path
    axis = use.view.axes[numbers.rhs_spec[0]]
    return Tap(path, place, 0, (), ((numbers.out_spec[1], axis),))


def _patches(x: jax.Array, equation: Equation) -> jax.Array:
    """`(rows, n)`, or `(groups, rows, n)`: n runs as the kernel's axes do without the output's."""
    p = equation.params
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    kernel = equation.operand_shapes[1]
    window = [kernel[i] for i in numbers.rhs_spec[2:]]
    spatial = len(window)
    out_spec = (0, spatial + 1, *range(1, spatial + 1))  # Features last.
    found = lax.conv_general_dilated_patches(
        x, window, p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"],
        lax.ConvDimensionNumbers(numbers.lhs_spec, numbers.rhs_spec, out_spec),
    )  # fmt: skip
    found = found.reshape(-1, groups, kernel[numbers.rhs_spec[1]], *window)
    # Named as the kernel's axes are: input features, then the window.
    own = [numbers.rhs_spec[1], *numbers.rhs_spec[2:]]
    order = [2 + own.index(i) for i in sorted(own)]
    found = found.transpose(1, 0, *order).reshape(groups, found.shape[0], -1)
    return found if groups > 1 else found[0]
