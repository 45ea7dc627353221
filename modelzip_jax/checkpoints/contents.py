"""What a checkpoint holds: its tree, and what the tree has no place for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

__all__ = ["Contents"]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a reader found.

    tree: nested dicts and lists of NumPy arrays. positions: the same tree with each array's place in the order of the
    file, from 0; None where the format has no order. metadata: strings by name, of `.safetensors` files.
    notes: sentences that the user should read, such as which of several steps was taken.
    """

    tree: Any
    positions: Any = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def order(self) -> list[int] | None:
        """The index among the tree's leaves of the first array of the file, the second, ….

        >>> Contents({"a": 1, "b": 2}, {"a": 1, "b": 0}).order()
        [1, 0]
        """
        if self.positions is None:
            return None
        places = jax.tree.leaves(self.positions)
        return sorted(range(len(places)), key=places.__getitem__)
