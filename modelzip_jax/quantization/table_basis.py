"""Tables in the basis of their principal components, in the metric of what an error costs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, RecipeError
from modelzip_jax.factoring import damped
from modelzip_jax.given_values import as_positive
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_finite, check_floating
from modelzip_jax.meshes import under_any_mesh
from modelzip_jax.packed import is_packed, narrowed, widened
from modelzip_jax.quantization.factored import Factored, Factorization, MatrixFactors
from modelzip_jax.quantization.scaled import ScaledCodes, computed_in
from modelzip_jax.quantization.scaled_leaf import ScaledLeaf
from modelzip_jax.recipe import recordable
from modelzip_jax.stacking import LayerAxes, as_layers, check_layers, stacked_axes
from modelzip_jax.transform import Context, Encoded, Reparametrization
from modelzip_jax.tree import PyTree

__all__ = ["KarhunenLoeve", "coding_gain", "karhunen_loeve"]

_LARGEST = 63
"""The largest code of a row of the basis. What it is rounded by costs nothing but a little of the gain: weights are put
into the basis as it is stored."""


class TableBasis(NamedTuple):
    """Of one leaf. leaf: how it is a matrix (static). values: `(*layers, n, n)`, a row a component. rows: its steps.

    values and rows are None for a leaf that is kept as it is.
    """

    leaf: Factorization
    values: jax.Array | None
    rows: jax.Array | None


@recordable
@dataclasses.dataclass(frozen=True)
class KarhunenLoeve(Reparametrization):
    """See `karhunen_loeve`."""

    damping: float
    layers: LayerAxes = ()

    def init(self, weights: PyTree, context: Context) -> Encoded:
        check_floating(weights, "karhunen_loeve")
        check_layers(self.layers, weights)
        begun = [self._begun(*leaf) for leaf in context.by_leaf(weights)]
        bases = jax.tree.structure(weights).unflatten(begun)
        latents = _over(lambda basis, w: _components(basis, latent(w)), bases, weights)
        check_finite(latents)
        return Encoded(latents, (), bases)

    def _begun(self, name: str, w: Any, context: Context) -> TableBasis:
        shape = tuple(jnp.shape(w))
        leaf = Factorization(stacked_axes(self.layers, name, shape), shape, str(jnp.result_type(w)))
        tall = len(leaf.tensor) > 1 and math.prod(leaf.tensor[:-1]) > leaf.tensor[-1] and math.prod(shape) > 0
        if not tall:
            return TableBasis(dataclasses.replace(leaf, factored=False), None, None)
        metric = _metric(name, leaf.tensor[-1], context)

        def found(w: jax.Array, metric: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            _, right = _in_basis(leaf.matrices(w), metric, self.damping)
            largest = jnp.max(jnp.abs(right), axis=-1, keepdims=True)
            step = jnp.where(largest > 0, largest / _LARGEST, 1.0).astype(jnp.bfloat16).astype(right.dtype)
            values = jnp.round(right / step) * step
            return tuple(x.reshape(*leaf.count, *x.shape[-2:]) for x in (values, step))  # type: ignore[return-value]

        return TableBasis(leaf, *under_any_mesh(found, (latent(w), metric), PartitionSpec()))

    def relaxed(self, encoded: Encoded) -> PyTree:
        def product(basis: TableBasis, z: jax.Array) -> jax.Array:
            return z if basis.values is None else basis.leaf.product(MatrixFactors(z, basis.values))

        return _over(product, encoded.state, encoded.latents)

    def decode(self, encoded: Encoded) -> PyTree:
        return _over(lambda basis, w: w.astype(basis.leaf.dtype), encoded.state, self.relaxed(encoded))

    def encode(self, weights: PyTree, encoded: Encoded) -> PyTree:
        return _over(_components, encoded.state, weights)

    def follow(self, encoded: Encoded, context: Context) -> Context:
        told = super().follow(encoded, context)
        if context.importance is None:
            return told
        unknown = jax.tree.map(lambda _: trees.UNSELECTED, encoded.latents)
        curvature = unknown if context.curvature is None else context.curvature
        importance = _over(_importance, encoded.state, encoded.latents, context.importance, curvature)
        return told.replace(importance=importance)

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def pack(basis: TableBasis, p: Any) -> Factored:
            leaf = basis.leaf
            right = None
            if basis.values is not None:
                zero = jnp.zeros((), basis.values.dtype)
                right = ScaledLeaf(basis.rows, None, zero).packed(basis.values, str(basis.values.dtype))
            p = p if right is not None else narrowed(p, leaf.dtype)
            return Factored(p, right, leaf.layers, leaf.shape, leaf.dtype)

        return _over(pack, encoded.state, inner)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def basis(p: Factored) -> TableBasis:
            right = p.right
            if right is None:
                return TableBasis(p.factorization, None, None)
            if not isinstance(right, ScaledCodes):
                raise RecipeError(
                    f"a basis is stored as scaled codes, and this one as {type(right).__name__}"
                )
            dtype = computed_in(right.dtype)
            return TableBasis(
                p.factorization, right.unpack().astype(dtype), jnp.asarray(right.rows).astype(dtype)
            )

        def inside(p: Factored) -> Any:
            return widened(p.left) if p.right is None else p.left

        bases, inner = (jax.tree.map(f, packed, is_leaf=is_packed) for f in (basis, inside))
        return (), bases, inner


def _over(function: Callable[..., Any], bases: PyTree, *rest: PyTree) -> PyTree:
    return jax.tree.map(function, bases, *rest, is_leaf=lambda x: isinstance(x, TableBasis))


def _components(basis: TableBasis, w: jax.Array) -> jax.Array:
    """The leaf in the basis: `(*layers, *all axes but the last, n)`."""
    if basis.values is None:
        return w
    leaf = basis.leaf

    def solved(w: jax.Array, values: jax.Array) -> jax.Array:
        rows = leaf.matrices(w)
        across = values.reshape(*rows.shape[:-2], *values.shape[-2:])
        back = jnp.linalg.solve(jnp.swapaxes(across, -1, -2), jnp.swapaxes(rows, -1, -2))
        return jnp.swapaxes(back, -1, -2).reshape(*leaf.count, *leaf.tensor)

    return under_any_mesh(solved, (w, basis.values), PartitionSpec())


def _importance(basis: TableBasis, z: jax.Array, h: jax.Array, curvature: Any) -> jax.Array:
    """Of an error of each component: in the metric that the basis is of, of all in a row the same."""
    if basis.values is None:
        return h
    if getattr(curvature, "columns", None) is None:
        return basis.leaf.importance(MatrixFactors(z, basis.values), h).left
    rows = basis.leaf.matrices(jnp.broadcast_to(h, basis.leaf.shape).astype(z.dtype))
    return jnp.broadcast_to(jnp.mean(rows, axis=-1, keepdims=True), rows.shape).reshape(z.shape)


def _metric(name: str, columns: int, context: Context) -> jax.Array | None:
    """What an error costs, `(columns, columns)`; None where nothing says so."""
    found = getattr(context.curvature, "columns", None)
    if found is None:
        return None
    if jnp.shape(found) != (columns, columns):
        raise LeafError(
            f"the curvature of leaf {name!r} is {jnp.shape(found)}, and it has {columns} columns: curvature= takes "
            "what trace.fisher_information(..., gradients='batches', columns=...) gives for these params"
        )
    return jnp.asarray(found)


@functools.partial(jax.jit, static_argnums=(2,))
def _in_basis(matrix: jax.Array, metric: jax.Array | None, damping: float) -> tuple[jax.Array, jax.Array]:
    """left `(..., rows, n)` times right `(..., n, n)`: left's columns uncorrelated, errors of all worth the same."""
    root, back = _roots(metric, matrix, damping)
    highest = jax.lax.Precision.HIGHEST
    largest = jnp.max(jnp.abs(matrix), initial=0.0)
    scaled = matrix / jnp.where(largest > 0, largest, 1.0)
    moments = jnp.einsum("...ri,...rj->...ij", scaled, scaled, precision=highest)
    weighed = jnp.einsum("ij,...jk,kl->...il", root, moments, root, precision=highest)
    _, basis = jnp.linalg.eigh(weighed)
    basis = basis[..., ::-1]
    left = jnp.matmul(matrix, jnp.matmul(root, basis, precision=highest), precision=highest)
    return left, jnp.matmul(jnp.swapaxes(basis, -1, -2), back, precision=highest)


