"""Contrastive representation distillation (CRD): student and teacher agree on which example is which."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modelzip_jax.distillation.argument_checks import check_made_by
from modelzip_jax.distillation.array_checks import (
    as_weight,
    check_indices,
    check_key,
    check_same_shape,
    check_temperature,
    nan_where_outside,
)
from modelzip_jax.distillation.safe_norms import unit_vectors
from modelzip_jax.distillation.whole_batches import over_whole_batch
from modelzip_jax.errors import DistillationError
from modelzip_jax.meshes import spec_of, under_any_mesh

__all__ = ["ContrastMemory", "contrastive", "in_batch_contrastive", "init_contrast_memory"]


class ContrastMemory(NamedTuple):
    """Embeddings of every example of a data set, as they were last seen.

    See `init_contrast_memory`.

    student, teacher: float32 `(examples, width)`. log_student, log_teacher: float32 scalars, the logarithm of the mean
    exp(score), student against `teacher` and the reverse, of the first batch: the paper's constant.
    batches: int32, how many have been seen.
    """

    student: jax.Array
    teacher: jax.Array
    log_student: jax.Array
    log_teacher: jax.Array
    batches: jax.Array


def init_contrast_memory(key: jax.Array, examples: int, width: int) -> ContrastMemory:
    """A memory of random embeddings: uniform, of about unit length.

    Args:
      key: a random key. examples: of the data set. width: of the embeddings.

    Raises:
      DistillationError: a size is not a positive integer, or the key is none.

    >>> memory = init_contrast_memory(jax.random.key(0), 50_000, 128)
    >>> memory.student.shape, int(memory.batches)
    ((50000, 128), 0)
    """
    for name, size in (("examples", examples), ("width", width)):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise DistillationError(
                f"init_contrast_memory: {name} must be an integer of at least 1, not {size!r}"
            )
    check_key(key, "init_contrast_memory")
    bound = math.sqrt(3.0 / width)
    keys = jax.random.split(key)
    student, teacher = (jax.random.uniform(k, (examples, width), minval=-bound, maxval=bound) for k in keys)
    return ContrastMemory(student, teacher, jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32))


def contrastive(
    student: jax.Array,
    teacher: jax.Array,
    memory: ContrastMemory,
    examples: jax.Array,
    negatives: jax.Array,
    *,
    temperature: float = 0.07,
    momentum: float = 0.5,
) -> tuple[jax.Array, ContrastMemory]:
    """CRD with a memory: the loss, and the memory with this batch in it.

    h(a, b) = e^(aᵀb / τ) / (e^(aᵀb / τ) + N Z): how probable it is that embeddings a and b, of unit length, are of one
    example; N is the number of negatives and Z the mean e^(aᵀb / τ) of the first batch, kept. The loss is the mean over
    the batch of -log h(a, b of its example) - Σ log(1 - h(a, b of a negative)), once with a of the student and b from
    the teacher's memory, once the other way round; the sum of both. Then each memory's rows of this batch become
    m old + (1 - m) new, at unit length.

    Gradients flow into both embeddings, since each network has a projection that is trained (`project`). Where the
    teacher itself depends on what is trained, stop its gradient before it is projected.

    Source: Tian et al. 2020, "Contrastive representation distillation", https://arxiv.org/abs/1910.10699, equation 18;
    the constant, the memory, its momentum and τ as in the authors' code. The paper has N / examples in place of N Z.

    Args:
      student, teacher: embeddings `(batch, width)`, of any length; any floating dtype.
      memory: of `init_contrast_memory`.
      examples: integers `(batch,)`, each once: which of the data set these are.
      negatives: integers `(batch, N)`, others of the data set, such as `jax.random.randint` draws.
      temperature: τ, above 0. momentum: m, from 0 to 1.

    Returns:
      A float32 scalar, and the memory for the next step: the same one after a loss that is NaN or infinite, as of
      traced indices that are out of range.

    Raises:
      DistillationError: shapes, dtypes, indices or hyperparameters do not fit.

    >>> memory = init_contrast_memory(jax.random.key(0), 10, 3)
    >>> embedded = jnp.eye(3)[:2]
    >>> negatives = jax.random.randint(jax.random.key(1), (2, 4), 0, 10)
    >>> loss, memory = contrastive(embedded, embedded, memory, jnp.array([7, 2]), negatives)
    >>> loss.shape, int(memory.batches)
    ((), 1)
    """
    _check_embeddings(student, teacher, "contrastive")
    check_temperature(temperature, "contrastive")
    check_made_by(
        memory, ContrastMemory, "contrastive", "memory", "init_contrast_memory(key, examples, width)"
    )
    _check_memory(student, memory, examples, negatives, momentum)
    contrasted = functools.partial(_contrasted, temperature=temperature, momentum=momentum)
    specs = PartitionSpec(), jax.tree.map(spec_of, memory)
    return under_any_mesh(contrasted, (student, teacher, memory, examples, negatives), specs)


def _contrasted(
    student: jax.Array,
    teacher: jax.Array,
    memory: ContrastMemory,
    examples: jax.Array,
    negatives: jax.Array,
    *,
    temperature: float | jax.Array,
    momentum: float | jax.Array,
) -> tuple[jax.Array, ContrastMemory]:
    student, teacher = (unit_vectors(x.astype(jnp.float32)) for x in (student, teacher))
    kept = jax.lax.stop_gradient(memory)
    places = jnp.concatenate([examples[:, None], negatives], 1)
    first = kept.batches == 0

    def one_side(own: jax.Array, others: jax.Array, constant: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = jnp.einsum("bd,bnd->bn", own, others[places], precision=jax.lax.Precision.HIGHEST)
        scores = nan_where_outside(scores / temperature, places, len(others))
        constant = jnp.where(first, jax.lax.stop_gradient(_log_mean_exp(scores)), constant)
        return _negative_log_likelihood(scores[:, :1], scores[:, 1:], constant), constant

    loss_student, log_student = one_side(student, kept.teacher, kept.log_student)
    loss_teacher, log_teacher = one_side(teacher, kept.student, kept.log_teacher)

    loss = loss_student + loss_teacher
    finite = jnp.isfinite(loss)  # What is remembered would be NaN for good.

    def remembered(rows: jax.Array, new: jax.Array) -> jax.Array:
        mixed = momentum * rows[examples] + (1.0 - momentum) * jax.lax.stop_gradient(new)
        return rows.at[examples].set(jnp.where(finite, unit_vectors(mixed), rows[examples]))

    after = ContrastMemory(
        remembered(kept.student, student),
        remembered(kept.teacher, teacher),
        jnp.where(finite, log_student, kept.log_student),
        jnp.where(finite, log_teacher, kept.log_teacher),
        kept.batches + finite,
    )
    return loss, after


@over_whole_batch
def in_batch_contrastive(student: jax.Array, teacher: jax.Array, *, temperature: float = 0.07) -> jax.Array:
    """CRD whose negatives are the other examples of the batch: no memory, so that it needs large batches.

    As `contrastive`, with N = batch - 1, and Z the mean over this batch, without a gradient. Both sides have the same
    value here and count once. A batch of one has no negatives, and the loss 0.

    Gradients flow into both embeddings.

    Source: as `contrastive`, of which this is a simplification and not the authors'.

    Args:
      student, teacher: embeddings `(batch, width)`, of any length; any floating dtype.
      temperature: τ, above 0.

    Raises:
      DistillationError: shapes, dtypes or the temperature do not fit.

    >>> teacher = jnp.eye(4)
    >>> alike, permuted = (in_batch_contrastive(x, teacher) for x in (teacher, teacher[::-1]))
    >>> bool(alike < permuted)
    True
    """
    _check_embeddings(student, teacher, "in_batch_contrastive")
    check_temperature(temperature, "in_batch_contrastive")
    batch = len(student)
    student, teacher = (unit_vectors(x.astype(jnp.float32)) for x in (student, teacher))
    if batch == 1:
        return 0.0 * jnp.sum(student * teacher)  # NaN of what is NaN.
    scores = jnp.dot(student, teacher.T, precision=jax.lax.Precision.HIGHEST) / temperature
    constant = jax.lax.stop_gradient(_log_mean_exp(scores))
    # Row i without its own example: entry j of row i is example (i + 1 + j) modulo the batch.
    others = (jnp.arange(batch)[:, None] + jnp.arange(1, batch)) % batch
    return _negative_log_likelihood(
        jnp.diagonal(scores)[:, None], jnp.take_along_axis(scores, others, 1), constant
    )


def _negative_log_likelihood(own: jax.Array, others: jax.Array, constant: jax.Array) -> jax.Array:
    """The mean over rows of -log h of the one score and -Σ log(1 - h) of the others; h = sigmoid(score - log N Z)."""
    threshold = constant + math.log(others.shape[1])
    likelihood = jax.nn.log_sigmoid(own - threshold)[:, 0] + jnp.sum(
        jax.nn.log_sigmoid(threshold - others), 1
    )
    return -jnp.mean(likelihood)


def _log_mean_exp(scores: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(scores) - math.log(scores.size)


def _check_embeddings(student: Any, teacher: Any, loss_name: str) -> None:
    check_same_shape(student, teacher, loss_name)
    if jnp.ndim(student) != 2:
        raise DistillationError(f"{loss_name}: embeddings must be (batch, width), not {jnp.shape(student)}")


def _check_memory(
    student: jax.Array, memory: ContrastMemory, examples: jax.Array, negatives: jax.Array, momentum: float
) -> None:
    if memory.student.shape != memory.teacher.shape or memory.student.shape[-1] != student.shape[-1]:
        raise DistillationError(
            f"contrastive: embeddings {student.shape} do not fit the memory, of the student {memory.student.shape} and "
            f"of the teacher {memory.teacher.shape}: the widths must be equal"
        )
    for name, array, ndim in (("examples", examples, 1), ("negatives", negatives, 2)):
        if not isinstance(array, jax.Array | np.ndarray):
            raise DistillationError(f"contrastive: {name} must be an array, not a {type(array).__name__}")
        if not jnp.issubdtype(jnp.result_type(array), jnp.integer):
            raise DistillationError(f"contrastive: {name} must be integers, not {jnp.result_type(array)}")
        if jnp.ndim(array) != ndim or len(array) != len(student) or 0 in jnp.shape(array):
            raise DistillationError(
                f"contrastive: {name} must be {('(batch,)', '(batch, N)')[ndim - 1]} with the batch of the embeddings "
                f"{student.shape}, not {jnp.shape(array)}"
            )
        check_indices(array, len(memory.student), f"contrastive: {name}")
    as_weight(momentum, "momentum", "contrastive")
    if not isinstance(momentum, jax.core.Tracer) and float(momentum) > 1:
        raise DistillationError(f"contrastive: momentum must be from 0 to 1, not {momentum}")
