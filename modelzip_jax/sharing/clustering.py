"""Clustering as a transform: weights share the entries of a trained codebook."""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.meshes import spec_of, under_any_mesh
from modelzip_jax.packed import Bits, Dense, is_packed
from modelzip_jax.recipe import recordable
from modelzip_jax.sharing import codebook as books
from modelzip_jax.sharing import vectors
from modelzip_jax.sharing.centroids import INITS
from modelzip_jax.sharing.clustered import Clustered, VectorClustered
from modelzip_jax.sharing.codebook import Book
from modelzip_jax.sharing.lookup import read, soft_read
from modelzip_jax.transform import Encoded, Rate, Transform
from modelzip_jax.tree import Static

__all__ = ["Cluster", "ClusterState", "cluster"]

PyTree = Any
_GRANULARITIES = ("tensor", "model")


class ClusterState(NamedTuple):
    """codes: uint8 a leaf, of its shape, or `(blocks,)` for vectors.

    books: a `Book` a leaf, or one for all. dtypes: each leaf's before encoding (static).
    """

    codes: PyTree
    books: PyTree
    dtypes: PyTree


@recordable
@dataclasses.dataclass(frozen=True)
class Cluster(Transform):
    """See `cluster`."""

    k: int
    granularity: str
    block: int
    axis: int
    init_by: str
    learned: bool
    every: int
    temperature: float | None
    zero: bool | None

    terminal: ClassVar[bool] = True

    @property
    def leafwise(self) -> bool:
        return self.granularity == "tensor"

    def _rows(self, x: jax.Array) -> jax.Array:
        """What is assigned a code each: `(n,)`, or `(n, block)`."""
        return x.reshape(-1) if self.block == 1 else vectors.to_blocks(x, self.block, self.axis)

    def _all_rows(self, parts: list[Any]) -> list[Any]:
        return [None if part is None else self._rows(part) for part in parts]

    def _unrows(self, rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return rows.reshape(shape) if self.block == 1 else vectors.from_blocks(rows, self.axis, shape)

    def _spread(self, tree: PyTree, shared: PyTree) -> PyTree:
        """Books or offsets for each leaf."""
        return shared if self.leafwise else jax.tree.map(lambda _: shared, tree)

    def _entries(self, values: PyTree, extras: PyTree, state: ClusterState) -> PyTree:
        """The current codebook of each leaf."""
        if not self.leafwise:
            return self._spread(values, books.current(extras if self.learned else None, state.books))
        if not self.learned:
            return jax.tree.map(lambda _, b: books.current(None, b), values, state.books)
        return jax.tree.map(lambda _, e, b: books.current(e, b), values, extras, state.books)

    def _offsets(self, found: PyTree) -> PyTree:
        if not self.learned:
            return ()
        return jax.tree.map(lambda b: jnp.zeros_like(b.base), found, is_leaf=_is_book)

    def init(self, values: PyTree, **extra: Any) -> Encoded:
        trees.check_floating(values, "cluster")
        latents = jax.tree.map(trees.latent, values)
        weights = self._weights(latents, extra)
        zero = extra.get("support") is not None if self.zero is None else self.zero
        zero = zero and self.block == 1

        def fit(parts: list[jax.Array], masses: list[jax.Array | None]) -> Book:
            rows, masses = self._all_rows(parts), self._all_rows(masses)
            entries = books.fit(rows, masses, self.k, zero, self.init_by, extra.get("key"))
            return books.of_entries(entries, zero)

        if self.leafwise:
            found = jax.tree.map(
                lambda w, m: under_any_mesh(fit, ([w], [m]), PartitionSpec()), latents, weights
            )
        else:
            found = under_any_mesh(
                fit, (jax.tree.leaves(latents), _masses(latents, weights)), PartitionSpec()
            )
        dtypes = jax.tree.map(lambda x: Static(str(jnp.result_type(x))), values)
        state = ClusterState((), found, dtypes)
        codes = self._assign(latents, self._offsets(found), state, weights)
        return Encoded(latents, self._offsets(found), state._replace(codes=codes))

    def _weights(self, values: PyTree, extra: dict[str, Any]) -> PyTree:
        """The importance of each leaf, or None; 0 where a mask hides the latent."""
        given = [extra[name] for name in ("support", "importance") if extra.get(name) is not None]

        def together(w: jax.Array, *factors: jax.Array) -> jax.Array | None:
            return functools.reduce(operator.mul, factors, jnp.ones(w.shape, w.dtype)) if factors else None

        return jax.tree.map(together, values, *given)

    def _assign(self, values: PyTree, extras: PyTree, state: ClusterState, weights: PyTree) -> PyTree:
        """The codes of the nearest entries."""

        def codes(w: jax.Array, entries: jax.Array, mass: jax.Array | None) -> jax.Array:
            if self.block == 1:
                return books.nearest(w.reshape(-1), entries).reshape(w.shape)
            return books.nearest(self._rows(w), entries, None if mass is None else self._rows(mass))

        def placed(w: jax.Array, *rest: Any) -> jax.Array:
            return under_any_mesh(codes, (w, *rest), spec_of(w) if self.block == 1 else PartitionSpec())

        return jax.tree.map(placed, values, self._entries(values, extras, state), weights)

    def decode(self, values: PyTree, extras: PyTree, state: ClusterState) -> PyTree:
        def weights(w: jax.Array, entries: jax.Array, codes: jax.Array) -> jax.Array:
            rows, codes = self._rows(w), codes.reshape(-1)
            if self.temperature is None:
                out = read(rows, entries, codes, self.every > 0)
            else:
                columns = rows.reshape(-1, self.block), entries.reshape(-1, self.block)
                out = soft_read(*columns, codes, books.softness(entries, self.temperature)).reshape(
                    rows.shape
                )
            return self._unrows(out, w.shape)

        def decode(w: jax.Array, entries: jax.Array, codes: jax.Array, dtype: Static) -> jax.Array:
            return under_any_mesh(weights, (w, entries, codes), spec_of(w)).astype(dtype.value)

        return jax.tree.map(decode, values, self._entries(values, extras, state), state.codes, state.dtypes)

    def update(self, values: PyTree, extras: PyTree, state: ClusterState, **extra: Any) -> Encoded:
        if self.temperature is None and self.every == 0:
            return Encoded(values, extras, state)
        weights = self._weights(values, extra)

        def refresh(old: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            moved = state if self.learned else state._replace(books=self._moved(values, state, weights))
            return self._assign(values, extras, moved, weights), moved.books

        if self.temperature is not None:
            codes, found = refresh((state.codes, state.books))
        else:
            due = extra["step"] % self.every == 0
            codes, found = jax.lax.cond(due, refresh, lambda old: old, (state.codes, state.books))
        return Encoded(values, extras, ClusterState(codes, found, state.dtypes))

    def _moved(self, values: PyTree, state: ClusterState, weights: PyTree) -> PyTree:
        """The books after a Lloyd step, soft in DKM."""

        def move(parts: list[jax.Array], masses: list[jax.Array | None], book: Book) -> Book:
            return books.step(book, self._all_rows(parts), self._all_rows(masses), self.temperature)

        if self.leafwise:
            return jax.tree.map(
                lambda w, m, b: under_any_mesh(move, ([w], [m], b), PartitionSpec()),
                values,
                weights,
                state.books,
            )
        parts = jax.tree.leaves(values)
        if not parts:
            return state.books
        return under_any_mesh(move, (parts, _masses(values, weights), state.books), PartitionSpec())

    def pack(self, values: PyTree, extras: PyTree, state: ClusterState, inner: PyTree) -> PyTree:
        def pack(w: jax.Array, entries: jax.Array, book: Book, codes: jax.Array, dtype: Static) -> Any:
            shape = tuple(jnp.shape(w))
            bits = Bits.pack(codes.reshape(-1), book.index_bits)
            if self.block == 1:
                return Clustered(bits, entries, book.zero.value, shape, dtype.value)
            return VectorClustered(bits, entries, self.axis, shape, dtype.value)

        entries = self._entries(values, extras, state)
        found = self._spread(values, state.books)
        return jax.tree.map(pack, values, entries, found, state.codes, state.dtypes)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def book(p: Clustered | VectorClustered) -> Book:
            return books.of_entries(jnp.asarray(p.codebook), isinstance(p, Clustered) and p.zero)

        def codes(p: Clustered | VectorClustered) -> jax.Array:
            return p.codes.unpack().reshape(p.shape if self.block == 1 else -1)

        def over(function: Any) -> PyTree:
            return jax.tree.map(function, packed, is_leaf=is_packed)

        leaves = jax.tree.leaves(packed, is_leaf=is_packed)
        if self.leafwise:
            found = over(book)
        else:
            found = (
                book(leaves[0])
                if leaves
                else books.of_entries(books.fit([], [], self.k, False, "", None), False)
            )
        inner = over(lambda p: Dense(trees.latent(p.unpack()), p.shape))
        return self._offsets(found), ClusterState(over(codes), found, over(lambda p: Static(p.dtype))), inner

    def rate(self, values: PyTree, extras: PyTree, state: ClusterState, inner: PyTree) -> PyTree:
        def bits(w: jax.Array, codes: jax.Array, book: Book) -> Rate:
            counts = jnp.zeros(len(book.base)).at[codes.reshape(-1)].add(1.0)
            if book.zero.value and not self.zero:  # What a mask hides is not stored.
                counts = counts.at[0].set(0.0)
            share = jnp.maximum(counts, 1.0) / jnp.maximum(jnp.sum(counts), 1.0)
            each = -jnp.log2(share)[codes.reshape(-1)] / self.block
            blocks = jnp.broadcast_to(each[:, None], (each.size, self.block))
            rows = each if self.block == 1 else blocks
            return Rate(self._unrows(rows, w.shape), jnp.float32(book.bits))

        def placed(w: jax.Array, *rest: Any) -> Rate:
            return under_any_mesh(bits, (w, *rest), Rate(spec_of(w), PartitionSpec()))

        return jax.tree.map(placed, values, state.codes, self._spread(values, state.books))


def _is_book(x: Any) -> bool:
    return isinstance(x, Book)


def _masses(values: PyTree, weights: PyTree) -> list[jax.Array | None]:
    """The importance of each leaf, or None."""
    return jax.tree.structure(values).flatten_up_to(weights)


def cluster(
    k: int = 16,
    *,
    granularity: str = "tensor",
    block: int = 1,
    axis: int = -1,
    init: str = "companding",
    learned: bool = True,
    every: int = 0,
    temperature: float | None = None,
    zero: bool | None = None,
) -> Cluster:
    """Lets weights share k values: a codebook found by k-means, then trained; indices are what is stored.

    Each weight is an index of ceil(log2 k) bits in memory, its entropy in a file. In training an entry gets the
    sum of its weights' gradients, by an optimizer of its own (`mz.wrap(..., extras_tx=)`), as a
    dimensionless offset. After `mz.prune` in a chain the codebook is fitted to the kept weights, and 0 is
    one of the k entries. Memory: a byte a weight, or a block, for the indices.

    Args:
      k: entries, 2 to 256; a leaf of fewer weights has fewer.
      granularity: "tensor", a codebook a leaf, or "model", one for all leaves that the transform is given;
        `mz.partition` makes groups of leaves.
      block: weights that share an index; more than 1 is vector quantization, with entries of `block` weights.
      axis: the axis along which a block's weights follow each other.
      init: "companding", "density", "linear" or "k-means++", see `sharing.kmeans`. Blocks are drawn at random.
      learned: train the codebook by its gradient. If not, entries become means at each refresh.
      every: optimizer steps between refreshes, at which latents, trained by straight-through gradients,
        are assigned anew. 0 keeps the first assignment, as Deep Compression does.
      temperature: for DKM: the latents get the gradient of a soft assignment, softmax(-distance / temperature),
        in units of the codebook's root mean square, and entries and indices follow them at every step. The
        network computes with the nearest entries, which are stored, not with soft ones. `learned` is
        then without effect. Takes k floats a weight during the step; 0.05 is a good start.
      zero: keep an entry at exactly 0; None: where a mask comes before in a chain. Not for blocks.

    `init` takes, besides, `importance`, a tree like the params of weights for the squared error (such as
    the diagonal of the Fisher information), and `key`.

    Raises:
      TransformError: an argument out of range, or an unknown name.
      LeafError (at `init`): a selected leaf is not floating-point.

    Han et al. 2016, arXiv:1510.00149; Cho et al. 2022 (DKM), arXiv:2108.12659; Stock et al. 2020 (blocks),
    arXiv:1907.05686.

    >>> t = cluster(2)
    >>> t.decode(*t.init({"w": jnp.array([1.0, 1.5, -2.0, -3.0])}))
    {'w': Array([ 1.25,  1.25, -2.5 , -2.5 ], dtype=float32)}
    """
    for name, value, low, high in (
        ("k", k, 2, 256),
        ("block", block, 1, 1 << 20),
        ("every", every, 0, 1 << 30),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise TransformError(f"{name} must be an integer from {low} to {high}, not {value!r}")
    if granularity not in _GRANULARITIES or init not in INITS:
        raise TransformError(
            f"granularity is one of {_GRANULARITIES} and init one of {INITS}, not {granularity!r} and {init!r}"
        )
    if temperature is not None and not temperature > 0:
        raise TransformError(f"temperature must be above 0, not {temperature!r}")
    if zero and block > 1:
        raise TransformError("a codebook of blocks keeps no zero; zeros of a mask survive without one")
    learned = bool(learned) and temperature is None
    return Cluster(k, granularity, block, int(axis), init, learned, every, temperature, zero)
