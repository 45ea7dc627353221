"""Leaves of one shape in one batch, so that XLA compiles a program for each shape and not for each leaf.

XLA:CPU compiles a loop over a leaf sooner where it has compiled the same one for another leaf, but not one that
differs in anything, a constant included; a network has hundreds of leaves of a few shapes. What happens once in many
steps is computed for all leaves of a shape together, at the price of a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["map_by_shape", "shape_batches", "stack", "unstack"]

_LARGEST = 1 << 20
"""Elements of the largest leaf that is put beside others: of larger ones a copy costs more than compiling."""


def shape_batches(leaves: Sequence[Any], labels: Sequence[Hashable] | None = None) -> list[list[int]]:
    """The places of leaves in batches: those of one shape, dtype and label, each in order.

    Alone stay large leaves; arrays that are not traced, of which each shape would be compiled for itself; and all
    where there are several devices, over which leaves of one shape may be spread in different ways.

    >>> leaf = jnp.ones(3)
    >>> jax.jit(lambda *leaves: shape_batches(leaves) == [[0, 2], [1]])(leaf, jnp.ones(2), leaf)
    Array(True, dtype=bool)
    """
    found: dict[Hashable, list[int]] = {}
    for place, leaf in enumerate(leaves):
        joins = isinstance(leaf, jax.core.Tracer) and leaf.size <= _LARGEST and jax.device_count() == 1
        label = labels[place] if labels else None
        found.setdefault((jax.typeof(leaf), label) if joins else place, []).append(place)
    return list(found.values())


def stack(leaves: Sequence[jax.Array]) -> jax.Array:
    """`jnp.stack`, but of one leaf no copy."""
    return leaves[0][None] if len(leaves) == 1 else jnp.stack(leaves)


def unstack(x: jax.Array) -> list[jax.Array]:
    """The inverse of `stack`."""
    return [jnp.squeeze(x, 0)] if len(x) == 1 else list(jnp.unstack(x))


def map_by_shape(
    f: Callable[..., Any], *rows: Sequence[jax.Array], labels: Sequence[Hashable] | None = None
) -> list[Any]:
    """`[f(*row) for row in zip(*rows)]`, of places that are alike by one `jax.vmap`.

    Args:
      f: from arrays to a tree of arrays. rows: what is alike in the first one has to be in all.
      labels: of each place, hashable: only those of one label go together, and `f` is given it as the first argument.

    >>> jax.jit(lambda *leaves: map_by_shape(jnp.square, leaves))(jnp.ones(2), jnp.zeros(1), jnp.array([3.0, 3.0]))
    [Array([1., 1.], dtype=float32), Array([0.], dtype=float32), Array([9., 9.], dtype=float32)]
    """
    found: dict[int, Any] = {}
    batches = shape_batches(rows[0], labels)
    places = _unseen(max(map(len, batches), default=0), rows[0])
    for batch in batches:
        g = f if labels is None else functools.partial(f, labels[batch[0]])
        if len(batch) == 1:
            found[batch[0]] = g(*(row[batch[0]] for row in rows))
            continue
        together = jax.vmap(g)(*(stack([row[at] for at in batch]) for row in rows))
        for at, place in zip(batch, places, strict=False):
            found[at] = jax.tree.map(functools.partial(_taken, place), together)
    return [found[at] for at in range(len(rows[0]))]


def _taken(place: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, place, keepdims=False)


def _unseen(count: int, leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """0, 1, ..., as int32 scalars that XLA does not know: slices at places that it knows are different programs."""
    filled = [x for x in leaves if x.size]
    if count < 2 or not filled:
        return [jnp.int32(0)] * count
    # A loop of one pass, which XLA takes for one of any number: it cannot tell what comes out.
    one = (filled[0].reshape(-1)[0] != 0).astype(jnp.int32)
    passes = 1 + jnp.minimum(one, 0)

    def tell(held: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        return held[0] + 1, tuple(jnp.int32(n) for n in range(count))

    start = jnp.int32(0), (jnp.int32(-1),) * count
    return list(jax.lax.while_loop(lambda held: held[0] < passes, tell, start)[1])
