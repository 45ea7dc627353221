"""Clustering as a transform: weights share the entries of a trained codebook."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_floating
from modelzip_jax.meshes import spec_of, under_any_mesh
from modelzip_jax.packed import Bits, Dense, PackedArray, is_packed
from modelzip_jax.recipe import recordable
from modelzip_jax.sharing import codebook as books
from modelzip_jax.sharing import vectors
from modelzip_jax.sharing.centroids import INITS
from modelzip_jax.sharing.clustered import (
    Clustered,
    LayerClustered,
    LayerVectors,
    VectorClustered,
    index_bits,
)
from modelzip_jax.sharing.codebook import Book
from modelzip_jax.sharing.lookup import look_up, soft_read
from modelzip_jax.sharing.sums import summed_at
from modelzip_jax.stacking import LayerAxes, as_layers, check_layers, stacked, stacked_axes, unstacked
from modelzip_jax.transform import Context, Encoded, Rate, Transform
from modelzip_jax.tree import PyTree

__all__ = ["Cluster", "ClusterState", "cluster"]

_GRANULARITIES = ("tensor", "model")


@trees.static_node
@dataclasses.dataclass(frozen=True)
class Outline:
    """Of one leaf: its shape and dtype, and the axes that count layers (all static)."""

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[int, ...]

    @property
    def tensor(self) -> tuple[int, ...]:
        """The shape of what has one codebook."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in self.axes)


