"""Groups of arrays, each under a threshold of its own, laid together by shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.by_shape import shape_batches, stack
from modelzip_jax.masking.counting import order_keys
from modelzip_jax.meshes import is_sharded_in_type

__all__ = ["GroupedKeys", "KeyStack", "beside_alike", "numbers_at"]


class KeyStack(NamedTuple):
    """Arrays of one shape in one, `(arrays, *shape)`; the group of each, and where in that it begins.

    order: the places of the arrays among those of all groups.
    """

    values: jax.Array
    groups: np.ndarray
    begins: np.ndarray
    order: np.ndarray

    def each(self, numbers: jax.Array) -> jax.Array:
        """Of numbers `(groups,)` those of the arrays, for their elements."""
        return numbers_at(numbers, self.groups).reshape(-1, *[1] * (self.values.ndim - 1))


class GroupedKeys(NamedTuple):
    """Groups of arrays, each under a threshold of its own, and the pointwise function that scores them.

    sizes: of the groups. members: `(groups, most)`, the places of the arrays of each in the order of stacks, and one
    past the last where it has fewer.
    """

    stacks: list[KeyStack]
    score: Callable[[jax.Array], jax.Array]
    sizes: list[int]
    members: np.ndarray

    @staticmethod
    def of(groups: list[list[jax.Array]], score: Callable[[jax.Array], jax.Array]) -> GroupedKeys:
        flat = [x for group in groups for x in group]
        group_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        sizes = [sum(x.size for x in group) for group in groups]
        ends = [list(itertools.accumulate((x.size for x in group), initial=0)) for group in groups]
        begins = np.array([n for group in ends for n in group[:-1]], np.uint32)
        stacks = []
        for places in shape_batches(flat, [g if len(groups[g]) > 1 else None for g in group_of]):
            order = np.array(places)
            values = stack([flat[place] for place in places])
            stacks.append(KeyStack(values, group_of[order], begins[order], order))
        held = np.concatenate([s.groups for s in stacks]) if stacks else np.zeros(0, int)
        members = np.full((len(groups), max(map(len, groups), default=0)), len(held))
        for g in range(len(groups)):
            members[g, : len(groups[g])] = np.flatnonzero(held == g)
        return GroupedKeys(stacks, score, sizes, members)

    def behind_barrier(self, others: Any) -> tuple[GroupedKeys, Any]:
        """The same, and others, behind a barrier: to be read and scored anew."""
        values, others = jax.lax.optimization_barrier(([one.values for one in self.stacks], others))
        stacks = [one._replace(values=x) for one, x in zip(self.stacks, values, strict=True)]
        return self._replace(stacks=stacks), others

    def larger(self, least: int) -> list[tuple[np.ndarray, list[KeyStack]]]:
        """Groups of more keys, those of one stack together, and their stacks; none that are sharded by type."""
        found: dict[tuple[int, ...], list[KeyStack]] = {}
        for one in self.stacks:
            found.setdefault(tuple(np.unique(one.groups)), []).append(one)
        return [
            (np.array(groups), stacks)
            for groups, stacks in found.items()
            if self.sizes[groups[0]] > least and not any(is_sharded_in_type(s.values) for s in stacks)
        ]

    def keys(self) -> list[jax.Array]:
        """Of each stack."""
        return [order_keys(self.score(one.values)) for one in self.stacks]

    def by_group(self, counts: list[list[jax.Array]]) -> list[jax.Array]:
        """The sums `(groups,)` of each of several counts `(arrays,)` in each stack."""
        arrays = sum(len(one.order) for one in self.stacks)
        if np.array_equal(self.members, np.arange(arrays)[:, None]):
            return [jnp.concatenate(one) for one in zip(*counts, strict=True)]
        none = jnp.zeros(1, jnp.int32)
        every = [jnp.concatenate([*one, none]) for one in zip(*counts, strict=True)]
        return [jnp.sum(one[self.members], axis=-1, dtype=jnp.int32) for one in every]


def numbers_at(numbers: jax.Array, places: np.ndarray) -> jax.Array:
    """The numbers at places known when tracing; where these are neighbours by a slice, without a gather."""
    first, last = (int(places[0]), int(places[-1]) + 1) if places.size else (0, 0)
    return numbers[first:last] if np.array_equal(places, np.arange(first, last)) else numbers[places]


def beside_alike(groups: list[list[jax.Array]]) -> np.ndarray:
    """The places of groups, those whose arrays have the same shapes in a row."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for g, arrays in enumerate(groups):
        found.setdefault(tuple(jax.typeof(x) for x in arrays), []).append(g)
    return np.array([g for alike in found.values() for g in alike], int)
