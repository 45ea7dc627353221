"""Losses on logits: the student's distribution over classes is drawn to the teacher's.

Every loss takes `student` first, is a float32 scalar, a mean over all rows (every axis but the last), computed in
float32 whatever the dtype, and sends no gradient into `teacher`. A logit of -inf is a class that is masked: its
probability is 0, and no mean or deviation counts it. Masked for the student alone, it makes the loss infinite (but
for `correlation`, which compares probabilities). Only -inf is a mask: -1e9 is a number, of which `standardized` takes
the deviation. Labels out of range are refused where they can be read; traced ones give NaN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.array_checks import (
    as_weight,
    check_labels,
    check_logits,
    check_temperature,
    nan_where_outside,
)
from modelzip_jax.distillation.safe_norms import centred, pearson
from modelzip_jax.errors import DistillationError

__all__ = [
    "correlation",
    "decoupled",
    "kullback_leibler",
    "smoothed_teacher",
    "soft_targets",
    "standardized",
]


def soft_targets(student: jax.Array, teacher: jax.Array, *, temperature: float = 4.0) -> jax.Array:
    """T² KL(teacher ‖ student) of softmax(logits / T), in nats.

    T² = `temperature`² makes gradients as large as those of labels at any temperature: for large T the gradient is
    that of half the squared difference of centred logits, divided by the number of classes.
    Adding a constant to all logits of a row changes nothing.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", https://arxiv.org/abs/1503.02531.
    There it is the cross-entropy with the teacher; KL is that less the teacher's entropy, so that gradients are the
    same and the least value is 0.

    Args:
      student, teacher: logits `(..., classes)`, any floating dtype.
      temperature: above 0.

    Raises:
      DistillationError: shapes or dtypes do not fit, or the temperature is not positive and finite.

    >>> teacher = jnp.array([[2.0, 0.0, -2.0]])
    >>> round(float(soft_targets(jnp.zeros((1, 3)), teacher, temperature=2.0)), 4)
    1.0649
    >>> float(soft_targets(teacher + 5.0, teacher))
    0.0
    """
    check_logits(student, teacher, "soft_targets")
    check_temperature(temperature, "soft_targets")
    return temperature**2 * jnp.mean(_divergence(student, teacher, temperature))


def decoupled(
    student: jax.Array,
    teacher: jax.Array,
    labels: jax.Array,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> jax.Array:
    """Decoupled knowledge distillation (DKD): T² (α TCKD + β NCKD), in nats.

    With p = softmax(logits / T), of which p_y is the label's:
    TCKD = KL((p_y, 1 - p_y) of the teacher ‖ that of the student), how sure of the label one may be;
    NCKD = KL of the distributions over the other classes, p_i / (1 - p_y), teacher ‖ student.
    `soft_targets` is T² (TCKD + (1 - p_y of the teacher) NCKD): where a teacher is sure, its knowledge about the other
    classes has little weight there, and β here. With one class the loss is 0; with two NCKD is.

    Source: Zhao et al. 2022, "Decoupled knowledge distillation", https://arxiv.org/abs/2203.08679; T² as in the
    authors' code, which besides lets the weight grow from 0 over the first epochs.

    Args:
      student, teacher: logits `(..., classes)`, any floating dtype.
      labels: integers `(...)`.
      temperature: above 0. alpha, beta: at least 0.

    Raises:
      DistillationError: shapes, dtypes, labels or hyperparameters do not fit.

    >>> teacher, labels = jnp.array([[4.0, 1.0, 0.0]]), jnp.array([0])
    >>> round(float(decoupled(jnp.array([[4.0, 0.0, 1.0]]), teacher, labels)), 4)
    3.9793
    """
    check_logits(student, teacher, "decoupled")
    check_labels(labels, student, "decoupled")
    check_temperature(temperature, "decoupled")
    alpha, beta = as_weight(alpha, "alpha", "decoupled"), as_weight(beta, "beta", "decoupled")
    labels, classes = jnp.asarray(labels), student.shape[-1]
    if classes == 1:
        return jnp.mean(nan_where_outside(_divergence(student, teacher), labels, 1))
    is_label = labels[..., None] == jnp.arange(classes)

    def parts(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        """log (p_y, 1 - p_y), and the logits of the other classes."""
        scaled = logits.astype(jnp.float32) / temperature
        others = jnp.where(is_label, -jnp.inf, scaled)
        own = jnp.sum(jnp.where(is_label, scaled, 0.0), -1)
        return jnp.stack([own, jax.nn.logsumexp(others, -1)], -1), others

    (target, others), (target_teacher, others_teacher) = parts(student), parts(teacher)
    tckd = _divergence(target, target_teacher)
    nckd = _divergence(others, others_teacher)
    return temperature**2 * jnp.mean(nan_where_outside(alpha * tckd + beta * nckd, labels, classes))


def standardized(student: jax.Array, teacher: jax.Array, *, temperature: float = 2.0) -> jax.Array:
    """`soft_targets` of standardised logits: T² KL(teacher ‖ student) of softmax((z - mean z) / (T σ(z))), in nats.

    mean and σ are over the classes of each row, σ² the mean squared deviation. Adding a constant to a row or
    multiplying it by a positive number changes nothing: the student learns how the teacher's logits stand to each
    other and not how large they are, which a small network cannot always follow. A row of equal logits stands for a
    uniform distribution, and has no gradient: add a loss on labels, or start from a head that is not all zeros.

    Source: Sun et al. 2024, "Logit standardization in knowledge distillation", https://arxiv.org/abs/2403.01427,
    algorithms 1 and 2. The authors' code divides by the unbiased deviation: what it gives at a temperature T is this
    loss at T √(classes / (classes - 1)), times (classes - 1) / classes.

    Args:
      student, teacher: logits `(..., classes)`, any floating dtype.
      temperature: above 0; the base temperature τ of the paper, one for all rows and both networks.

    Raises:
      DistillationError: as `soft_targets`.

    >>> teacher = jnp.array([[2.0, 0.0, -2.0]])
    >>> round(abs(float(standardized(0.1 * teacher + 3.0, teacher))), 5)
    0.0
    """
    check_logits(student, teacher, "standardized")
    check_temperature(temperature, "standardized")
    divergence = _divergence(_z_scores(student), _z_scores(teacher), temperature)
    return temperature**2 * jnp.mean(divergence)


def correlation(
    student: jax.Array,
    teacher: jax.Array,
    *,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: float = 1.0,
) -> jax.Array:
    """Distillation from a stronger teacher (DIST): T² (β (1 - ρ of rows) + γ (1 - ρ of columns)).

    ρ is Pearson's correlation of the student's and the teacher's softmax(logits / T): along the classes of a row
    (β = `inter`), and along the rows of a class (γ = `intra`), each averaged. Probabilities need only be related
    linearly, so that a teacher much surer than its student does no harm. Any leading axes are rows.
    Where the teacher's probabilities do not vary, as with one class or one row, there is no relation, and the term
    is 0; where only the student's do not, it is 1 without a gradient.

    Source: Huang et al. 2022, "Knowledge distillation from a stronger teacher", https://arxiv.org/abs/2205.10536. The
    authors' code is this loss at T = 1; T² is that of `soft_targets`, and of later public code.

    Args:
      student, teacher: logits `(..., classes)`, any floating dtype. A class that both mask is left out.
      inter, intra: at least 0. temperature: above 0.

    Raises:
      DistillationError: shapes, dtypes or hyperparameters do not fit.

    >>> teacher = jnp.array([[2.0, 0.0, -2.0], [0.0, 1.0, 0.0]])
    >>> abs(round(float(correlation(teacher, teacher)), 5)), round(float(correlation(-teacher, teacher)), 4)
    (0.0, 3.1713)
    """
    check_logits(student, teacher, "correlation")
    check_temperature(temperature, "correlation")
    inter, intra = as_weight(inter, "inter", "correlation"), as_weight(intra, "intra", "correlation")

    def probabilities(logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits.astype(jnp.float32) / temperature).reshape(-1, logits.shape[-1])

    own, others = probabilities(student), probabilities(jax.lax.stop_gradient(teacher))
    masked = ((student == -jnp.inf) & (teacher == -jnp.inf)).reshape(own.shape)
    counted = ~masked | jnp.all(masked, -1, keepdims=True)  # A row that is masked whole is NaN, and stays it.

    def unrelated(axis: int) -> jax.Array:
        varied = jnp.any(centred(others, axis, counted) != 0, axis)
        related = pearson(own, others, axis, counted)
        # Where there is no relation that is 0, but NaN of what is NaN.
        return jnp.mean(jnp.where(varied, 1.0 - related, 0.0 * related), where=jnp.any(counted, axis))

    return temperature**2 * (inter * unrelated(1) + intra * unrelated(0))


def smoothed_teacher(labels: jax.Array, classes: int, *, correct: float = 0.99) -> jax.Array:
    """Logits of a teacher that nobody has trained: the label has the probability `correct`, all others the same.

    A teacher for `soft_targets`. At temperature 1 that is label smoothing less a constant: with
    `correct` = 1 - ε + ε / classes it has the gradients of `optax.smooth_labels(one_hot, ε)`. The paper's Tf-KD_reg is
    a high temperature, such as 20, which softens both the virtual teacher and the student.

    Source: Yuan et al. 2020, "Revisiting knowledge distillation via label smoothing regularization",
    https://arxiv.org/abs/1909.11723, equations 8 and 9 (CVPR); 0.99 is theirs, and temperatures of 20 and more. (The
    authors' code takes the softmax of probabilities instead of logits, and no temperature for the student.)

    Args:
      labels: integers `(...)`.
      classes: how many there are.
      correct: of the label, at least 1 / classes and below 1.

    Returns:
      float32 `(..., classes)`: logarithms of the probabilities.

    Raises:
      DistillationError: labels are no integers or out of range, or `classes` or `correct` is out of bounds.

    >>> jnp.exp(smoothed_teacher(jnp.array([2, 0]), 3, correct=0.8)).round(3)
    Array([[0.1, 0.1, 0.8],
           [0.8, 0.1, 0.1]], dtype=float32)
    """
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise DistillationError(
            f"smoothed_teacher: classes must be an integer of at least 1, not {classes!r}"
        )
    as_weight(correct, "correct", "smoothed_teacher", positive=True)
    if not isinstance(correct, jax.core.Tracer):
        if float(correct) >= 1:
            raise DistillationError(f"smoothed_teacher: correct must be above 0 and below 1, not {correct}")
        if classes > 1 and float(correct) * classes < 1 - 1e-6:
            raise DistillationError(
                f"smoothed_teacher: correct={correct} makes the label less likely than others: it must be at least "
                f"1 / {classes}, of so many classes"
            )
    like = jax.ShapeDtypeStruct((*jnp.shape(labels), classes), jnp.float32)
    check_labels(labels, like, "smoothed_teacher")
    labels = jnp.asarray(labels)
    if classes == 1:
        return nan_where_outside(jnp.zeros(like.shape, jnp.float32), labels, 1)
    is_label = labels[..., None] == jnp.arange(classes)
    probability = jnp.asarray(correct, jnp.float32)
    found = jnp.where(is_label, jnp.log(probability), jnp.log1p(-probability) - jnp.log(classes - 1.0))
    return nan_where_outside(found, labels, classes)


def kullback_leibler(log_student: jax.Array, log_teacher: jax.Array) -> jax.Array:
    """Σ p_t (log p_t - log p_s) along the last axis; what the teacher holds for impossible adds nothing.

    >>> kullback_leibler(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([1.0, 0.0]))).round(4)
    Array(0.6931, dtype=float32)
    """
    impossible = log_teacher == -jnp.inf
    difference = jnp.where(impossible, 0.0, log_teacher) - jnp.where(impossible, 0.0, log_student)
    return jnp.sum(jnp.exp(log_teacher) * difference, -1)


def _divergence(student: jax.Array, teacher: jax.Array, temperature: float | jax.Array = 1.0) -> jax.Array:
    """KL(teacher ‖ student) of each row, float32."""
    student, teacher = student.astype(jnp.float32), jax.lax.stop_gradient(teacher.astype(jnp.float32))
    return kullback_leibler(
        jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher / temperature)
    )


def _z_scores(logits: jax.Array) -> jax.Array:
    counted = logits != -jnp.inf
    away = centred(logits.astype(jnp.float32), counted=counted)
    variance = jnp.mean(jnp.square(away), -1, keepdims=True, where=counted)
    return jnp.where(counted, away / jnp.sqrt(jnp.where(variance == 0, 1.0, variance)), -jnp.inf)
