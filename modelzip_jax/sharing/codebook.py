"""Codebooks as trained numbers: a base in units of a power of two, and offsets from it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.sampling import spread_places
from modelzip_jax.sharing import vectors
from modelzip_jax.sharing.clustered import index_bits
from modelzip_jax.sharing.lloyd import assign, kmeans, normalised
from modelzip_jax.sharing.lookup import attention, soft_means
from modelzip_jax.sharing.parting import means, parted
from modelzip_jax.sharing.scaling import exponent, power, root_mean_square, scaled, unit
from modelzip_jax.tree import Static

__all__ = ["Book", "current", "fit_codebook", "nearest_entry", "of_entries", "respread", "softness", "step"]

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
    # No further up: the reciprocal would be no normal number, and flushed to zero.
    most = jnp.finfo(entries.dtype).maxexp - 3
    scale = power(jnp.minimum(exponent(root_mean_square(entries)) - 1, most), entries.dtype)
    scale = jnp.where(jnp.any(entries != 0), scale, 1.0)
    return Book(entries / scale, scale, Static(zero))


def current(offset: jax.Array | None, book: Book) -> jax.Array:
    """The entries as trained."""
    if offset is None:
        return book.base * book.scale
    if book.zero.value:
        offset = offset.at[0].set(0.0)
    # The sum first: eager and jitted code round `base * scale + offset * scale` differently.
    return (book.base + offset) * book.scale


def fit_codebook(
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
        share = min(_BLOCKS / size, 1.0)
        places = [spread_places(len(part), math.ceil(len(part) * share)) for part in parts]
        masses = [jnp.ones_like(p) if w is None else w for p, w in zip(parts, weights, strict=True)]
        blocks, masses = ([x[at] for x, at in zip(column, places, strict=True)] for column in (parts, masses))
        return vectors.vector_kmeans(jnp.concatenate(blocks), k, jnp.concatenate(masses), key=key)
    centroids = kmeans(parts, k, weights=weights, init=init, zero=zero, key=key).centroids
    if not zero:
        return centroids
    first = jnp.argmax(centroids == 0)
    return centroids[jnp.argsort(jnp.where(jnp.arange(k) == first, -jnp.inf, centroids))]


def nearest_entry(x: jax.Array, entries: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """The code of each value `(n,)` or block `(n, block)`: uint8 `(n,)`. Entries may be in any order."""
    if x.ndim == 2:
        return vectors.assign_blocks(x, entries, weights)
    entries = jax.lax.stop_gradient(entries)
    order = jnp.argsort(entries)
    return order.astype(jnp.uint8)[assign(x, entries[order])]


def softness(entries: jax.Array, temperature: float) -> jax.Array:
    """DKM's temperature in units of the weights: relative to the root mean square of the entries `(k, block)`.

    But to no more than twice their deviation, where they are all near one value, as gains around one are:
    a softer assignment would make one value of them.
    """
    deviation = root_mean_square(entries - _middle(entries)[None])
    return temperature * jnp.minimum(root_mean_square(entries), 2.0 * deviation)


def _middle(entries: jax.Array) -> jax.Array:
    """The mean of the entries; their sum may overflow."""
    return jnp.sum(entries / len(entries), axis=0)


def step(
    book: Book, parts: list[jax.Array], weights: list[jax.Array | None], temperature: float | None
) -> Book:
    """The book after a step of Lloyd's iteration over leaves or blocks, soft (DKM's) at a temperature.

    Equal entries part first, see `respread`; nothing has a gradient.
    """
    return _updated(book, None, parts, weights, functools.partial(_moved, temperature=temperature))


def respread(
    book: Book, offset: jax.Array | None, parts: list[jax.Array], weights: list[jax.Array | None]
) -> Book:
    """The book with entries that are equal moved apart to where the latents are; others stay.

    A leaf that starts at zero has k entries of 0. Nothing tells them apart: one of them would get all
    weights, and the others never any. The offsets, which are trained, stay: it is the base that moves.

    Args:
      offset: of `current`, or None. parts, weights: as in `fit_codebook`.
    """
    return _updated(book, offset, parts, weights, lambda rows, entries, mass: entries)


def _updated(
    book: Book,
    offset: jax.Array | None,
    parts: list[jax.Array],
    weights: list[jax.Array | None],
    move: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> Book:
    """The book with what becomes of its entries, once parted, in units near one: rows, entries, masses `(…, block)`."""
    before = current(offset, book)
    columns = before.reshape(len(before), -1)
    rows = jnp.concatenate([p.reshape(len(p), columns.shape[1]) for p in parts])
    _, given = normalised(parts, weights)
    ones = [jnp.ones_like(p) if m is None else m for p, m in zip(parts, given, strict=True)]
    mass = jnp.concatenate([m.reshape(-1, columns.shape[1]) for m in ones])
    rows, columns, mass = jax.lax.stop_gradient((rows, columns, mass))
    e = unit([rows, columns])
    rows, columns = scaled(rows, -e), scaled(columns, -e)
    new = move(rows, parted(rows, columns, mass), mass)
    new = jnp.where(new == columns, before.reshape(columns.shape), scaled(new, e)).reshape(before.shape)
    base = new / book.scale if offset is None else new / book.scale - offset
    base = jnp.where(new == before, book.base, base)
    return Book(base.at[0].set(0.0) if book.zero.value else base, book.scale, book.zero)


def _moved(rows: jax.Array, entries: jax.Array, mass: jax.Array, temperature: float | None) -> jax.Array:
    """Entries as means of the rows that have their code, or that attend to them; one that none has stays."""
    if temperature is not None:
        return soft_means(rows, attention(rows, entries, softness(entries, temperature)), entries, mass)
    numbers = rows.shape[1] == 1
    codes = nearest_entry(rows[:, 0], entries[:, 0]) if numbers else nearest_entry(rows, entries, mass)
    return means(rows, codes, entries, mass)[0]
