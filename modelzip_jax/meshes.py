"""Arrays whose sharding is part of their type: Explicit meshes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

__all__ = [
    "is_sharded_in_type",
    "place_of_each",
    "placed_as",
    "sharded_as",
    "spec_of",
    "take_each",
    "under_any_mesh",
]  # fmt: skip


def spec_of(x: jax.Array) -> PartitionSpec:
    """How an array is sharded over an Explicit mesh; all axes None on other meshes, or none."""
    return jax.typeof(x).sharding.spec


def is_sharded_in_type(x: Any) -> bool:
    """Whether the array is sharded over an Explicit mesh, where many operations along its axes are refused."""
    return any(axis is not None for axis in spec_of(x))


def sharded_as(x: jax.Array, other: jax.Array) -> jax.Array:
    """Sharded over an Explicit mesh as the other is."""
    return x if spec_of(x) == spec_of(other) else jax.sharding.reshard(x, jax.typeof(other).sharding)


def placed_as(x: jax.Array, other: jax.Array) -> jax.Array:
    """Sharded as the other is, on Auto meshes, too, where XLA otherwise replicates what sorts or reshapes gave."""
    if jax.device_count() == 1 or jnp.shape(x) != jnp.shape(other) or not isinstance(other, jax.Array):
        return x
    if is_sharded_in_type(other):
        return sharded_as(x, other)
    if isinstance(x, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        # An operation of both, which XLA cannot fold, spreads the one's sharding to the other.
        never = jax.lax.optimization_barrier(jnp.zeros((), jnp.bool))
        return jnp.where(never, jax.lax.stop_gradient(other).astype(x.dtype), x)
    return x if x.sharding.is_equivalent_to(other.sharding, x.ndim) else jax.device_put(x, other.sharding)


def under_any_mesh(f: Callable[..., Any], args: tuple[Any, ...], specs: Any) -> Any:
    """`f(*args)`, on Explicit meshes, too, where gathers, sorts and slices of a sharded axis are refused.

    XLA places the steps between, as on Auto meshes.

    Args:
      f: a function of arrays and trees of them. args: its arguments.
      specs: how results are sharded over an Explicit mesh: a `PartitionSpec`, or a tree of them that is a
        prefix of the result.

    >>> import jax.numpy as jnp
    >>> under_any_mesh(lambda x: x[::2], (jnp.arange(4),), PartitionSpec())
    Array([0, 2], dtype=int32)
    """
    sharded = [leaf for leaf in jax.tree.leaves(args) if is_sharded_in_type(leaf)]
    if not sharded:
        return f(*args)
    f = jax.sharding.auto_axes(f, out_sharding=specs)
    if not jax.sharding.get_abstract_mesh().empty:
        return f(*args)
    # Arrays bring their mesh along, without jax.set_mesh, too, but `auto_axes` reads the one that is set.
    with jax.sharding.use_abstract_mesh(jax.typeof(sharded[0]).sharding.mesh):
        return f(*args)


def take_each(table: jax.Array, index: jax.Array) -> jax.Array:
    """`table[index]`, sharded as the indices are.

    >>> take_each(jnp.array([0.5, 2.0]), jnp.array([1, 0, 1]))
    Array([2. , 0.5, 2. ], dtype=float32)
    """
    return under_any_mesh(lambda index, table: table[index], (index, table), spec_of(index))


def place_of_each(edges: jax.Array, x: jax.Array) -> jax.Array:
    """How many of the ascending edges each value has reached, int32, sharded as the values are.

    >>> place_of_each(jnp.array([0.5, 2.0]), jnp.array([0.0, 0.5, 3.0]))
    Array([0, 1, 2], dtype=int32)
    """
    return under_any_mesh(lambda x, edges: jnp.searchsorted(edges, x, side="right"), (x, edges), spec_of(x))
