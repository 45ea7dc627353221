"""Low-rank factors as a transform: each matrix is the product of two thin ones, which are trained and stored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.latents import latent
from modelzip_jax.leaf_checks import check_finite, check_floating
from modelzip_jax.meshes import under_any_mesh
from modelzip_jax.packed import PackedArray, is_packed, narrowed, packed_kind, static, widened
from modelzip_jax.recipe import recordable
from modelzip_jax.stacking import LayerAxes, as_layers, check_layers, stacked, stacked_axes, unstacked
from modelzip_jax.transform import Context, Encoded, Reparametrization
from modelzip_jax.tree import PyTree

__all__ = ["Factored", "MatrixFactors", "LowRank", "low_rank"]


class MatrixFactors(NamedTuple):
    """The latents of a matrix or kernel: `left` times `right`.

    left: `(*layers, *all axes but the last, rank)`. right: `(*layers, rank, outputs)`.
    """

    left: Any
    right: Any


@trees.static_node
@dataclasses.dataclass(frozen=True)
class Factorization:
    """Of one leaf: its axes that count layers, its shape, its dtype, and whether it has factors (all static)."""

    layers: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    factored: bool = True

    @property
    def count(self) -> tuple[int, ...]:
        """The lengths of the axes that count layers."""
        return tuple(self.shape[axis] for axis in self.layers)

    @property
    def tensor(self) -> tuple[int, ...]:
        """The shape of one layer."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in self.layers)

    def matrices(self, w: jax.Array) -> jax.Array:
        """The leaf as `(rows, outputs)`, or `(layers, rows, outputs)`."""
        rows = math.prod(self.tensor[:-1])
        if not self.layers:
            return w.reshape(rows, self.tensor[-1])
        return stacked(w, self.layers).reshape(math.prod(self.count), rows, self.tensor[-1])

    def factorize(self, w: jax.Array, rank: int) -> MatrixFactors:
        """The factors of the nearest leaf of a rank, of equal norms."""

        def factorize(w: jax.Array) -> MatrixFactors:
            left, right = _balanced(self.matrices(w), rank)
            shapes = (*self.count, *self.tensor[:-1], rank), (*self.count, rank, self.tensor[-1])
            return MatrixFactors(left.reshape(shapes[0]), right.reshape(shapes[1]))

        return under_any_mesh(factorize, (w,), PartitionSpec())

    def product(self, factors: MatrixFactors) -> jax.Array:
        """The leaf again, in the dtype of its factors."""

        def product(factors: MatrixFactors) -> jax.Array:
            left, right = factors
            stack = (math.prod(self.count),) if self.layers else ()
            rank, outputs = right.shape[-2:]
            left = left.reshape(*stack, math.prod(self.tensor[:-1]), rank)
            found = jnp.matmul(
                left, right.reshape(*stack, rank, outputs), precision=jax.lax.Precision.HIGHEST
            )
            return unstacked(found, self.layers, self.shape) if stack else found.reshape(self.shape)

        return under_any_mesh(product, (factors,), PartitionSpec())

    def importance(self, factors: MatrixFactors, weights: jax.Array) -> MatrixFactors:
        """The importance of each element of the factors: of an error of each alone, exactly.

        An error d of left[i, k] is d right[k, j] of the weights in row i: d² Σ_j h_ij right[k, j]².
        """
        h = self.matrices(jnp.broadcast_to(weights, self.shape).astype(factors.left.dtype))
        rank, outputs = factors.right.shape[-2:]
        left = jnp.square(factors.left).reshape(*h.shape[:-1], rank)
        right = jnp.square(factors.right).reshape(*h.shape[:-2], rank, outputs)
        highest = jax.lax.Precision.HIGHEST
        return MatrixFactors(
            jnp.matmul(h, jnp.swapaxes(right, -1, -2), precision=highest).reshape(factors.left.shape),
            jnp.matmul(jnp.swapaxes(left, -1, -2), h, precision=highest).reshape(factors.right.shape),
        )


