"""Losses of relations between examples see the whole batch, also where it is spread over devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import jax
from jax.sharding import PartitionSpec

from modelzip_jax.meshes import under_any_mesh

__all__ = ["over_whole_batch"]

P = ParamSpec("P")


def over_whole_batch(loss: Callable[P, jax.Array]) -> Callable[P, jax.Array]:
    """A scalar loss that compares all examples with each other, on Explicit meshes, too.

    There a product of two arrays that are sharded along the batch is refused, since its both axes would be. XLA places
    what is between, as it does on Auto meshes. Inside `shard_map` a loss sees what its shard has and nothing else.

    >>> import jax.numpy as jnp
    >>> over_whole_batch(lambda x, power: jnp.mean((x @ x.T) ** power))(jnp.ones((2, 3)), power=2)
    Array(9., dtype=float32)
    """

    @functools.wraps(loss)
    def whole(*args: P.args, **kwargs: P.kwargs) -> jax.Array:
        leaves, treedef = jax.tree.flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

        def of_arrays(*arrays: jax.Array) -> jax.Array:
            held = list(leaves)
            for place, array in zip(places, arrays, strict=True):
                held[place] = array
            given, named = treedef.unflatten(held)
            return loss(*given, **named)

        return under_any_mesh(of_arrays, tuple(leaves[i] for i in places), PartitionSpec())

    return whole
