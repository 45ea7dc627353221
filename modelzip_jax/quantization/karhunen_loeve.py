"""Matrices in the basis of their principal components, in the metric of what an error costs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError
from modelzip_jax.factoring import damped
from modelzip_jax.given_values import as_positive
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_finite, check_floating
from modelzip_jax.meshes import under_any_mesh
from modelzip_jax.quantization.factored import Factorization, MatrixFactors
from modelzip_jax.quantization.factorization import Factorizing, over_factorizations
from modelzip_jax.recipe import recordable
from modelzip_jax.stacking import as_layers, check_layers
from modelzip_jax.transform import Context, Encoded
from modelzip_jax.tree import PyTree

__all__ = ["KarhunenLoeve", "coding_gain", "karhunen_loeve"]


@recordable
@dataclasses.dataclass(frozen=True)
class KarhunenLoeve(Factorizing):
    """See `karhunen_loeve`."""

    damping: float

    def init(self, weights: PyTree, context: Context) -> Encoded:
        check_floating(weights, "karhunen_loeve")
        check_layers(self.layers, weights)
        leaves = trees.map_named(self._looked_at, weights)
        begun = [self._begun(*leaf) for leaf in context.by_leaf(weights)]
        latents = jax.tree.structure(weights).unflatten(begun)
        check_finite(latents)
        return Encoded(latents, (), leaves)

    def _looked_at(self, name: str, w: Any) -> Factorization:
        leaf = self.factorization_of(name, w)
        tall = leaf.factored and math.prod(leaf.tensor[:-1]) > leaf.tensor[-1]
        return dataclasses.replace(leaf, factored=tall)

    def _begun(self, name: str, w: Any, context: Context) -> Any:
        leaf, value = self._looked_at(name, w), latent(w)
        if not leaf.factored:
            return value
        metric = _metric(name, leaf.tensor[-1], context)
        def factors(w: jax.Array, metric: jax.Array | None) -> MatrixFactors:
            left, right = _in_basis(leaf.matrices(w), metric, self.damping)
            return MatrixFactors(
                left.reshape(*leaf.count, *leaf.tensor), right.reshape(*leaf.count, *right.shape[-2:])
            )

        return under_any_mesh(factors, (value, metric), PartitionSpec())

    def encode(self, weights: PyTree, encoded: Encoded) -> PyTree:
        def encode(leaf: Factorization, z: Any, w: jax.Array) -> Any:
            if not leaf.factored:
                return w

            def solved(w: jax.Array, right: jax.Array) -> jax.Array:
                rows, basis = leaf.matrices(w), right.reshape(*_stack(leaf), *right.shape[-2:])
                back = jnp.linalg.solve(jnp.swapaxes(basis, -1, -2), jnp.swapaxes(rows, -1, -2))
                return jnp.swapaxes(back, -1, -2).reshape(z.left.shape)

            return MatrixFactors(under_any_mesh(solved, (w, z.right), PartitionSpec()), z.right)

        return over_factorizations(encode, encoded.state, encoded.latents, weights)

    def follow(self, encoded: Encoded, context: Context) -> Context:
        told = super().follow(encoded, context)
        if context.curvature is None or told.importance is None:
            return told

        def alike(leaf: Factorization, found: Any, h: jax.Array, curvature: Any) -> Any:
            if not leaf.factored or getattr(curvature, "columns", None) is None:
                return found
            mean = jnp.mean(leaf.matrices(h), axis=-1, keepdims=True)
            rows = jnp.broadcast_to(mean, leaf.matrices(h).shape).reshape(found.left.shape)
            return found._replace(left=rows)

        # In this metric an error costs the same in whatever column of the left factor.
        importance = over_factorizations(
            alike, encoded.state, told.importance, context.importance, context.curvature
        )
        return told.replace(importance=importance)


def _stack(leaf: Factorization) -> tuple[int, ...]:
    return (math.prod(leaf.count),) if leaf.layers else ()


def _metric(name: str, columns: int, context: Context) -> jax.Array | None:
    """What an error costs, `(columns, columns)`; None where nothing says so."""
    found = getattr(context.curvature, "columns", None)
    if found is None:
        return None
    if jnp.shape(found) != (columns, columns):
        raise LeafError(
            f"the curvature of leaf {name!r} is {jnp.shape(found)}, and it has {columns} columns: curvature= takes what "
            "trace.fisher_information(..., gradients='batches', columns=...) gives for these params"
        )
    return jnp.asarray(found)


@functools.partial(jax.jit, static_argnums=(2,))
def _in_basis(
    matrix: jax.Array, metric: jax.Array | None, damping: float
) -> tuple[jax.Array, jax.Array]:
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


def _roots(
    metric: jax.Array | None, matrix: jax.Array, damping: float
) -> tuple[jax.Array, jax.Array]:
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
    left, right = _in_basis(w, None if metric is None else jnp.asarray(metric, jnp.float32), damping)
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
    the same. An entropy coder takes ½ log₂ of the ratio of geometric means less for each weight of L than of W, and
    none for components that are nearly zero. Both factors are trained and stored; what follows in a chain encodes them:

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
    >>> bool(jnp.all(jnp.abs(encoded.latents["w"].left[:, 1]) < 1e-5))
    True
    >>> bool(jnp.allclose(karhunen_loeve().decode(encoded)["w"], w, atol=1e-5))
    True
    """
    return KarhunenLoeve(as_positive(damping, "damping of karhunen_loeve()"), layers=as_layers(layers))
