"""Teacher logits kept offline: the k largest of each row, and the mass of the rest."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modelzip_jax.distillation.array_checks import (
    check_indices,
    check_logits,
    check_temperature,
    nan_where_outside,
)
from modelzip_jax.distillation.logits import kullback_leibler
from modelzip_jax.errors import DistillationError
from modelzip_jax.meshes import spec_of, under_any_mesh

__all__ = ["TopK", "top_k_logits", "top_k_soft_targets"]


class TopK(NamedTuple):
    """The k largest of `(..., classes)` logits.

    See `top_k_logits`.

    indices: int32 `(..., k)`, classes by descending logit. values: float32 `(..., k)`, their logits.
    log_rest: float32 `(...)`, the logsumexp of the logits left out; -inf if none are.
    """

    indices: jax.Array
    values: jax.Array
    log_rest: jax.Array


def top_k_logits(logits: jax.Array, k: int) -> TopK:
    """The k largest logits of each row, and what is left out as one number.

    A row takes 8 k + 4 bytes. Probabilities of the classes kept are exact, since the mass of the rest is.

    Args:
      logits: `(..., classes)`, any floating dtype. For a temperature T other than 1, give logits / T, and
        student / T to `top_k_soft_targets`: its mass of the rest is then exact, too.
      k: from 1 to classes.

    Raises:
      DistillationError: logits are no floating array, or k is out of bounds.

    >>> kept = top_k_logits(jnp.array([[0.0, 2.0, 1.0, 0.0]]), 2)
    >>> kept.indices, kept.values, kept.log_rest.round(4)
    (Array([[1, 2]], dtype=int32), Array([[2., 1.]], dtype=float32), Array([0.6931], dtype=float32))
    """
    check_logits(logits, logits, "top_k_logits")
    classes = logits.shape[-1]
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= classes:
        raise DistillationError(
            f"top_k_logits: k must be an integer from 1 to {classes}, the classes, not {k!r}"
        )
    logits = logits.astype(jnp.float32)
    values, indices = jax.lax.top_k(logits, k)
    return TopK(indices.astype(jnp.int32), values, _log_rest(logits, indices))


def top_k_soft_targets(student: jax.Array, teacher: TopK, *, temperature: float = 1.0) -> jax.Array:
    """T² KL(teacher ‖ student) over k + 1 outcomes: each class kept, and all others as one, in nats.

    Never more than `soft_targets`, by the log-sum inequality; equal to it if k is the number of classes. How the
    student divides the rest is left to it: nothing is known about the teacher's.
    At a temperature other than 1 the teacher's mass of the rest cannot be told from `log_rest`: it is taken as if the
    n classes left out shared it evenly, n^(1 - 1/T) exp(log_rest / T), the most that it can be for T above 1.

    Args:
      student: logits `(..., classes)`, any floating dtype.
      teacher: of `top_k_logits`, of as many classes as the student's: how many there were is not kept, and a student
        with more of them is not told from one that fits. No gradient flows into it.
      temperature: above 0.

    Returns:
      A float32 scalar, the mean over rows. NaN where a traced index is beyond the student's classes.

    Raises:
      DistillationError: shapes or dtypes do not fit, an index is beyond the student's classes, or the temperature is
        not positive and finite.

    >>> from modelzip_jax.distillation import soft_targets
    >>> student, teacher = jnp.array([[0.0, 1.0, 2.0, 3.0]]), jnp.array([[2.0, 0.0, -2.0, 1.0]])
    >>> for k in (1, 2, 4):
    ...     print(round(float(top_k_soft_targets(student, top_k_logits(teacher, k))), 4))
    1.6293
    1.6306
    1.7143
    >>> round(float(soft_targets(student, teacher, temperature=1.0)), 4)
    1.7143
    """
    _check(student, teacher)
    check_temperature(temperature, "top_k_soft_targets")
    teacher = jax.lax.stop_gradient(teacher)
    left_out = student.shape[-1] - teacher.indices.shape[-1]
    student = student.astype(jnp.float32) / temperature
    classes = student.shape[-1]
    own = jnp.take_along_axis(student, jnp.clip(teacher.indices, 0, classes - 1), -1)
    own = nan_where_outside(own, teacher.indices, classes)
    kept = teacher.values.astype(jnp.float32) / temperature
    if left_out:
        even = math.log(left_out)
        rest = even + (teacher.log_rest.astype(jnp.float32) - even) / temperature
        own = jnp.concatenate([own, _log_rest(student, teacher.indices)[..., None]], -1)
        kept = jnp.concatenate([kept, rest[..., None]], -1)
    return temperature**2 * jnp.mean(kullback_leibler(jax.nn.log_softmax(own), jax.nn.log_softmax(kept)))


def _log_rest(logits: jax.Array, indices: jax.Array) -> jax.Array:
    """The logsumexp of the logits that are not at these indices."""
    if logits.shape[-1] == indices.shape[-1]:
        return jnp.full(logits.shape[:-1], -jnp.inf, jnp.float32)

    def rest(logits: jax.Array, indices: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(jnp.put_along_axis(logits, indices, -jnp.inf, -1, inplace=False), -1)

    return under_any_mesh(rest, (logits, indices), PartitionSpec(*spec_of(logits)[:-1]))


def _check(student: jax.Array, teacher: TopK) -> None:
    check_logits(student, student, "top_k_soft_targets")
    fields = [getattr(teacher, name, None) for name in TopK._fields]
    if not isinstance(teacher, TopK) or not all(isinstance(x, jax.Array | np.ndarray) for x in fields):
        kinds = ", ".join(type(x).__name__ for x in fields)
        what = f"a TopK of {kinds}" if isinstance(teacher, TopK) else f"a {type(teacher).__name__}"
        raise DistillationError(
            f"top_k_soft_targets: the teacher must be a TopK of arrays, of top_k_logits or cached_top_k, not {what}"
        )
    shapes = [jnp.shape(x) for x in teacher]
    rows, k = shapes[2], (shapes[0] or (0,))[-1]
    if shapes[:2] != [(*rows, k)] * 2 or student.shape[:-1] != rows or not 1 <= k <= student.shape[-1]:
        raise DistillationError(
            f"top_k_soft_targets: student logits {student.shape} do not fit the teacher's indices {shapes[0]}, values "
            f"{shapes[1]} and log_rest {shapes[2]}: (..., classes), (..., k), (..., k) and (...) are needed, and k of "
            "at most classes"
        )
    if not jnp.issubdtype(teacher.indices.dtype, jnp.integer):
        raise DistillationError(
            f"top_k_soft_targets: the teacher's indices must be integers, not {teacher.indices.dtype}"
        )
    check_indices(teacher.indices, student.shape[-1], "top_k_soft_targets: the teacher's indices")