def _roots(metric: jax.Array | None, matrix: jax.Array, damping: float) -> tuple[jax.Array, jax.Array]:
    """The root of a metric of mean one and its inverse."""
    unit = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    if metric is None:
        return unit, unit
    mean = jnp.trace(metric) / metric.shape[0]
    # Of a leaf that nothing depends on all errors cost the same.
    known = jnp.where(mean > 0, metric / jnp.where(mean > 0, mean, 1.0), unit.astype(metric.dtype))
    values, vectors = jnp.linalg.eigh(damped(known.astype(matrix.dtype), damping) / (1.0 + damping))
    values = jnp.sqrt(jnp.maximum(values, jnp.finfo(values.dtype).eps))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


def coding_gain(matrix: Any, metric: Any = None, damping: float = 0.3) -> float:
    """Bits a weight that the basis saves at one error and high rates, before the basis itself is paid for.

    ½ log₂ of the geometric mean of the columns' mean squares, weighed by what their errors cost, over that of
    what they are in the basis: Jayant & Noll 1984, section 12.2.

    Args:
      matrix: `(rows, n)`. metric: `(n, n)` or None. damping: as of `karhunen_loeve`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(4096, 1)).astype(np.float32)
    >>> alike = np.hstack([x, x]) + np.float32(0.1) * np.random.default_rng(1).normal(size=(4096, 2))
    >>> round(coding_gain(alike.astype(np.float32)), 1)
    1.4
    """
    w = jnp.asarray(matrix, jnp.float32)
    left, _ = _in_basis(w, None if metric is None else jnp.asarray(metric, jnp.float32), damping)
    tiny = jnp.finfo(jnp.float32).tiny

    def bits(x: jax.Array) -> jax.Array:
        return 0.5 * jnp.mean(jnp.log2(jnp.maximum(jnp.mean(jnp.square(x), axis=0), tiny)))

    return float(bits(w) - bits(left))


