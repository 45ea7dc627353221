"""Losses on features of a layer: what the student's layer says is drawn to what the teacher's says.

Every loss takes `student` first, is a float32 scalar, computed in float32 whatever the dtype, and sends no gradient
into `teacher`. Features are `(batch, *positions, channels)`, channels last.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.array_checks import (
    as_weight,
    check_same_batch,
    check_same_shape,
    pairs_of,
)
from modelzip_jax.distillation.pooling import pool_alike
from modelzip_jax.distillation.safe_norms import unit_vectors
from modelzip_jax.distillation.whole_batches import over_whole_batch
from modelzip_jax.errors import DistillationError

__all__ = ["attention_transfer", "flow", "hint", "similarity"]


def hint(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """The mean squared difference of features: FitNets' hints.

    A mean over all entries, so that the size of the layer does not matter; the paper's loss of an example is
    half the sum. Where widths differ, `student` is what a projector makes of the student's features (the paper's
    regressor), and is trained with it.

    Source: Romero et al. 2015, "FitNets: hints for thin deep nets", https://arxiv.org/abs/1412.6550.

    Args:
      student, teacher: of one shape `(batch, ...)`, any floating dtype.

    Raises:
      DistillationError: shapes or dtypes do not fit.

    >>> float(hint(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]])))
    2.0
    """
    check_same_shape(student, teacher, "hint")
    return jnp.mean(jnp.square(student.astype(jnp.float32) - _fixed(teacher)))


def attention_transfer(student: jax.Array, teacher: jax.Array, *, power: float = 2.0) -> jax.Array:
    """The mean squared difference of attention maps of unit length.

    The map of an example is Σ_c |x_c|^p over channels, at every position, divided by its Euclidean norm over positions:
    where a layer is active, whatever its width. A mean over batch and positions, as in the authors' code (the paper has
    β / 2 times a norm over positions). Where positions differ, the larger features are pooled to the smaller number. A
    map of zeros stays zeros.

    Source: Zagoruyko and Komodakis 2017, "Paying more attention to attention", https://arxiv.org/abs/1612.03928.

    Args:
      student, teacher: `(batch, *positions, channels)` with as many axes; channels may differ.
      power: p, above 0.

    Raises:
      DistillationError: shapes, dtypes or `power` do not fit.

    >>> teacher = jnp.array([[[3.0], [4.0]]])
    >>> float(attention_transfer(jnp.array([[[6.0, 0.0], [0.0, 8.0]]]), teacher))
    0.0
    """
    check_same_batch(student, teacher, "attention_transfer")
    as_weight(power, "power", "attention_transfer", positive=True)
    if jnp.ndim(student) != jnp.ndim(teacher) or jnp.ndim(student) < 3:
        raise DistillationError(
            "attention_transfer: features must be (batch, *positions, channels), with as many axes of positions and at "
            f"least one: student {jnp.shape(student)}, teacher {jnp.shape(teacher)}"
        )
    pair = pool_alike(student.astype(jnp.float32), _fixed(teacher))

    def attention(x: jax.Array) -> jax.Array:
        size = jnp.abs(x)
        top = jax.lax.stop_gradient(jnp.max(size, tuple(range(1, x.ndim)), keepdims=True))
        size = size / jnp.where(top == 0, 1.0, top)  # Powers of large features would overflow.
        # A power below 1 has no finite derivative at 0.
        raised = jnp.where(size == 0, 0.0, jnp.where(size == 0, 1.0, size) ** power)
        return unit_vectors(jnp.mean(raised, -1).reshape(len(x), -1))

    return jnp.mean(jnp.square(attention(pair[0]) - attention(pair[1])))


def flow(student: tuple[jax.Array, jax.Array], teacher: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The mean squared difference of FSP matrices: how a teacher goes from one layer to a later one.

    The matrix of an example is G_ij = mean over positions of first_i x second_j, channels of two layers. A mean over
    batch and matrix entries (the paper sums over entries). Where positions of the two layers differ, the larger are
    pooled. Both networks need the same channels: bring the student's to the teacher's with projectors.

    Source: Yim et al. 2017, "A gift from knowledge distillation", CVPR.

    Args:
      student, teacher: `(first, second)`, each `(batch, *positions, channels)`.

    Raises:
      DistillationError: shapes or dtypes do not fit.

    >>> ones = jnp.ones((2, 4, 4, 3))
    >>> float(flow((ones, 2.0 * ones), (ones, ones)))
    1.0
    """
    pairs = pairs_of(student, teacher, "flow")
    if len(pairs) != 2:
        raise DistillationError(
            f"flow: features of two layers are needed, (first, second), not of {len(pairs)}"
        )
    for own, others in pairs:
        check_same_batch(own, others, "flow")
        if jnp.shape(own)[-1] != jnp.shape(others)[-1]:
            raise DistillationError(
                f"flow: student {jnp.shape(own)} and teacher {jnp.shape(others)} have different channels; bring the "
                "student's to the teacher's with a projector, distillation.project"
            )
    for who, (first, second) in (("student", student), ("teacher", teacher)):
        if jnp.ndim(first) != jnp.ndim(second) or jnp.shape(first)[0] != jnp.shape(second)[0]:
            raise DistillationError(
                f"flow: the {who}'s two layers need one batch and as many axes: {jnp.shape(first)}, {jnp.shape(second)}"
            )

    def matrix(first: jax.Array, second: jax.Array) -> jax.Array:
        a, b = (x.reshape(len(x), -1, x.shape[-1]) for x in pool_alike(first, second))
        return jnp.einsum("bpi,bpj->bij", a, b, precision=jax.lax.Precision.HIGHEST) / a.shape[1]

    own = matrix(*(x.astype(jnp.float32) for x in student))
    return jnp.mean(jnp.square(own - matrix(*(_fixed(x) for x in teacher))))


@over_whole_batch
def similarity(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Similarity-preserving distillation (SP): ‖G_t - G_s‖² / batch², with the Frobenius norm.

    G = the Gram matrix of the flattened features of a batch, each row divided by its Euclidean norm: which examples
    a layer holds for alike. Widths and positions may differ; rotating or scaling all features changes nothing.
    A row of zeros stays zeros. It depends on the batch: compare losses at one batch size. A batch of one teaches
    nothing.

    Source: Tung and Mori 2019, "Similarity-preserving knowledge distillation", https://arxiv.org/abs/1907.09682.

    Args:
      student, teacher: `(batch, ...)`, any floating dtype.

    Raises:
      DistillationError: batches or dtypes do not fit.

    >>> teacher = jnp.eye(2)
    >>> float(similarity(5.0 * jnp.eye(2), teacher)), round(float(similarity(jnp.ones((2, 3)), teacher)), 4)
    (0.0, 0.2929)
    """
    check_same_batch(student, teacher, "similarity")

    def rows(x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), -1)
        top = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
        # A factor of all features cancels, but their products might overflow.
        x = x / jnp.where(top == 0, 1.0, top)
        return unit_vectors(jnp.dot(x, x.T, precision=jax.lax.Precision.HIGHEST))

    return jnp.mean(jnp.square(rows(student.astype(jnp.float32)) - rows(_fixed(teacher))))


def _fixed(teacher: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(teacher.astype(jnp.float32))
