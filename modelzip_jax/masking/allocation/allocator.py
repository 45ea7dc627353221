"""What an allocation is, and how its shares are handed to the leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees

__all__ = ["Allocation", "Part", "parts_of", "shared_out"]

Row = TypeVar("Row")
Chosen = TypeVar("Chosen")


class Part(NamedTuple):
    """A leaf: its name, its shape, and how many groups of weights it has."""

    name: str
    shape: tuple[int, ...]
    groups: int


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Base of allocations. `leafwise`: whether a leaf's share does not depend on the others."""

    @property
    def leafwise(self) -> bool:
        return True

    def __call__(self, parts: list[Part], sparsity: jax.Array) -> list[jax.Array] | None:
        """The sparsity of each leaf, float32 scalars; None for one threshold over all of them."""
        raise TypeError(f"{type(self).__name__} defines no __call__")


def parts_of(values: Any, grouped: list[jax.Array]) -> list[Part]:
    """The parts of a tree, from the groups of each leaf.

    >>> parts_of({"w": jnp.zeros((2, 3))}, [jnp.zeros(3)])
    [Part(name='w', shape=(2, 3), groups=3)]
    """
    named = zip(trees.named_leaves(values), grouped, strict=True)
    return [Part(name, jnp.shape(leaf), jnp.size(group)) for (name, leaf), group in named]


def shared_out(
    shares: list[jax.Array] | None,
    sparsity: jax.Array,
    rows: list[Row],
    choose: Callable[[list[Row], jax.Array], list[Chosen]],
) -> list[Chosen]:
    """What is chosen for each leaf: under one threshold for all of them, or one of its own for each.

    Args:
      shares: of an `Allocation`: the sparsity of each leaf, or None for one threshold.
      rows: one a leaf, with what `choose` needs of it.
      choose: from the rows that share a threshold, and their sparsity, to one entry a row.

    >>> choose = lambda rows, share: [(row, len(rows), share) for row in rows]
    >>> shared_out(None, 0.9, ["a", "b"], choose)
    [('a', 2, 0.9), ('b', 2, 0.9)]
    >>> shared_out([0.8, 0.95], 0.9, ["a", "b"], choose)
    [('a', 1, 0.8), ('b', 1, 0.95)]
    """
    if shares is None:
        return choose(rows, sparsity) if rows else []
    return [chosen for row, share in zip(rows, shares, strict=True) for chosen in choose([row], share)]