def karhunen_loeve(
    damping: float = 0.3,
    *,
    layers: int | tuple[int, ...] | Mapping[str, Any] | None = None,
) -> KarhunenLoeve:
    """Matrices in the basis of their principal components: W = L B, the columns of L being uncorrelated.

    For tables, whose rows are many: a table of embeddings, of which a row has a few hundred numbers that say partly
    the same. For each weight of L an entropy coder takes fewer bits than for one of W, see `coding_gain`. L is trained
    and encoded by what follows in a chain; B stays, in codes of 7 bits with a step a row:

        mz.chain(mz.karhunen_loeve(), mz.entropy_constrained(0.02))

    With `curvature=` of `mz.compress`, what `trace.fisher_information(..., columns=patterns)` gives, the basis
    diagonalises both the table's second moments and G = E[Mᵀ M] of its gradients M, so that an error costs the same in
    every column of L; without, B is orthogonal, and errors of W count alike. A leaf is the matrix `(all axes but the
    last, last)`; one of no more rows than columns, whose basis would be as large as itself, is kept as it is.

    Args:
      damping: added to G's diagonal, as a share of its mean; positive.
      layers: axes that count layers, as of `mz.quantize`: each has a basis of its own.

    Raises:
      LeafError (at `init`): a selected leaf is not floating-point, or the curvature is another leaf's.

    Karhunen 1947, Loève 1948; transform coding: Goyal 2001, doi:10.1109/79.952802.

    >>> import modelzip_jax as mz
    >>> w = jnp.outer(jnp.arange(1.0, 5.0), jnp.array([1.0, -2.0]))
    >>> encoded = karhunen_loeve().init({"w": w}, mz.Context())
    >>> bool(jnp.all(jnp.abs(encoded.latents["w"][:, 1]) < 0.1))  # But for what the basis is rounded by.
    True
    >>> bool(jnp.allclose(karhunen_loeve().decode(encoded)["w"], w, atol=1e-5))
    True
    """
    return KarhunenLoeve(as_positive(damping, "damping of karhunen_loeve()"), layers=as_layers(layers))
