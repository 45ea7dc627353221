"""Low-rank factors as a transform: each matrix is the product of two thin ones, which are trained and stored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_finite, check_floating
from modelzip_jax.packed import is_packed, narrowed, widened
from modelzip_jax.quantization.factored import Factored, Factorization, MatrixFactors
from modelzip_jax.recipe import recordable
from modelzip_jax.stacking import LayerAxes, as_layers, check_layers, stacked_axes
from modelzip_jax.transform import Context, Encoded, Reparametrization
from modelzip_jax.tree import PyTree

__all__ = ["LowRank", "low_rank"]


def _rank_of(name: str, matrix: jax.Array, energy: float) -> int:
    """The least rank with which each layer keeps that share of its squared norm."""
    if isinstance(matrix, jax.core.Tracer) or not matrix.is_fully_addressable:
        raise TransformError(
            f"low_rank(energy={energy}) looks at the values of leaf {name!r} to choose its rank, which under jit "
            "nobody can; initialise outside of jit, or give a rank: low_rank(8)"
        )
    rows = np.asarray(matrix, np.float64)
    rows = rows if rows.shape[-2] <= rows.shape[-1] else np.swapaxes(rows, -1, -2)
    largest = np.abs(rows).max(initial=0.0)
    rows = rows / (largest if largest > 0 else 1.0)  # The squares of the largest floats are none.
    squares = np.linalg.eigvalsh(rows @ np.swapaxes(rows, -1, -2))[..., ::-1]
    kept = np.cumsum(np.maximum(squares, 0.0), axis=-1)
    # Of a singular matrix, the rounding of these sums is no weight to keep.
    slack = 1.0 - squares.shape[-1] * np.finfo(np.float64).eps
    short = kept < slack * energy * kept[..., -1:]
    return int(short.sum(axis=-1).max()) + 1


@recordable
@dataclasses.dataclass(frozen=True)
class LowRank(Reparametrization):
    """See `low_rank`."""

    rank: int | None
    energy: float | None
    layers: LayerAxes = dataclasses.field(default=(), kw_only=True)

    def init(self, weights: PyTree, context: Context) -> Encoded:
        check_floating(weights, "low_rank")
        check_layers(self.layers, weights)

        def look(name: str, w: Any) -> Factorization:
            shape = tuple(jnp.shape(w))
            leaf = Factorization(stacked_axes(self.layers, name, shape), shape, str(jnp.result_type(w)))
            return dataclasses.replace(leaf, factored=len(leaf.tensor) > 1 and math.prod(shape) > 0)

        def begin(name: str, leaf: Factorization, w: Any) -> Any:
            value = latent(w)
            if not leaf.factored:
                return value
            matrix = leaf.matrices(value)
            rank = _rank_of(name, matrix, self.energy) if self.energy is not None else self.rank
            return leaf.factorize(value, min(rank or 1, *matrix.shape[-2:]))

        leaves = trees.map_named(look, weights)
        named = trees.map_named(lambda name, _: name, weights)
        latents = _over(lambda leaf, name, w: begin(name, leaf, w), leaves, named, weights)
        check_finite(latents)
        return Encoded(latents, (), leaves)

    def relaxed(self, encoded: Encoded) -> PyTree:
        return _over(lambda leaf, z: leaf.product(z) if leaf.factored else z, encoded.state, encoded.latents)

    def decode(self, encoded: Encoded) -> PyTree:
        return _over(lambda leaf, w: w.astype(leaf.dtype), encoded.state, self.relaxed(encoded))

    def encode(self, weights: PyTree, encoded: Encoded) -> PyTree:
        def encode(leaf: Factorization, z: Any, w: jax.Array) -> Any:
            return leaf.factorize(w, z.right.shape[-2]) if leaf.factored else w

        return _over(encode, encoded.state, encoded.latents, weights)

    def follow(self, encoded: Encoded, context: Context) -> Context:
        importance = context.importance
        if importance is not None:
            importance = _over(
                lambda leaf, z, h: leaf.importance(z, h) if leaf.factored else h,
                encoded.state, encoded.latents, importance,
            )  # fmt: skip
        return super().follow(encoded, context).replace(importance=importance)

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def pack(leaf: Factorization, p: Any) -> Factored:
            left, right = p if leaf.factored else (narrowed(p, leaf.dtype), None)
            return Factored(left, right, leaf.layers, leaf.shape, leaf.dtype)

        return _over(pack, encoded.state, inner)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def inside(p: Factored) -> Any:
            return widened(p.left) if p.right is None else MatrixFactors(p.left, p.right)

        leaves, inner = (
            jax.tree.map(f, packed, is_leaf=is_packed) for f in (lambda p: p.factorization, inside)
        )
        return (), leaves, inner


def _over(function: Callable[..., Any], leaves: PyTree, *rest: PyTree) -> PyTree:
    """Maps over the leaves of the weights, in trees where each may have become a subtree."""
    return jax.tree.map(function, leaves, *rest, is_leaf=lambda x: isinstance(x, Factorization))


def low_rank(
    rank: int | None = None,
    *,
    energy: float | None = None,
    layers: int | tuple[int, ...] | Mapping[str, Any] | None = None,
) -> LowRank:
    """Matrices as products of two thin ones: `(m + n) rank` numbers are trained and stored in the place of `m n`.

    At first they are the best approximation of that rank, by singular values (Eckart & Young 1936), shared evenly:
    U √S and √S Vᵀ. A convolution kernel is the matrix `(all axes but the last, outputs)`, so that `left` is the kernel
    of a convolution with `rank` outputs and `right` the 1 × 1 convolution after it. Leaves of fewer than two axes, and
    empty ones, have no factors and are kept as they are. What follows in a chain encodes the factors:

        mz.chain(mz.low_rank(8), mz.quantize(4))

    and in a sum the rest: `mz.residual(mz.low_rank(8), mz.quantize(4))`.

    Args:
      rank: of every matrix, at least 1; at most the smaller of a matrix's two sides, where nothing is lost (and
        nothing gained: two factors of full rank are larger than the matrix).
      energy: in the rank's place, the share of each matrix's squared Frobenius norm that is kept, in (0, 1]: each has
        the least rank that does. It looks at values, which is not possible under `jit`.
      layers: axes that count layers, of leaves that hold many tensors (`nn.scan`, vmapped experts), each of which has
        factors of its own, of one rank: an axis, several, or those of each path pattern, `{"blocks/**": 0}`. They are
        the first axes of both factors.

    Raises:
      TransformError: neither a rank nor an energy, both, or one out of its range; (at `init`) an energy under `jit`.
      LeafError (at `init`): a selected leaf is not floating-point, or has no such axis of layers.

    >>> import modelzip_jax as mz
    >>> w = jnp.outer(jnp.arange(1.0, 5.0), jnp.array([1.0, -2.0, 1.0]))
    >>> encoded = mz.low_rank(1).init({"w": w}, mz.Context())
    >>> encoded.latents["w"].left.shape, encoded.latents["w"].right.shape
    ((4, 1), (1, 3))
    >>> bool(jnp.allclose(mz.low_rank(1).decode(encoded)["w"], w, atol=1e-5))
    True
    """
    if (rank is None) == (energy is None):
        raise TransformError(
            "low_rank() takes a rank, low_rank(8), or the share of the squared norm to keep, low_rank(energy=0.9): "
            f"one of the two, not rank={rank!r} and energy={energy!r}"
        )
    rank = None if rank is None else as_whole(rank, "rank", 1)
    if energy is not None:
        if isinstance(energy, bool) or not isinstance(energy, int | float) or not 0.0 < energy <= 1.0:
            raise TransformError(f"energy is a share in (0, 1], not {energy!r}")
        energy = float(energy)
    return LowRank(rank, energy, layers=as_layers(layers))
