"""Codebooks as trained numbers: a base in units of a power of two, and offsets from it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.sharing import vectors
from modelzip_jax.sharing.clustered import index_bits
from modelzip_jax.sharing.lloyd import assign, kmeans
from modelzip_jax.sharing.lookup import attention, soft_means
from modelzip_jax.tree import Static

__all__ = ["Book", "current", "fit", "nearest", "of_entries", "softness", "step"]

_BLOCKS = 1 << 18
"""Blocks that vector codebooks are fitted to, evenly taken from all: a thousand for each of 256 entries."""


class Book(NamedTuple):
    """`(base + offset) * scale`, the offsets being extras, zero at first.

    base: `(k,)`, or `(k, block)`. scale: a power of two near the entries' root mean square: dimensionless
    offsets suit any optimizer, and neither the division nor the product rounds. zero: whether entry 0 is 0
    and stays so (static).
    """

    base: jax.Array
    scale: jax.Array
    zero: Static

    @property
    def bits(self) -> float:
        """Of the entries, stored."""
        return 8.0 * self.base.dtype.itemsize * self.base.size

    @property
    def index_bits(self) -> int:
        """Of an index into it."""
        return index_bits(len(self.base))


def of_entries(entries: jax.Array, zero: bool) -> Book:
    """The book whose current entries are these.

    >>> book = of_entries(jnp.array([0.3, -0.1]), False)
    >>> book.scale, current(None, book)
    (Array(0.125, dtype=float32), Array([ 0.3, -0.1], dtype=float32))
    """
    size = jnp.sqrt(jnp.mean(jnp.square(entries)))
    _, exponent = jnp.frexp(jnp.where(size > 0, size, 1.0))
    scale = jnp.ldexp(jnp.ones((), entries.dtype), jnp.clip(exponent - 1, -100, 100))
    return Book(entries / scale, scale, Static(zero))


def current(offset: jax.Array | None, book: Book) -> jax.Array:
    """The entries as trained."""
    if offset is None:
        return book.base * book.scale
    if book.zero.value:
        offset = offset * (jnp.arange(len(offset)) > 0)
    # The sum first: eager and jitted code round `base * scale + offset * scale` differently.
    return (book.base + offset) * book.scale


def fit(
    parts: list[jax.Array],
    weights: list[jax.Array | None],
    k: int,
    zero: bool,
    init: str,
    key: jax.Array | None,
) -> jax.Array:
    """Entries for leaves `(n,)`, or for blocks `(n, block)`, that share them; no more than there are values.

    With `zero`, entry 0 is 0 and the others stand in ascending order.
    """
    size = sum(len(part) for part in parts)
    k = min(k, max(size + zero, 1))
    if size == 0:
        return jnp.zeros((k, *parts[0].shape[1:]) if parts else k, parts[0].dtype if parts else jnp.float32)
    if parts[0].ndim == 2:
        stride = max(size // _BLOCKS, 1)
        masses = [jnp.ones_like(p) if w is None else w for p, w in zip(parts, weights, strict=True)]
        blocks, masses = ([x[::stride] for x in column] for column in (parts, masses))
        return vectors.vector_kmeans(jnp.concatenate(blocks), k, jnp.concatenate(masses), key=key)
    centroids = kmeans(parts, k, weights=weights, init=init, zero=zero, key=key).centroids
    if not zero:
        return centroids
    first = jnp.argmax(centroids == 0)
    return centroids[jnp.argsort(jnp.where(jnp.arange(k) == first, -jnp.inf, centroids))]


def nearest(x: jax.Array, entries: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """The code of each value `(n,)` or block `(n, block)`: uint8 `(n,)`. Entries may be in any order."""
    if x.ndim == 2:
        return vectors.assign_blocks(x, entries, weights)
    order = jnp.argsort(entries)
    return order.astype(jnp.uint8)[assign(x, entries[order])]


def softness(entries: jax.Array, temperature: float) -> jax.Array:
    """DKM's temperature in units of the weights: relative to the root mean square of the entries."""
    return jnp.maximum(temperature * jnp.sqrt(jnp.mean(jnp.square(entries))), 1e-30)


def step(
    book: Book, parts: list[jax.Array], weights: list[jax.Array | None], temperature: float | None
) -> Book:
    """The book after a step of Lloyd's iteration over leaves or blocks, soft (DKM's) at a temperature."""
    entries = current(None, book)
    columns = entries.reshape(len(entries), -1)
    rows = jnp.concatenate([p.reshape(len(p), columns.shape[1]) for p in parts])
    masses = [jnp.ones_like(p) if m is None else m for p, m in zip(parts, weights, strict=True)]
    mass = jnp.concatenate([m.reshape(-1, columns.shape[1]) for m in masses])
    if temperature is None:
        codes = nearest(rows.reshape(-1, *entries.shape[1:]), entries)
        new = _means(rows, codes, columns, mass)
    else:
        new = soft_means(rows, attention(rows, columns, softness(entries, temperature)), columns, mass)
    new = new.reshape(entries.shape)
    new = new.at[0].set(0.0) if book.zero.value else new
    return Book(new / book.scale, book.scale, book.zero)


def _means(rows: jax.Array, codes: jax.Array, entries: jax.Array, mass: jax.Array) -> jax.Array:
    """Of the rows with each code; an entry that none has stays."""
    total = jnp.zeros_like(entries).at[codes].add(mass)
    first = jnp.zeros_like(entries).at[codes].add(mass * rows)
    return jnp.where(total > 0, first / jnp.where(total > 0, total, 1.0), entries)
