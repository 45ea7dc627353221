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

from modelzip_jax.transform import Context
from modelzip_jax.tree import PyTree

__all__ = ["NOTHING", "Score"]

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