def _balanced(matrix: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """U √S and √S Vᵀ of the largest `rank` singular values."""
    u, s, v = jnp.linalg.svd(matrix, full_matrices=False)
    u, s, v = u[..., :rank], s[..., :rank], v[..., :rank, :]
    root = jnp.sqrt(jnp.where(s > 0, s, jnp.ones_like(s)))
    # Where there is no weight, the left factor is not zero: of two zeros, neither would ever get a gradient.
    return u * root[..., None, :], jnp.where(s > 0, root, jnp.zeros_like(s))[..., :, None] * v


def _rank_of(name: str, matrix: jax.Array, energy: float) -> int:
    """The least rank with which each layer keeps that share of its squared norm."""
    if isinstance(matrix, jax.core.Tracer) or not matrix.is_fully_addressable:
        raise TransformError(
            f"low_rank(energy={energy}) looks at the values of leaf {name!r} to choose its rank, which under jit nobody "
            "can; initialise outside of jit, or give a rank: low_rank(8)"
        )
    rows = np.asarray(matrix, np.float64)
    rows = rows if rows.shape[-2] <= rows.shape[-1] else np.swapaxes(rows, -1, -2)
    largest = np.abs(rows).max(initial=0.0)
    rows = rows / (largest if largest > 0 else 1.0)  # The squares of the largest floats are none.
    squares = np.linalg.eigvalsh(rows @ np.swapaxes(rows, -1, -2))[..., ::-1]
    kept = np.cumsum(np.maximum(squares, 0.0), axis=-1)
    short = kept < energy * kept[..., -1:]
    return int(short.sum(axis=-1).max()) + 1


@packed_kind("factored")
class Factored(PackedArray):
    """`left` times `right`, or what `left` alone holds where `right` is None: of a leaf that has no factors.

    left: `(*layers, *all axes but the last, rank)`. right: `(*layers, rank, outputs)`. layers: axes that count layers.
    """

    left: PackedArray
    right: PackedArray | None
    layers: tuple[int, ...] = static()
    shape: tuple[int, ...] = static()
    dtype: str = static()

    @property
    def factorization(self) -> Factorization:
        """What the factors are factors of."""
        return Factorization(tuple(self.layers), tuple(self.shape), self.dtype, self.right is not None)

    def check(self) -> None:
        super().check()
        if self.right is None:
            fits = tuple(self.left.shape) == tuple(self.shape)
        else:
            axes, leaf = self.layers, self.factorization
            fits = all(isinstance(axis, int) and 0 <= axis < len(self.shape) for axis in axes)
            fits = fits and len(set(axes)) == len(axes) and len(leaf.tensor) > 1
            fits = fits and min(len(self.left.shape), len(self.right.shape)) > 1
            left, right = tuple(self.left.shape), tuple(self.right.shape)
            fits = fits and (*left[:-1], *right[-1:]) == (*leaf.count, *leaf.tensor)
            fits = fits and right[:-1] == (*leaf.count, *left[-1:])
        if not fits:
            raise ValueError(f"factors {self.left.shape} and {self.right and self.right.shape} of {self.shape}")

    def unpack(self) -> jax.Array:
        if self.right is None:
            return self.left.unpack().astype(self.dtype)
        return self.factorization.product(MatrixFactors(self.left.unpack(), self.right.unpack())).astype(self.dtype)

    def unpack_host(self) -> np.ndarray | None:
        alone = self.left.unpack_host() if self.right is None else None
        return None if alone is None else alone.astype(jnp.dtype(self.dtype))


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
        return _over(
            lambda leaf, z: leaf.product(z) if leaf.factored else z, encoded.state, encoded.latents
        )

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
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise TransformError(f"a rank is an integer of at least 1, not {rank!r}")
    if energy is not None:
        if isinstance(energy, bool) or not isinstance(energy, int | float) or not 0.0 < energy <= 1.0:
            raise TransformError(f"energy is a share in (0, 1], not {energy!r}")
        energy = float(energy)
    return LowRank(rank, energy, layers=as_layers(layers))
