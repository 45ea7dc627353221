"""The protocol of activation quantizers: codes of one product's input, and gradients through them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_whole

__all__ = ["ActivationQuantizer", "Coded", "Own", "Seen", "check_width", "counted", "divided", "unsigned"]

Own = Mapping[str, Any]
"""What a quantizer keeps for one product: arrays by name; empty for most."""


class Coded(NamedTuple):
    """Rounded activations: `(codes - zero) step`.

    codes: integers from -128 to 127, held in the float dtype they were computed in, of the activations' shape.
    step, zero: broadcast against them, and are the same along the axes that are summed over; zero is an integer, too,
    or None for 0. slope: of the rounded values with respect to the activations, which broadcasts; None: 1 everywhere.

    >>> Coded(jnp.array([3.0, -1.0]), jnp.float32(0.5), jnp.float32(-1.0)).values()
    Array([2., 0.], dtype=float32)
    """

    codes: jax.Array
    step: jax.Array
    zero: jax.Array | None = None
    slope: jax.Array | None = None

    def values(self) -> jax.Array:
        """What codes stand for."""
        return (self.codes if self.zero is None else self.codes - self.zero) * self.step


class Seen(NamedTuple):
    """The inputs of one product in the batches it was calibrated on; float32.

    values: `(n,)`, a sample, evenly spread over batches, examples and channels. lows, highs: `(batches,)`: the exact
    extremes of each batch.

    >>> Seen(jnp.array([0.5, 2.0]), jnp.array([0.0]), jnp.array([2.0])).highs.max()
    Array(2., dtype=float32)
    """

    values: jax.Array
    lows: jax.Array
    highs: jax.Array


@dataclasses.dataclass(frozen=True)
class ActivationQuantizer:
    """How the inputs of a product are rounded. Subclasses are frozen dataclasses that define `coded`.

    weights: what `quantize_activations` does with the weights of these products, unless told. holds: whether there are
    numbers for each product, which `calibrated` chooses from data.

    Steps that are powers of two, so that scaling is a shift:

    >>> @dataclasses.dataclass(frozen=True)
    ... class Shifts(ActivationQuantizer):
    ...     def coded(self, x, own, axes):
    ...         largest = jnp.maximum(jnp.max(jnp.abs(x), axis=axes, keepdims=True), 1e-30)
    ...         step = 2.0 ** jnp.ceil(jnp.log2(largest / 127.0))
    ...         return Coded(jnp.round(x / step), step)
    >>> import modelzip_jax as mz
    >>> mz.rewrites.quantize_activations(lambda p, x: x @ p, Shifts())(jnp.eye(2), jnp.array([[3.0, 0.52]]))
    Array([[3.    , 0.53125]], dtype=float32)
    """

    weights: ClassVar[int | str | None] = 8

    @property
    def holds(self) -> bool:
        """Whether it keeps numbers of its own for each product."""
        return False

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of a product's numbers, which those given are held against; () where nobody says."""
        return ()

    @property
    def positive(self) -> tuple[str, ...]:
        """Those of them that must be more than 0."""
        return ()

    @property
    def meaning(self) -> str:
        """What the numbers are good for, such as "steps of 4 bits"; "" where any do that have the names."""
        return ""

    def coded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> Coded:
        """Codes of activations.

        Args:
          x: float32 or wider. own: what `calibrated` gave for this product, or the optimizer has made of it.
          axes: those of `x` over which an output is a sum: what is left are rows (tokens; images of a convolution).
        """
        raise TransformError(f"{type(self).__name__} defines no coded()")

    def rounded(self, x: jax.Array, own: Own, axes: tuple[int, ...]) -> jax.Array:
        """The values of `coded`, with gradients: straight-through, times `Coded.slope`; own numbers have none."""
        found = jax.tree.map(lax.stop_gradient, self.coded(x, own, axes))
        return straight_through(x, found.values().astype(x.dtype), found.slope)

    def calibrated(self, seen: Seen) -> dict[str, jax.Array]:
        """The numbers of one product, scalars by name; of those that hold some only."""
        raise TransformError(
            f"{type(self).__name__} keeps nothing for each product, so there is nothing to calibrate"
        )


@jax.custom_vjp
def straight_through(x: jax.Array, value: jax.Array, slope: jax.Array | None) -> jax.Array:
    """`value`, with `slope` as its derivative by `x`."""
    return value


def _pulled(saved: tuple[Any, Any], g: jax.Array) -> tuple[Any, Any, Any]:
    slope, shape = saved
    through = g if slope is None else g * slope.astype(g.dtype)
    return through, jnp.zeros_like(shape), None


straight_through.defvjp(lambda x, value, slope: (value, (slope, value)), _pulled)


def divided(x: jax.Array, step: jax.Array) -> jax.Array:
    """`x / step`; the barrier keeps a division by a constant a division, so that eager and jitted codes agree."""
    return x / lax.optimization_barrier(step)


def counted(x: jax.Array, step: jax.Array, zero: Any, low: int, high: int) -> tuple[jax.Array, jax.Array]:
    """The codes from `low` to `high` of activations, and which of these were not clipped."""
    u = divided(x, step)
    # The largest value of a range is its last code times the step, within rounding.
    inside = (u >= low - zero - 1e-4) & (u <= high - zero + 1e-4)
    return jnp.round(jnp.clip(u, low - zero, high - zero) + zero), inside


def unsigned(codes: jax.Array, zero: Any, bits: int) -> tuple[jax.Array, jax.Array | None]:
    """Codes from 0 as int8 holds them, and the zero point: 8 bits are moved down by 128."""
    if bits < 8:
        return codes, zero
    return codes - 128.0, jnp.asarray((0.0 if zero is None else zero) - 128.0, codes.dtype)


def check_width(bits: int, least: int) -> int:
    """Raises `TransformError` for bits that are no integer from `least` to 8."""
    return as_whole(bits, "bits of activations", least, 8)
