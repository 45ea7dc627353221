"""Entries of a codebook that have become equal, and how they part."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from modelzip_jax.sharing.lookup import twins
from modelzip_jax.sharing.sums import segment_sums
from modelzip_jax.sharing.vectors import assign_blocks

__all__ = ["means", "parted"]


def parted(rows: jax.Array, entries: jax.Array, mass: jax.Array) -> jax.Array:
    """The entries, those that are equal to one before moved to rows that are equal to none, if there are such.

    The rows at even distances in their order, of those that count: no more to compile than it takes, as it is
    for every leaf and runs for few. What follows, steps of Lloyd's iteration, finds better places.

    Args:
      rows: `(n, block)`. entries: `(k, block)`. mass: as `rows`. All in units near one.

    >>> parted(jnp.array([[-1.0], [0.0], [1.0]]), jnp.zeros((3, 1)), jnp.ones((3, 1)))[:, 0].tolist()
    [0.0, -1.0, 1.0]
    """
    if not len(rows):
        return entries
    again = twins(entries)

    def moved() -> jax.Array:
        counted = jnp.cumsum(jnp.any(mass * _apart(rows, entries, mass) > 0, axis=1), dtype=jnp.int32)
        rank = (jnp.cumsum(again, dtype=jnp.int32).astype(jnp.float32) - 0.5) / jnp.sum(again).astype(
            jnp.float32
        )
        at = (rank * counted[-1].astype(jnp.float32)).astype(jnp.int32)
        place = jnp.clip(jnp.searchsorted(counted, at, side="right"), 0, len(rows) - 1)
        return jnp.where((again & (counted[-1] > 0))[:, None], rows[place], entries)

    return jax.lax.cond(jnp.any(again), moved, lambda: entries)


def _apart(rows: jax.Array, entries: jax.Array, mass: jax.Array) -> jax.Array:
    """How far the rows are from the nearest entry, `(n, block)` or `(n, 1)`."""
    if rows.shape[1] == 1:  # Compared and reduced in one pass, without an array of n · k.
        return jnp.min(jnp.abs(rows - entries[:, 0][None]), axis=1, keepdims=True)
    return jnp.abs(rows - entries[assign_blocks(rows, entries, mass)])


def means(
    rows: jax.Array, codes: jax.Array, entries: jax.Array, mass: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of the rows with each code, and their mass, both `(k, block)`; an entry that none has stays."""
    found = segment_sums(codes, jnp.concatenate([mass, mass * rows], axis=1), len(entries))
    total, first = found[:, : rows.shape[1]], found[:, rows.shape[1] :]
    return jnp.where(total > 0, first / jnp.where(total > 0, total, 1.0), entries), total
