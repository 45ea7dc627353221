"""Scores that read gradients: of one step, or watched over training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.masking.scores.score import NOTHING, Score
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Context
from modelzip_jax.tree import PyTree

__all__ = [
    "Fisher",
    "GradientMagnitude",
    "Movement",
    "Saliency",
    "Taylor",
    "fisher",
    "gradient_magnitude",
    "movement",
    "saliency",
    "taylor",
]


@recordable
@dataclasses.dataclass(frozen=True)
class GradientMagnitude(Score):
    """See `gradient_magnitude`."""

    needs = ("grads",)

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        return jax.tree.map(lambda w, g: jnp.abs(g), weights, context.grads)


def gradient_magnitude() -> GradientMagnitude:
    """|g|: what RigL grows by (Evci et al. 2020, arXiv:1911.11134).

    >>> w, g = jnp.array([1.0, 2.0]), jnp.array([-3.0, 0.5])
    >>> gradient_magnitude()(w, Context(grads=g))
    Array([3. , 0.5], dtype=float32)
    """
    return GradientMagnitude()


@recordable
@dataclasses.dataclass(frozen=True)
class Saliency(Score):
    """See `saliency`."""

    needs = ("grads",)

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        return jax.tree.map(lambda w, g: jnp.abs(w * g), weights, context.grads)


def saliency() -> Saliency:
    """|w g|: the loss's first-order change when w goes. At initialisation this is SNIP.

    Mozer & Smolensky 1989; Lee et al. 2019 (SNIP, arXiv:1810.02340, eq. 5, before its normalisation,
    which changes no ranking).

    >>> w, g = jnp.array([1.0, 2.0]), jnp.array([-3.0, 0.5])
    >>> saliency()(w, Context(grads=g))
    Array([3., 1.], dtype=float32)
    """
    return Saliency()


@recordable
@dataclasses.dataclass(frozen=True)
class Taylor(Score):
    """See `taylor`."""

    needs = ("grads",)

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        return jax.tree.map(lambda w, g: jnp.square(w * g), weights, context.grads)


def taylor() -> Taylor:
    """(w g)²: the squared first-order change (Molchanov et al. 2019, arXiv:1906.10771, eq. 8).

    Ranks single weights as `saliency` does; under a structure, which averages, large terms count more.

    >>> w, g = jnp.array([1.0, 2.0]), jnp.array([-3.0, 0.5])
    >>> taylor()(w, Context(grads=g))
    Array([9., 1.], dtype=float32)
    """
    return Taylor()


@recordable
@dataclasses.dataclass(frozen=True)
class Movement(Score):
    """See `movement`."""

    needs = ("grads",)

    def start(self, weights: PyTree) -> PyTree:
        return _zeros(weights)

    def observe(self, memory: PyTree, weights: PyTree, context: Context) -> PyTree:
        return jax.tree.map(lambda m, w, g: m - w * g, memory, weights, context.grads)

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        return memory


def movement() -> Movement:
    """-Σ w g over all steps: weights that moved away from zero stay (Sanh et al. 2020, arXiv:2005.07683, eq. 3).

    Takes a float32 a weight of memory.

    >>> score, w, g = movement(), jnp.array([1.0, 2.0]), jnp.array([-3.0, 0.5])
    >>> score(w, Context(grads=g), score.observe(score.start(w), w, Context(grads=g)))
    Array([ 3., -1.], dtype=float32)
    """
    return Movement()


@recordable
@dataclasses.dataclass(frozen=True)
class Fisher(Score):
    """See `fisher`."""

    decay: float

    needs = ("grads",)

    def start(self, weights: PyTree) -> PyTree:
        return _zeros(weights)

    def observe(self, memory: PyTree, weights: PyTree, context: Context) -> PyTree:
        return jax.tree.map(
            lambda m, g: m * self.decay + jnp.square(g) * (1.0 - self.decay), memory, context.grads
        )

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        return jax.tree.map(lambda w, m: 0.5 * m * jnp.square(w), weights, memory)


def fisher(decay: float = 0.99) -> Fisher:
    """F w² / 2, F the running mean of squared gradients: optimal brain damage with the diagonal Fisher.

    LeCun et al. 1990, eq. 5, with the empirical Fisher for the Hessian (Theis et al. 2018, arXiv:1801.05787, eq. 7).
    The mean is not corrected for its start at zero, which changes no ranking. Takes a float32 a weight of memory.

    Args:
      decay: weight of the old mean at each step, in [0, 1).

    >>> score, w, g = fisher(decay=0.0), jnp.array([1.0, 2.0]), jnp.array([-3.0, 0.5])
    >>> score(w, Context(grads=g), score.observe(score.start(w), w, Context(grads=g)))
    Array([4.5, 0.5], dtype=float32)
    """
    if not 0.0 <= decay < 1.0:
        raise TransformError(f"decay must be in [0, 1), not {decay!r}")
    return Fisher(decay)


def _zeros(values: PyTree) -> PyTree:
    return jax.tree.map(lambda w: jnp.zeros_like(w, jnp.float32), values)
