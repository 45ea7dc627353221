"""Scores: how much each weight matters. The weights with the largest scores are kept.

A new pruning criterion is a frozen dataclass with a `__call__` from a tree of weights to a tree of float
scores of the same shapes:

    @mz.recordable
    @dataclasses.dataclass(frozen=True)
    class Saliency(mz.scores.Score):
        needs = ("grads",)

        def __call__(self, weights, context=mz.Context(), memory=()):
            return jax.tree.map(lambda w, g: jnp.abs(w * g), weights, context.grads)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.concrete import any_nan
from modelzip_jax.errors import NonFiniteError, TransformError
from modelzip_jax.transform import Context
from modelzip_jax.tree import PyTree

__all__ = ["NOTHING", "Score", "checked"]

NOTHING = Context()
"""What a score of the weights alone is told."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Base of scores.

    A score that is a function of each weight alone may return it from `pointwise`: it is then computed
    anew in each counting pass, which is faster than storing it. One that watches training overrides
    `start` and `observe`; what they return is kept in the transform's state and passed to `__call__`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Steepest(Score):
    ...     needs = ("grads",)
    ...
    ...     def __call__(self, weights, context=NOTHING, memory=()):
    ...         return jax.tree.map(abs, context.grads)
    >>> Steepest()({"w": 1.0}, Context(grads={"w": -3.0}))
    {'w': 3.0}
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of the context that must not be None: "grads", "stats", "scores", or names of the user's own."""

    def pointwise(self) -> Callable[[jax.Array], jax.Array] | None:
        """The function of an array of weights that gives their scores, if there is one."""
        return None

    def start(self, weights: PyTree) -> PyTree:
        """What the score remembers, before the first step."""
        return ()

    def observe(self, memory: PyTree, weights: PyTree, context: Context) -> PyTree:
        """What it remembers after a step; where that is not finite, the old memory stays."""
        return memory

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        """Scores of the shapes of `weights`; larger is kept."""
        raise TypeError(f"{type(self).__name__} defines no __call__")


def checked(score: Score, weights: PyTree, context: Context, memory: PyTree) -> PyTree:
    """The scores, if they are some of these weights.

    Raises:
      TransformError: other leaves or shapes. NonFiniteError: one is NaN, which has no order; traced ones pass.
    """
    scores, name = score(weights, context, memory), type(score).__name__
    if jax.tree.structure(scores) != jax.tree.structure(weights):
        raise TransformError(
            f"{name} gives no scores for each of the weights: of its result, {trees.unlike(scores, weights)}"
        )
    for (leaf, x), w in zip(trees.named_leaves(scores), jax.tree.leaves(weights), strict=True):
        if jnp.shape(x) != jnp.shape(w):
            raise TransformError(
                f"{name} gives scores of the shape {jnp.shape(x)} for leaf {leaf!r} of shape {jnp.shape(w)}"
            )
        if any_nan(x):
            raise NonFiniteError(f"{name} gives scores that are NaN for leaf {leaf!r}, which have no order")
    return scores
