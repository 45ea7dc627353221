"""The protocol of rounding: which of a grid's values each weight takes, chosen once, at `init`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.quantization.fits import LevelLeaf, UniformLeaf
from modelzip_jax.quantization.scaled_leaf import ScaledLeaf

__all__ = ["Problem", "Rounded", "Rounding"]


class Rounded(NamedTuple):
    """weights: latents whose nearest codes are the chosen ones, of the leaf's shape.

    step, zero: `(groups, channels)`, where rounding changes them, too; else None. zero then is an offset, which need
    not be an integer, and asks for `mz.quantize(offset=True)`: see `Rounding.moves_zero`.
    """

    weights: jax.Array
    step: jax.Array | None = None
    zero: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """One leaf that is to be rounded.

    name: of the leaf. weights: its latents. leaf: its grid, steps and zero points. layers: axes that count layers.
    measured: the leaf's `trace.Measured`, if the context has statistics. importance: of each squared error, or None.
    curvature: the leaf's `FisherInformation`, if the context has any.
    support: booleans: which weights count, others being hidden by a mask; None: all. key: of random choices, or None.
    """

    name: str
    weights: jax.Array
    leaf: UniformLeaf | LevelLeaf | ScaledLeaf
    layers: tuple[int, ...] = ()
    measured: Any = None
    importance: jax.Array | None = None
    curvature: Any = None
    support: jax.Array | None = None
    key: jax.Array | None = None

    def steps(self) -> tuple[jax.Array, jax.Array]:
        """The step size of each weight, and its zero point or what else `leaf.codes` takes: two arrays of its shape."""
        return self.leaf.steps(self.weights.shape)

    def kept(self, rounded: jax.Array) -> jax.Array:
        """The rounded weights, and where a mask hides them the latents as they were."""
        return rounded if self.support is None else jnp.where(self.support, rounded, self.weights)


@dataclasses.dataclass(frozen=True)
class Rounding:
    """Chooses codes, once, at `init`. Subclasses are frozen dataclasses.

    What is chosen is the latent: the value of the code, which the nearest code gives back, in training, too.

    needs: names of what the context must have, such as "stats". moves_zero: whether it chooses zero points, too.

    Up, whatever the fraction:

    >>> @dataclasses.dataclass(frozen=True)
    ... class Upwards(Rounding):
    ...     def __call__(self, problem):
    ...         leaf, (step, zero) = problem.leaf, problem.steps()
    ...         codes = leaf.codes(problem.weights, step, zero)
    ...         codes += leaf.values(codes, step, zero) < problem.weights
    ...         return Rounded(leaf.values(jnp.minimum(codes, leaf.last), step, zero))
    >>> import modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([[0.1], [-0.9], [7.0]])}, mz.quantize(4, rounding=Upwards()))["w"].ravel()
    Array([1., 0., 7.], dtype=float32)
    """

    needs: ClassVar[tuple[str, ...]] = ()
    moves_zero: ClassVar[bool] = False

    def __call__(self, problem: Problem) -> Rounded:
        """Latents of the codes it chooses."""
        return Rounded(problem.weights)
