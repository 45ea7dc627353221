"""Pairs of factors of a matrix or kernel: how they are found, multiplied, and stored."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modelzip_jax import tree as trees
from modelzip_jax.meshes import under_any_mesh
from modelzip_jax.packed import PackedArray, packed_kind, static
from modelzip_jax.stacking import stacked, unstacked

__all__ = ["Factored", "Factorization", "MatrixFactors"]


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


@packed_kind("factored")
class Factored(PackedArray):
    """`left` times `right`, or what `left` alone holds where `right` is None: of a leaf that has no factors.

    left: `(*layers, *all axes but the last, rank)`. right: `(*layers, rank, outputs)`. layers: axes that count layers.
    """

    since = 4

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
            raise ValueError(
                f"factors {self.left.shape} and {self.right and self.right.shape} of {self.shape}"
            )

    def unpack(self) -> jax.Array:
        if self.right is None:
            return self.left.unpack().astype(self.dtype)
        return self.factorization.product(MatrixFactors(self.left.unpack(), self.right.unpack())).astype(
            self.dtype
        )

    def unpack_host(self) -> np.ndarray | None:
        alone = self.left.unpack_host() if self.right is None else None
        return None if alone is None else alone.astype(jnp.dtype(self.dtype))
