"""Scores: how much each weight matters. The weights with the largest scores are kept.

A new pruning criterion is a frozen dataclass with a `__call__` from a tree of weights to a tree of float
scores of the same shapes:

    @mz.recordable
    @dataclasses.dataclass(frozen=True)
    class Saliency(mz.scores.Score):
        needs = ("grads",)

        def __call__(self, values, grads, **extra):
            return jax.tree.map(lambda w, g: jnp.abs(w * g), values, grads)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

__all__ = ["Score"]

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Score:
    """Base of scores.

    A score that is a function of each weight alone may return it from `pointwise`: it is then computed
    anew in each counting pass, which is faster than storing it. One that watches training overrides
    `start` and `observe`; what they return is kept in the transform's state and passed to `__call__`.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """What must be among `extra`: "grads", "stats", "scores"."""

    def pointwise(self) -> Callable[[jax.Array], jax.Array] | None:
        """The function of an array of weights that gives their scores, if there is one."""
        return None

    def start(self, values: PyTree) -> PyTree:
        """What the score remembers, before the first step."""
        return ()

    def observe(self, memory: PyTree, values: PyTree, **extra: Any) -> PyTree:
        """What it remembers after a step; `extra` as in `Transform.update`."""
        return memory

    def __call__(self, values: PyTree, *, memory: PyTree = (), **extra: Any) -> PyTree:
        """Scores of the shapes of `values`; larger is kept. `extra` as in `Transform.update`."""
        raise TypeError(f"{type(self).__name__} defines no __call__")
