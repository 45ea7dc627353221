"""What an allocation is, and how its shares are handed to the leaves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.errors import TransformError
from modelzip_jax.masking.host_threshold import choose_on_host
from modelzip_jax.masking.schedules import Schedule
from modelzip_jax.masking.structures import Structure
from modelzip_jax.masking.threshold import count_kept, keep_largest

__all__ = ["Allocation", "Groups", "Part", "shared_out"]


class Part(NamedTuple):
    """A leaf: its name, the shape of its tensor, how many groups of weights that has, and how many tensors.

    layers: None for a leaf that is one tensor; a stacked leaf has as many of that shape.

    >>> Part("blocks/kernel", (64, 64), 4096, layers=6).tensors
    6
    """

    name: str
    shape: tuple[int, ...]
    groups: int
    layers: int | None = None

    @property
    def tensors(self) -> int:
        """How many tensors the leaf holds."""
        return 1 if self.layers is None else self.layers


class Groups(NamedTuple):
    """What an allocation chooses from.

    parts, arrays: the leaves, and for each an array whose `score` are its groups' scores, `(layers, *groups)` for
    stacked ones. score: pointwise. structure: what a group is. frozen: parameters outside of the parts.
    near: uint32 `(leaves,)`, where the last choice found each leaf's threshold, 0 for nowhere; changes no mask.

    >>> from modelzip_jax.masking.structures import unstructured
    >>> w = jnp.array([3.0, -1.0])
    >>> groups = Groups([Part("w", (2,), 2)], [w], jnp.abs, unstructured(), frozen=0, near=jnp.zeros(1, jnp.uint32))
    >>> [groups.score(array) for array in groups.arrays]
    [Array([3., 1.], dtype=float32)]
    """

    parts: list[Part]
    arrays: list[jax.Array]
    score: Callable[[jax.Array], jax.Array]
    structure: Structure
    frozen: int
    near: jax.Array


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Base of allocations: `__call__` says which share of its weights each leaf gives up.

    One whose choice depends on more than shares, such as a budget, overrides `choose` instead.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Spared(Allocation):
    ...     def __call__(self, parts, sparsity):
    ...         return [sparsity if part.groups > 100 else jnp.float32(0.0) for part in parts]
    >>> Spared()([Part("a", (4, 4), 16), Part("b", (32, 32), 1024)], jnp.float32(0.5))
    [Array(0., dtype=float32), Array(0.5, dtype=float32)]
    """

    fixes_sparsity: ClassVar[bool] = False
    """Whether it says itself how many weights go, so that a sparsity is only the schedule towards it."""

    @property
    def leafwise(self) -> bool:
        """Whether a leaf's share does not depend on the others."""
        return True

    def __call__(self, parts: list[Part], sparsity: jax.Array) -> list[jax.Array] | None:
        """The sparsity of each leaf, float32 scalars; None for one threshold over all of them."""
        raise TransformError(f"{type(self).__name__} gives no shares")

    def check(self, sparsity: Any, structure: Structure) -> None:
        """Raises `TransformError` where a sparsity and a structure do not go with it."""
        if structure.fixes_sparsity and sparsity is not None:
            raise TransformError(f"{structure} fixes the sparsity; leave it out")
        if not structure.fixes_sparsity and sparsity is None:
            raise TransformError("prune needs a sparsity: mz.prune(sparsity=0.8)")

    def amount(self, schedule: Schedule | None, step: Any) -> jax.Array:
        """What is asked for at a step: the sparsity, float32 scalar."""
        return jnp.float32(0.0) if schedule is None else schedule(step)

    def choose(self, groups: Groups, amount: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        """Booleans like `groups.arrays` of what stays, and where the thresholds are."""
        if not groups.arrays:
            return [], groups.near

        def choose(rows: list[Any], share: jax.Array, layered: bool) -> list[Any]:
            arrays, places = (list(column) for column in zip(*rows, strict=True))
            find = _largest_of_layers if layered else _largest
            here = None if layered else choose_on_host(arrays, share, groups.score)
            masks, place = here or find(arrays, share, groups.score, places[0])
            return list(zip(masks, [place, *places[1:]], strict=True))

        rows = list(zip(groups.arrays, jnp.split(groups.near, groups.near.size), strict=True))
        found = shared_out(self(groups.parts, amount), amount, groups.parts, rows, choose)
        return [mask for mask, _ in found], jnp.concatenate([at for _, at in found])


@functools.partial(jax.jit, static_argnums=2)
def _largest(
    arrays: list[jax.Array], sparsity: jax.Array, score: Callable[[jax.Array], jax.Array], near: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Masks that keep the largest scores over all of the arrays together, and the threshold: uint32 `(1,)`."""
    kept = keep_largest(arrays, count_kept(sum(x.size for x in arrays), sparsity), score, near[0])
    return kept.masks, kept.threshold[None]


@functools.partial(jax.jit, static_argnums=2)
def _largest_of_layers(
    arrays: list[jax.Array], sparsity: jax.Array, score: Callable[[jax.Array], jax.Array], near: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """The same for each layer of one stacked leaf by itself; the threshold is the first layer's."""
    (layers,) = arrays
    if not layers.size:
        return [jnp.zeros(layers.shape, bool)], near
    masks, places = jax.vmap(lambda x: _largest([x], sparsity, score, near))(layers)
    return masks, places[0]


def shared_out(
    shares: list[jax.Array] | None,
    sparsity: jax.Array,
    parts: list[Part],
    rows: list[Any],
    choose: Callable[[list[Any], jax.Array, bool], list[Any]],
) -> list[Any]:
    """What is chosen for each leaf: under one threshold for all of them, or one of its own for each.

    Args:
      shares: of an `Allocation`: the sparsity of each leaf, or None for one threshold.
      parts: the leaves. rows: one a leaf, with what `choose` needs of it.
      choose: from the rows that share a threshold, their sparsity, and whether it is one stacked leaf, whose layers
        have a threshold each, to one entry a row.

    >>> parts = [Part("a", (2,), 2), Part("b", (2,), 2, layers=3)]
    >>> choose = lambda rows, share, layered: [(row, len(rows), share, layered) for row in rows]
    >>> shared_out(None, 0.9, parts, ["a", "b"], choose)
    [('a', 2, 0.9, False), ('b', 2, 0.9, False)]
    >>> shared_out([0.8, 0.95], 0.9, parts, ["a", "b"], choose)
    [('a', 1, 0.8, False), ('b', 1, 0.95, True)]
    """
    if shares is None:
        return choose(rows, sparsity, False) if rows else []
    each = zip(rows, shares, parts, strict=True)
    return [one for row, share, part in each for one in choose([row], share, part.layers is not None)]
