"""Losses on relations between the examples of a batch: how far apart, at which angles, how correlated.

Every loss takes `student` first, is a float32 scalar, computed in float32 whatever the dtype, and sends no gradient
into `teacher`. Features are `(batch, ...)`, flattened; widths of student and teacher may differ.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.array_checks import as_weight, check_same_batch
from modelzip_jax.distillation.safe_norms import ROUNDING, safe_norm, unit_vectors
from modelzip_jax.distillation.whole_batches import over_whole_batch
from modelzip_jax.errors import DistillationError

__all__ = ["correlation_congruence", "relational_angle", "relational_distance"]


@over_whole_batch
def relational_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Relational distillation of distances (RKD-D): the Huber loss of ψ(i, j) of the student and the teacher.

    ψ(i, j) = ‖x_i - x_j‖ / μ, with μ the mean of all distances that are not 0, of each network by itself: turning,
    shifting or scaling all features changes nothing. A mean over all batch² pairs, also of an example with itself.
    Examples that float32 does not tell apart, and an example and itself, have ψ = 0. A batch of one teaches nothing.

    Source: Park et al. 2019, "Relational knowledge distillation", https://arxiv.org/abs/1904.05068, §3.2.1; pairs and μ
    as in the authors' code. RepDistiller weighs it by 25, and `relational_angle` by 50, for classification.

    Args:
      student, teacher: `(batch, ...)`, any floating dtype.

    Raises:
      DistillationError: batches or dtypes do not fit.

    >>> teacher = jnp.array([[0.0], [1.0], [3.0]])
    >>> abs(round(float(relational_distance(2.0 * teacher + 1.0, teacher)), 6))
    0.0
    >>> round(float(relational_distance(jnp.array([[0.0], [2.0], [3.0]]), teacher)), 4)
    0.0556
    """
    check_same_batch(student, teacher, "relational_distance")

    def distances(x: jax.Array) -> jax.Array:
        far = safe_norm(_differences(x))[..., 0]
        count = jnp.sum(far != 0)
        mean = jnp.sum(far) / jnp.maximum(count, 1)
        return far / jnp.where(count == 0, 1.0, mean)

    return jnp.mean(_huber(distances(student.astype(jnp.float32)) - distances(_fixed(teacher))))


@over_whole_batch
def relational_angle(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Relational distillation of angles (RKD-A): the Huber loss of cos ∠ijk of the student and the teacher.

    cos ∠ijk = ⟨(x_i - x_j) / ‖x_i - x_j‖, (x_k - x_j) / ‖x_k - x_j‖⟩, 0 where two of the examples are equal. A mean
    over all batch³ triplets, also those that name an example twice. Turning, shifting or scaling all features changes
    nothing. batch³ × width operations and batch² × width numbers: give pooled features. A batch of one teaches nothing.

    Source: Park et al. 2019, "Relational knowledge distillation", https://arxiv.org/abs/1904.05068, §3.2.2; triplets
    as in the authors' code.

    Args:
      student, teacher: `(batch, ...)`, any floating dtype.

    Raises:
      DistillationError: batches or dtypes do not fit.

    >>> teacher = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> round(float(relational_angle(jnp.array([[0.0], [1.0], [2.0]]), teacher)), 4)
    0.1296
    """
    check_same_batch(student, teacher, "relational_angle")

    def cosines(x: jax.Array) -> jax.Array:
        unit = unit_vectors(_differences(x))
        return jnp.einsum("jid,jkd->jik", unit, unit, precision=jax.lax.Precision.HIGHEST)

    return jnp.mean(_huber(cosines(student.astype(jnp.float32)) - cosines(_fixed(teacher))))


@over_whole_batch
def correlation_congruence(
    student: jax.Array, teacher: jax.Array, *, gamma: float = 0.4, order: int = 2
) -> jax.Array:
    """Correlation congruence (CC): ‖C_s - C_t‖² / batch², with the Frobenius norm.

    C_ij is the Gaussian kernel exp(-γ ‖x_i - x_j‖²) of features of unit length, by its Taylor series up to the power
    P = `order`: e^(-2γ) Σ_p (2γ)^p / p! (x_iᵀ x_j)^p. Scaling an example's features changes nothing.
    A row of zeros stays zeros. A batch of one teaches nothing.

    Source: Peng et al. 2019, "Correlation congruence for knowledge distillation", https://arxiv.org/abs/1904.01802; γ =
    0.4 and P = 2 as in public implementations of the paper. RepDistiller's, made from code that the authors gave its
    author, is another loss: the mean over the batch of Σ_c |s_i - t_i|_c |s_{i+1} - t_{i+1}|_c.

    Args:
      student, teacher: `(batch, ...)`, any floating dtype.
      gamma: γ, above 0. order: P, at least 1.

    Raises:
      DistillationError: batches, dtypes or hyperparameters do not fit.

    >>> teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> round(float(correlation_congruence(jnp.array([[1.0], [1.0]]), teacher, gamma=0.5, order=1)), 4)
    0.0677
    """
    check_same_batch(student, teacher, "correlation_congruence")
    as_weight(gamma, "gamma", "correlation_congruence", positive=True)
    if not isinstance(order, int) or isinstance(order, bool) or order < 1:
        raise DistillationError(
            f"correlation_congruence: order must be an integer of at least 1, not {order!r}"
        )

    def kernel(x: jax.Array) -> jax.Array:
        unit = unit_vectors(x.reshape(len(x), -1))
        cosine = jnp.dot(unit, unit.T, precision=jax.lax.Precision.HIGHEST)
        series = jnp.zeros_like(cosine)
        for power in range(order, -1, -1):  # Horner's rule.
            series = series * cosine + (2.0 * gamma) ** power / math.factorial(power)
        return jnp.exp(-2.0 * gamma) * series

    return jnp.mean(jnp.square(kernel(student.astype(jnp.float32)) - kernel(_fixed(teacher))))


def _differences(x: jax.Array) -> jax.Array:
    """x_i - x_j, `(j, i, width)`, scaled so that the largest entry is 1: the losses do not change by that.

    Not from Gram matrices, whose entries leave little of the distance of two examples far from the origin. Zeros where
    it is no more than rounding, also for i = j: fused into what made x, x - x need not be 0.
    """
    x = x.reshape(len(x), -1)
    size = jnp.max(jnp.abs(x), 1)
    difference = x[None] - x[:, None]
    rounding = ROUNDING * jnp.maximum(size[None], size[:, None])[..., None]
    near = jnp.max(jnp.abs(difference), -1, keepdims=True) <= rounding
    difference = jnp.where(near, 0.0, difference)
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(difference)))
    return difference / jnp.where(top == 0, 1.0, top)


def _huber(difference: jax.Array) -> jax.Array:
    """d² / 2 up to 1, then |d| - 1 / 2."""
    size = jnp.abs(difference)
    return jnp.where(size < 1.0, 0.5 * jnp.square(size), size - 0.5)


def _fixed(teacher: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(teacher.astype(jnp.float32))
