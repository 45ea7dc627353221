"""Entries of a codebook that have become equal, and how they part."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from modelzip_jax.sharing.lloyd import assign
from modelzip_jax.sharing.lookup import twins
from modelzip_jax.sharing.relocation import relocate
from modelzip_jax.sharing.sums import sums
from modelzip_jax.sharing.vectors import assign_blocks

__all__ = ["means", "parted"]


def parted(rows: jax.Array, entries: jax.Array, mass: jax.Array, zero: bool) -> jax.Array:
    """The entries, those that are equal moved apart to where the rows are, if these differ.

    Numbers spread over what they stand for, as centroids without points do in k-means; vectors become rows.

    Args:
      rows: `(n, block)`. entries: `(k, block)`. mass: as `rows`. All in units near one. zero: entry 0 stays.

    >>> parted(jnp.array([[-1.0], [0.0], [1.0]]), jnp.zeros((3, 1)), jnp.ones((3, 1)), True)[:, 0].tolist()[0]
    0.0
    """
    if not len(rows):
        return entries
    again, twin = twins(entries)
    spread = _spread if rows.shape[1] == 1 else _drawn
    return jax.lax.cond(
        jnp.any(again), lambda: spread(rows, entries, mass, again, twin, zero), lambda: entries
    )


def _spread(
    rows: jax.Array, entries: jax.Array, mass: jax.Array, again: jax.Array, twin: jax.Array, zero: bool
) -> jax.Array:
    order = jnp.argsort(entries[:, 0])
    # The lowest of equal entries gets what is below them, the highest what is above.
    codes = order[assign(rows[:, 0], entries[order, 0])]
    centres, total = means(rows, codes, entries, mass)
    pinned = (jnp.arange(len(entries)) == 0) & zero
    centres = jnp.where((twin & ~pinned)[:, None], centres, entries)
    error = sums(codes, mass * jnp.square(rows - centres[codes]), len(entries))[:, 0]
    low = jnp.min(jnp.where(mass > 0, rows, jnp.inf))
    high = jnp.max(jnp.where(mass > 0, rows, -jnp.inf))
    fixed = pinned | ((total[:, 0] <= 0) & ~again)
    return relocate(centres[:, 0], total[:, 0], error, fixed, (low, high))[:, None]


def _drawn(
    rows: jax.Array, entries: jax.Array, mass: jax.Array, again: jax.Array, twin: jax.Array, zero: bool
) -> jax.Array:
    """Rows at even distances, of those that count and have no entry of their own."""
    apart = jnp.square(rows - entries[assign_blocks(rows, entries, mass)])
    counted = jnp.cumsum(jnp.any(mass * apart > 0, axis=1), dtype=jnp.int32)
    rank = (jnp.cumsum(again, dtype=jnp.int32).astype(jnp.float32) - 0.5) / jnp.sum(again).astype(jnp.float32)
    at = (rank * counted[-1].astype(jnp.float32)).astype(jnp.int32)
    place = jnp.clip(jnp.searchsorted(counted, at, side="right"), 0, len(rows) - 1)
    return jnp.where((again & (counted[-1] > 0))[:, None], rows[place], entries)


def means(
    rows: jax.Array, codes: jax.Array, entries: jax.Array, mass: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of the rows with each code, and their mass, both `(k, block)`; an entry that none has stays."""
    found = sums(codes, jnp.concatenate([mass, mass * rows], axis=1), len(entries))
    total, first = found[:, : rows.shape[1]], found[:, rows.shape[1] :]
    return jnp.where(total > 0, first / jnp.where(total > 0, total, 1.0), entries), total
