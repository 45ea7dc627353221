"""What an allocation is."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax

__all__ = ["Allocation", "Part"]


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
