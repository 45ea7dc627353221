"""What an allocation is, and how its shares are handed to the leaves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.masking.counting import count_kept
from modelzip_jax.masking.host_threshold import choose_on_host
from modelzip_jax.masking.schedules import Schedule
from modelzip_jax.masking.structures import Structure
from modelzip_jax.masking.threshold import keep_largest, keep_largest_each

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

        def choose(shared: list[list[Any]], shares: list[jax.Array]) -> list[list[Any]]:
            arrays = [[array for array, _ in rows] for rows in shared]
            near = [rows[0][1] for rows in shared]
            here = [choose_on_host(*one, groups.score) for one in zip(arrays, shares, strict=True)]
            known = [one for one in here if one is not None]
            if len(known) < len(here):
                known = _largest(arrays, jnp.stack(shares), groups.score, jnp.concatenate(near))
            return [
                list(zip(masks, [place, *(at for _, at in rows[1:])], strict=True))
                for (masks, place), rows in zip(known, shared, strict=True)
            ]

        def choose_layers(row: Any, share: jax.Array) -> Any:
            return _largest_of_layers(row[0], share, groups.score, row[1])

        rows = list(zip(groups.arrays, jnp.split(groups.near, groups.near.size), strict=True))
        shares = self(groups.parts, amount)
        found = shared_out(shares, amount, groups.parts, rows, choose, choose_layers)
        return [mask for mask, _ in found], jnp.concatenate([at for _, at in found])


@functools.partial(jax.jit, static_argnums=2)
def _largest(
    groups: list[list[jax.Array]],
    sparsities: jax.Array,
    score: Callable[[jax.Array], jax.Array],
    near: jax.Array,
) -> list[tuple[list[jax.Array], jax.Array]]:
    """For each group masks that keep the largest scores over its arrays together, and the threshold: uint32 `(1,)`."""
    keep = count_kept(np.array([sum(x.size for x in arrays) for arrays in groups]), sparsities)
    kept = keep_largest_each(groups, keep, score, near)
    masks = iter(kept.masks)
    return [([next(masks) for _ in arrays], kept.threshold[g : g + 1]) for g, arrays in enumerate(groups)]


@functools.partial(jax.jit, static_argnums=2)
def _largest_of_layers(
    layers: jax.Array, sparsity: jax.Array, score: Callable[[jax.Array], jax.Array], near: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The same for each layer of one stacked leaf by itself; the threshold is the first layer's."""
    if not layers.size:
        return jnp.zeros(layers.shape, bool), near

    def of_layer(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kept = keep_largest([x], count_kept(x.size, sparsity), score, near[0])
        return kept.masks[0], kept.threshold[None]

    masks, places = jax.vmap(of_layer)(layers)
    return masks, places[0]


def shared_out(
    shares: list[jax.Array] | None,
    sparsity: jax.Array,
    parts: list[Part],
    rows: list[Any],
    choose: Callable[[list[list[Any]], list[jax.Array]], list[list[Any]]],
    choose_layers: Callable[[Any, jax.Array], Any],
) -> list[Any]:
    """What is chosen for each leaf: under one threshold for all of them, or one of its own for each.

    Args:
      shares: of an `Allocation`: the sparsity of each leaf, or None for one threshold.
      parts: the leaves. rows: one a leaf, with what `choose` needs of it.
      choose: from the rows under each threshold, and their sparsities, to an entry for each row. All at once, so that
        a search over many leaves is one program.
      choose_layers: the same from the row of one stacked leaf, whose layers have a threshold each.

    >>> parts = [Part("a", (2,), 2), Part("b", (2,), 2, layers=3)]
    >>> choose = lambda shared, shares: [[(row, share) for row in rows] for rows, share in zip(shared, shares)]
    >>> choose_layers = lambda row, share: (row, share, "each layer")
    >>> shared_out(None, 0.9, parts, ["a", "b"], choose, choose_layers)
    [('a', 0.9), ('b', 0.9)]
    >>> shared_out([0.8, 0.95], 0.9, parts, ["a", "b"], choose, choose_layers)
    [('a', 0.8), ('b', 0.95, 'each layer')]
    """
    if not rows:
        return []
    if shares is None:
        return choose([rows], [sparsity])[0]
    found, single = list(rows), [index for index, part in enumerate(parts) if part.layers is None]
    chosen = (
        choose([[rows[index]] for index in single], [shares[index] for index in single]) if single else []
    )
    for index, (one,) in zip(single, chosen, strict=True):
        found[index] = one
    for index in set(range(len(rows))) - set(single):
        found[index] = choose_layers(rows[index], shares[index])
    return found
