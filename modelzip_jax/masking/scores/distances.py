"""Scores of whole filters, from what the other filters of their tensor are like."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError
from modelzip_jax.masking.scores.score import NOTHING, Score
from modelzip_jax.meshes import spec_of, under_any_mesh
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Context
from modelzip_jax.tree import PyTree

__all__ = ["GeometricMedian", "geometric_median"]


@recordable
@dataclasses.dataclass(frozen=True)
class GeometricMedian(Score):
    """See `geometric_median`."""

    axis: int = -1

    def __call__(self, weights: PyTree, context: Context = NOTHING, memory: PyTree = ()) -> PyTree:
        def score(name: str, w: jax.Array) -> jax.Array:
            if not -w.ndim <= self.axis < w.ndim:
                raise LeafError(
                    f"leaf {name!r} of shape {w.shape} has no axis {self.axis} of filters; select kernels with "
                    "mz.only"
                )
            axis = self.axis % w.ndim

            def everywhere(w: jax.Array) -> jax.Array:
                filters = jnp.moveaxis(w, axis, 0)
                sums = _distance_sums(filters.reshape(len(filters), math.prod(filters.shape[1:])))
                return jnp.broadcast_to(
                    jnp.expand_dims(sums, [a for a in range(w.ndim) if a != axis]), w.shape
                )

            return under_any_mesh(everywhere, (w,), spec_of(w))

        return trees.map_named(score, weights)


def geometric_median(axis: int = -1) -> GeometricMedian:
    """Σ_j ‖F_i − F_j‖₂, the same for all weights of filter i: what others can replace goes first.

    The filter with the smallest sum is nearest to the geometric median of its tensor's filters (FPGM, He et al.
    2019, arXiv:1811.00250, §3.3), however large its weights are. Meant for `structure=mz.structures.channel(axis)`,
    and for one leaf at a time (`allocation="uniform"`): the sums of different tensors do not compare.

    Distances come from one product of the tensor with itself, in float32 after centring: filters nearer to each
    other than some 3e-4 of their distance from the mean filter count as equal.

    Args:
      axis: of the filters; -1, the outputs of Flax kernels.

    Raises:
      LeafError: a leaf without that axis.

    >>> geometric_median()(jnp.array([[0.0, 1.0, 5.0], [0.0, 0.0, 0.0]]))
    Array([[6., 5., 9.],
           [6., 5., 9.]], dtype=float32)
    """
    return GeometricMedian(axis)


def _distance_sums(filters: jax.Array) -> jax.Array:
    """Σ_j ‖F_i − F_j‖ for each of the rows, (n, d) to float32 (n,)."""
    rows = filters.astype(jnp.float32)
    rows = rows - jnp.mean(rows, axis=0)  # Distances stay; |a|² + |b|² − 2ab loses fewer digits.
    products = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.diagonal(products)
    squared = jnp.maximum(squares[:, None] + squares - 2.0 * products, 0.0)
    # What remains on the diagonal is rounding, whose root would count.
    return jnp.sum(jnp.sqrt(jnp.where(jnp.eye(len(rows), dtype=bool), 0.0, squared)), axis=1)
