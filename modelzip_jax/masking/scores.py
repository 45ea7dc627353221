"""Scores: how much each weight matters. The weights with the largest scores are kept.

A score is a frozen dataclass with a `__call__` from a tree of weights to a tree of float scores of
the same shapes; it is all that a new pruning criterion has to define.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.recipe import recordable

__all__ = ["Magnitude", "Score", "magnitude"]

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Score:
    """Base of scores.

    A score that is a function of each weight alone may return it from `pointwise`: it is then computed
    anew in each counting pass, which is faster than storing it.
    """

    def pointwise(self) -> Callable[[jax.Array], jax.Array] | None:
        """The function of an array of weights that gives their scores, if there is one."""
        return None

    def __call__(self, values: PyTree, **extra: Any) -> PyTree:
        """Scores of the shapes of `values`; larger is kept. `extra` as in `Transform.update`."""
        raise TypeError(f"{type(self).__name__} defines no __call__")


@recordable
@dataclasses.dataclass(frozen=True)
class Magnitude(Score):
    """See `magnitude`."""

    def pointwise(self) -> Callable[[jax.Array], jax.Array]:
        return jnp.abs

    def __call__(self, values: PyTree, **extra: Any) -> PyTree:
        return jax.tree.map(jnp.abs, values)


def magnitude() -> Magnitude:
    """|w|: the smallest weights go first (Han et al. 2015; Zhu & Gupta 2017).

    >>> magnitude()({"w": jnp.array([-2.0, 1.0])})
    {'w': Array([2., 1.], dtype=float32)}
    """
    return Magnitude()