class ClusterState(NamedTuple):
    """codes: uint8 a leaf, of its shape; of blocks `(blocks,)`, or `(layers, blocks)` of stacked leaves.

    books: a `Book` a leaf, or one for all. leaves: an `Outline` each (static).
    """

    codes: PyTree
    books: PyTree
    leaves: PyTree


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
    layers: LayerAxes = ()

    terminal: ClassVar[bool] = True

    @property
    def leafwise(self) -> bool:
        return self.granularity == "tensor"

    @property
    def fixed(self) -> bool:
        """Whether no weight ever changes its entry, so that the codebook is all there is to train."""
        return self.every == 0 and self.temperature is None

    def _rows(self, x: jax.Array, leaf: Outline) -> jax.Array:
        """What is assigned a code each: `(n,)` or `(n, block)`, with the layers before them."""

        def rows(x: jax.Array) -> jax.Array:
            return x.reshape(-1) if self.block == 1 else vectors.to_blocks(x, self.block, self.axis)

        return jax.vmap(rows)(stacked(x, leaf.axes)) if leaf.axes else rows(x)

    def _unrows(self, rows: jax.Array, leaf: Outline) -> jax.Array:
        def unrows(rows: jax.Array) -> jax.Array:
            return (
                rows.reshape(leaf.tensor)
                if self.block == 1
                else vectors.from_blocks(rows, self.axis, leaf.tensor)
            )

        return unstacked(jax.vmap(unrows)(rows), leaf.axes, leaf.shape) if leaf.axes else unrows(rows)

    def _code_rows(self, codes: jax.Array, leaf: Outline) -> jax.Array:
        return self._rows(codes, leaf) if self.block == 1 else codes

    def _spread(self, tree: PyTree, shared: PyTree) -> PyTree:
        """Books or offsets for each leaf."""
        return shared if self.leafwise else jax.tree.map(lambda _: shared, tree)

    def _entries(self, encoded: Encoded) -> PyTree:
        """The current codebook of each leaf."""
        latents, offsets, state = encoded

        def entries(leaf: Outline, book: Book, offset: jax.Array | None = None) -> jax.Array:
            return (
                _lifted(books.current, leaf)(offset, book) if self.learned else _lifted(_current, leaf)(book)
            )

        if not self.leafwise:
            return self._spread(latents, books.current(offsets if self.learned else None, state.books))
        given = (offsets,) if self.learned else ()
        return jax.tree.map(
            lambda _, leaf, b, *o: entries(leaf, b, *o), latents, state.leaves, state.books, *given
        )

    def _offsets(self, found: PyTree) -> PyTree:
        if not self.learned:
            return ()
        return jax.tree.map(lambda b: jnp.zeros_like(b.base), found, is_leaf=_is_book)

    def init(self, weights: PyTree, context: Context) -> Encoded:
        check_floating(weights, "cluster")
        check_layers(self.layers, weights)
        latents = jax.tree.map(latent, weights)
        leaves = trees.map_named(self._outline, weights)
        masses = self._masses(latents, context)
        zero = context.support is not None if self.zero is None else self.zero
        zero = zero and self.block == 1

        def fit(rows: list[jax.Array], masses: list[jax.Array | None]) -> Book:
            return books.of_entries(
                books.fit_codebook(rows, masses, self.k, zero, self.init_by, context.key), zero
            )

        def of_leaf(w: jax.Array, leaf: Outline, mass: jax.Array | None) -> Book:
            one = lambda w, m: fit([w], [m])  # noqa: E731
            args = (self._rows(w, leaf), None if mass is None else self._rows(mass, leaf))
            return under_any_mesh(_lifted(one, leaf), args, PartitionSpec())

        if self.leafwise:
            found = jax.tree.map(of_leaf, latents, leaves, masses)
        else:
            found = under_any_mesh(fit, self._all_rows(latents, leaves, masses), PartitionSpec())
        state = ClusterState((), found, leaves)
        encoded = Encoded(latents, self._offsets(found), state)
        encoded = encoded._replace(state=state._replace(codes=self._assign(encoded, masses)))
        # Latents that no gradient reaches would only cost memory and a pass of the optimizer.
        return encoded._replace(latents=_none(latents)) if self.fixed else encoded

    def _outline(self, name: str, w: Any) -> Outline:
        shape = tuple(jnp.shape(w))
        axes = stacked_axes(self.layers, name, shape)
        return Outline(shape, str(jnp.result_type(w)), axes if math.prod(shape) else ())

    def _all_rows(self, latents: PyTree, leaves: PyTree, masses: PyTree) -> tuple[list[Any], list[Any]]:
        structure = jax.tree.structure(latents)
        outlines, masses = structure.flatten_up_to(leaves), structure.flatten_up_to(masses)
        rows = [self._rows(w, leaf) for w, leaf in zip(jax.tree.leaves(latents), outlines, strict=True)]
        return rows, [None if m is None else self._rows(m, o) for m, o in zip(masses, outlines, strict=True)]

    def _masses(self, latents: PyTree, context: Context) -> PyTree:
        """The importance of each leaf, or None; 0 where a mask hides the latent."""
        given = [tree for tree in (context.support, context.importance) if tree is not None]

        def together(w: jax.Array, *factors: jax.Array) -> jax.Array | None:
            if not factors:
                return None
            return functools.reduce(operator.mul, (f.astype(w.dtype) for f in factors), jnp.ones_like(w))

        return jax.tree.map(together, latents, *given)

    def _assign(self, encoded: Encoded, masses: PyTree) -> PyTree:
        """The codes of the nearest entries."""

        def codes(w: jax.Array, leaf: Outline, entries: jax.Array, mass: jax.Array | None) -> jax.Array:
            def assign(w: jax.Array, entries: jax.Array, mass: jax.Array | None) -> jax.Array:
                mass = None if mass is None or self.block == 1 else self._rows(mass, leaf)
                found = _lifted(books.nearest_entry, leaf)(self._rows(w, leaf), entries, mass)
                return self._unrows(found, leaf) if self.block == 1 else found

            return under_any_mesh(
                assign, (w, entries, mass), spec_of(w) if self.block == 1 else PartitionSpec()
            )

        return jax.tree.map(codes, encoded.latents, encoded.state.leaves, self._entries(encoded), masses)

    def relaxed(self, encoded: Encoded) -> PyTree:
        return self._decoded(encoded) if self.fixed else encoded.latents

    def encode(self, weights: PyTree, encoded: Encoded) -> PyTree:
        return encoded.latents if self.fixed else weights

    def follow(self, encoded: Encoded, context: Context) -> Context:
        if not self.fixed:
            return context
        return context.replace(
            grads=None, stats=None, importance=None, curvature=None, scores=None, support=None
        )

    def decode(self, encoded: Encoded) -> PyTree:
        decoded = self._decoded(encoded)
        return jax.tree.map(lambda w, leaf: w.astype(leaf.dtype), decoded, encoded.state.leaves)

    def _decoded(self, encoded: Encoded) -> PyTree:
        def weights(w: jax.Array, entries: jax.Array, codes: jax.Array) -> jax.Array:
            if self.temperature is None:
                return look_up(w, entries, codes, self.every > 0)
            columns = w.reshape(-1, self.block), entries.reshape(-1, self.block)
            return soft_read(*columns, codes, books.softness(entries, self.temperature)).reshape(w.shape)

        def of_leaf(w: jax.Array, leaf: Outline, entries: jax.Array, codes: jax.Array) -> jax.Array:
            def decode(w: jax.Array, entries: jax.Array, codes: jax.Array) -> jax.Array:
                rows = self._code_rows(codes, leaf)
                if self.fixed:  # Of their shape, and read by nobody.
                    latents = jnp.zeros(rows.shape if self.block == 1 else (*rows.shape, self.block), w.dtype)
                else:
                    latents = self._rows(w, leaf)
                return self._unrows(_lifted(weights, leaf)(latents, entries, rows), leaf)

            spec = spec_of(codes) if self.block == 1 else PartitionSpec() if self.fixed else spec_of(w)
            return under_any_mesh(decode, (w, entries, codes), spec)

        state = encoded.state
        return jax.tree.map(of_leaf, encoded.latents, state.leaves, self._entries(encoded), state.codes)

    def update(self, encoded: Encoded, context: Context) -> Encoded:
        if self.fixed:
            return encoded
        state, masses = encoded.state, self._masses(encoded.latents, context)

        def refresh(old: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            moved = state._replace(books=self._moved(encoded, masses))
            return self._assign(encoded._replace(state=moved), masses), moved.books

        if self.temperature is not None:
            codes, found = refresh((state.codes, state.books))
        else:
            due = context.step % self.every == 0
            codes, found = jax.lax.cond(due, refresh, lambda old: old, (state.codes, state.books))
        return encoded._replace(state=ClusterState(codes, found, state.leaves))

    def _moved(self, encoded: Encoded, masses: PyTree) -> PyTree:
        """The books after a Lloyd step, soft in DKM; of learned ones equal entries part, and no others move."""
        latents, offsets, state = encoded
        offsets = offsets if self.learned else jax.tree.map(lambda _: None, state.books, is_leaf=_is_book)

        def move(
            rows: list[jax.Array], masses: list[jax.Array | None], book: Book, offset: jax.Array | None
        ) -> Book:
            if self.learned:
                return books.respread(book, offset, rows, masses)
            return books.step(book, rows, masses, self.temperature)

        def of_leaf(
            w: jax.Array, leaf: Outline, mass: jax.Array | None, book: Book, offset: jax.Array | None
        ) -> Book:
            one = lambda w, m, b, o: move([w], [m], b, o)  # noqa: E731
            args = self._rows(w, leaf), None if mass is None else self._rows(mass, leaf), book, offset
            return under_any_mesh(_lifted(one, leaf), args, PartitionSpec())

        if self.leafwise:
            return jax.tree.map(of_leaf, latents, state.leaves, masses, state.books, offsets)
        if not jax.tree.leaves(latents):
            return state.books
        args = (*self._all_rows(latents, state.leaves, masses), state.books, offsets)
        return under_any_mesh(move, args, PartitionSpec())

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def pack(_: Any, leaf: Outline, entries: jax.Array, book: Book, codes: jax.Array) -> PackedArray:
            bits = Bits.pack(codes.reshape(-1), index_bits(entries.shape[-1 if self.block == 1 else -2]))
            if not leaf.axes:
                if self.block == 1:
                    return Clustered(bits, entries, book.zero.value, leaf.shape, leaf.dtype)
                return VectorClustered(bits, entries, self.axis, leaf.shape, leaf.dtype)
            if self.block == 1:
                return LayerClustered(bits, entries, book.zero.value, leaf.axes, leaf.shape, leaf.dtype)
            return LayerVectors(bits, entries, self.axis, leaf.axes, leaf.shape, leaf.dtype)

        state = encoded.state
        found = self._spread(encoded.latents, state.books)
        return jax.tree.map(pack, encoded.latents, state.leaves, self._entries(encoded), found, state.codes)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def outline(p: Any) -> Outline:
            return Outline(tuple(p.shape), p.dtype, tuple(getattr(p, "axes", ())))

        def book(p: Any) -> Book:
            zero = bool(getattr(p, "zero", False))
            return _lifted(lambda e: books.of_entries(e, zero), outline(p))(jnp.asarray(p.codebook))

        def codes(p: Any) -> jax.Array:
            found, leaf = p.codes.unpack(), outline(p)
            if self.block == 1:
                return found.reshape(leaf.shape)
            layers = [math.prod(leaf.shape[axis] for axis in leaf.axes)] if leaf.axes else []
            return found.reshape(*layers, -1)

        def over(function: Callable[[Any], Any]) -> PyTree:
            return jax.tree.map(function, packed, is_leaf=is_packed)

        leaves = jax.tree.leaves(packed, is_leaf=is_packed)
        if self.leafwise:
            found = over(book)
        elif leaves:
            found = book(leaves[0])
        else:
            found = books.of_entries(books.fit_codebook([], [], self.k, False, "", None), False)
        if self.fixed:
            inner = over(lambda p: Dense(jnp.zeros((), jnp.float32), ()))
        else:
            inner = over(lambda p: Dense(latent(p.unpack()), p.shape))
        return self._offsets(found), ClusterState(over(codes), found, over(outline)), inner

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def costs(codes: jax.Array, book: Book) -> jax.Array:
            # Integers: a float32 counts no further than 2**24.
            counts = summed_at(codes, jnp.ones(codes.shape, jnp.int32), len(book.base)).astype(jnp.float32)
            if book.zero.value and not self.zero:  # What a mask hides is not stored.
                counts = counts.at[0].set(0.0)
            share = jnp.maximum(counts, 1.0) / jnp.maximum(jnp.sum(counts), 1.0)
            each = -jnp.log2(share)[codes] / self.block
            return each if self.block == 1 else jnp.broadcast_to(each[:, None], (each.size, self.block))

        def bits(leaf: Outline, codes: jax.Array, book: Book) -> Rate:
            found = self._unrows(_lifted(costs, leaf)(self._code_rows(codes, leaf), book), leaf)
            return Rate(found, jnp.float32(8.0 * book.base.dtype.itemsize * book.base.size))

        def placed(_: jax.Array, leaf: Outline, *rest: Any) -> Rate:
            return under_any_mesh(lambda *r: bits(leaf, *r), rest, Rate(PartitionSpec(), PartitionSpec()))

        state = encoded.state
        return jax.tree.map(
            placed, encoded.latents, state.leaves, state.codes, self._spread(encoded.latents, state.books)
        )


def _lifted(function: Callable[..., Any], leaf: Outline) -> Callable[..., Any]:
    """Over the layers, where a leaf has them."""
    return jax.vmap(function) if leaf.axes else function


def _current(book: Book) -> jax.Array:
    return books.current(None, book)


def _none(latents: PyTree) -> PyTree:
    """A scalar in the place of each leaf: checkpoints have no arrays without elements."""
    return jax.tree.map(lambda w: jnp.zeros((), w.dtype), latents)


def _is_book(x: Any) -> bool:
    return isinstance(x, Book)


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
    layers: int | tuple[int, ...] | Mapping[str, Any] | None = None,
) -> Cluster:
    """Lets weights share k values: a codebook found by k-means, then trained; indices are what is stored.

    Each weight is an index of ceil(log2 k) bits in memory, its entropy in a file. In training an entry gets the
    sum of its weights' gradients, by an optimizer of its own (`mz.wrap(..., offsets_tx=)`), as a
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
        are assigned anew. 0 keeps the first assignment, as Deep Compression does, which suits a trained network;
        one that is trained from its start needs refreshes, without which weights of an entry stay together.
      temperature: for DKM: the latents get the gradient of a soft assignment, softmax(-distance / temperature),
        in units of the codebook's root mean square, and entries and indices follow them at every step. The
        network computes with the nearest entries, which are stored, not with soft ones. `learned` is
        then without effect. Takes k floats a weight during the step; 0.05 is a good start.
      zero: keep an entry at exactly 0; None: where a mask comes before in a chain. Not for blocks.
      layers: axes that count layers, of leaves that hold many tensors, each of which has a codebook of its own then:
        an axis, several, or those of each path pattern, `{"blocks/**": 0}`, which `trace.layer_axes` finds.

    It reads `importance`, a tree like the params of weights for the squared error (such as
    the diagonal of the Fisher information), and `key`.

    Raises:
      TransformError: an argument out of range, or an unknown name.
      LeafError (at `init`): a selected leaf is not floating-point.

    Han et al. 2016, arXiv:1510.00149; Cho et al. 2022 (DKM), arXiv:2108.12659; Stock et al. 2020 (blocks),
    arXiv:1907.05686.

    >>> import modelzip_jax as mz
    >>> mz.decoded({"w": jnp.array([1.0, 1.5, -2.0, -3.0])}, cluster(2))
    {'w': Array([ 1.25,  1.25, -2.5 , -2.5 ], dtype=float32)}
    """
    for name, value, low, high in (
        ("k", k, 2, 256),
        ("block", block, 1, 1 << 20),
        ("every", every, 0, 1 << 30),
    ):
        as_whole(value, name, low, high)
    if granularity not in _GRANULARITIES or init not in INITS:
        raise TransformError(
            f"granularity is one of {_GRANULARITIES} and init one of {INITS}, not {granularity!r} and {init!r}"
        )
    if temperature is not None and not temperature > 0:
        raise TransformError(f"temperature must be above 0, not {temperature!r}")
    if zero and block > 1:
        raise TransformError("a codebook of blocks keeps no zero; zeros of a mask survive without one")
    if layers is not None and granularity != "tensor":
        raise TransformError(
            "one codebook for the model is one for all layers; leave layers out, or take 'tensor'"
        )
    learned = bool(learned) and temperature is None
    return Cluster(
        int(k),
        granularity,
        int(block),
        int(axis),
        init,
        learned,
        int(every),
        temperature,
        zero,
        as_layers(layers),
    )
