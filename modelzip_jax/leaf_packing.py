"""Leaf after leaf from weights to packed arrays, so that those of before need no memory any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.extreme_weights import check_decodes
from modelzip_jax.transform import Context, Transform, dense
from modelzip_jax.tree import PyTree

if TYPE_CHECKING:
    from modelzip_jax.calibrating import Calibration

__all__ = ["LeafPacking", "copied_leaf", "owned"]

_GROUP_BYTES = 32 << 20


class LeafPacking:
    """The leaves of a tree while they are being packed.

    Args:
      params: arrays; nothing of this holds the tree itself. keep: which leaves are encoded.
      calibration: gives statistics of leaves in turn, and is told what became of each; None without one.
      progress: called with a leaf's name and its dense bytes, once it is packed.
    """

    def __init__(
        self,
        params: PyTree,
        keep: Sequence[bool],
        transform: Transform,
        calibration: Calibration | None,
        progress: Callable[[str, int], None] | None,
    ):
        self.leaves, self.treedef = jax.tree.flatten(params)
        self.names = [name for name, _ in trees.named_leaves(params)]
        self.keep, self.transform = list(keep), transform
        self.calibration, self.progress = calibration, progress
        self.packed = [
            leaf if chosen else dense(copied_leaf(leaf))
            for leaf, chosen in zip(self.leaves, self.keep, strict=True)
        ]

    def encode_alone(self, context: Context) -> None:
        """Packs the leaves that wait for no calibration, in groups where the transform looks at each by itself."""
        waiting = set() if self.calibration is None else set(self.calibration.wanted)
        every = [index for index, chosen in enumerate(self.keep) if chosen and index not in waiting]
        for group in _groups(self.leaves, every) if self.transform.leafwise else [every]:
            self._encode(group, context)

    def encode_in_turns(self, context: Context) -> None:
        """Packs the others in the order in which the model meets them, with statistics of their inputs."""
        if self.calibration is None:
            return
        for group, measured in self.calibration.turns():
            stats = self.treedef.unflatten([measured.get(index) for index in range(len(self.leaves))])
            self._encode(group, context.replace(stats=stats))

    def tree(self) -> PyTree:
        """The params' structure, with a packed array in the place of each encoded leaf."""
        return self.treedef.unflatten(self.packed)

    def _encode(self, group: list[int], context: Context) -> None:
        here = [index in group for index in range(len(self.leaves))]
        weights = trees.select(self.treedef.unflatten(self.leaves), here, self.treedef)
        encoded = self.transform.init(weights, context.select(here, self.treedef))
        del weights
        parts = self.treedef.flatten_up_to(self.transform.pack(encoded, dense(encoded.latents)))
        if self.calibration is not None:
            values = self.treedef.flatten_up_to(self.transform.decode(encoded))
            for index in group:
                self.calibration.settle(index, values[index])
        del encoded
        for index in group:
            if self.progress is not None:
                self.progress(self.names[index], trees.nbytes(self.leaves[index]))
            check_decodes(self.names[index], parts[index], self.leaves[index])
            self.packed[index], self.leaves[index] = owned(parts[index], self.leaves[index]), 0


def _groups(leaves: list[Any], indices: list[int]) -> list[list[int]]:
    """The indices, in groups of leaves of some 32 MB together."""
    groups: list[list[int]] = []
    size = _GROUP_BYTES
    for index in indices:
        if size >= _GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(index)
        size += trees.nbytes(leaves[index])
    return groups


def owned(packed: Any, leaf: Any) -> Any:
    """A packed array that shares no memory with the leaf that it was made of."""

    def own(x: Any) -> Any:
        shared = isinstance(leaf, np.ndarray) and isinstance(x, np.ndarray | jax.Array) and jnp.size(x) > 0
        return x.copy() if x is leaf or (shared and np.may_share_memory(np.asarray(x), leaf)) else x

    return jax.tree.map(own, packed)


def copied_leaf(x: Any) -> Any:
    """A copy of an array; anything else as it is."""
    return x.copy() if hasattr(x, "copy") else x
