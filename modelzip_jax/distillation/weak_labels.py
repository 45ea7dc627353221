"""Weak labels: some examples have labels, and a teacher labels the others, each with a weight for how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.distillation.argument_checks import check_made_by
from modelzip_jax.distillation.array_checks import (
    as_numbers,
    as_weight,
    check_indices,
    check_weights,
    nan_where_outside,
)
from modelzip_jax.distillation.finite_numbers import check_count
from modelzip_jax.errors import DistillationError

__all__ = ["UNLABELLED", "WeakLabels", "hide_labels", "label_noise", "pseudo_label", "weighted_cross_entropy"]

UNLABELLED = -1
"""Stands where an example has no label."""

WEIGHTINGS = ("one", "probability", "margin", "entropy")


class WeakLabels(NamedTuple):
    """labels: int32 `(n,)`. weights: float32 `(n,)` in [0, 1], 1 where the label was given.

    >>> WeakLabels(labels=jnp.array([2, 0]), weights=jnp.array([1.0, 0.7])).labels
    Array([2, 0], dtype=int32)
    """

    labels: jax.Array
    weights: jax.Array


def hide_labels(labels: Any, known: Sequence[int] | np.ndarray) -> np.ndarray:
    """Labels of which only those at some indices are known, int32 `(n,)`; the others are -1, `UNLABELLED`.

    Args:
      labels: integers `(n,)`, at least 0. known: indices; one draw with the classes in proportion is
        `training.data.subset({"labels": labels, "index": np.arange(n)}, 0.01, seed=0)["index"]`.

    Raises:
      DistillationError: labels are no integers of at least 0; an index is out of range.

    >>> hide_labels([3, 1, 2], known=[1])
    array([-1,  1, -1], dtype=int32)
    """
    labels = np.asarray(as_numbers(labels, "hide_labels: labels"))
    known = np.asarray(as_numbers(known, "hide_labels: known"))
    if known.size and not np.issubdtype(known.dtype, np.integer):
        raise DistillationError(
            f"hide_labels: known must be indices, integers, not {known.dtype}; of a mask they are np.flatnonzero(mask)"
        )
    known = known.astype(np.int64)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        raise DistillationError(
            f"labels must be integers (n,) of at least 0, not {labels.dtype} {labels.shape}"
        )
    if known.ndim != 1 or known.min(initial=0) < 0 or known.max(initial=-1) >= len(labels):
        raise DistillationError(f"known must be indices from 0 to {len(labels) - 1:,}")
    hidden = np.full(len(labels), UNLABELLED, np.int32)
    hidden[known] = labels[known]
    return hidden


def pseudo_label(
    logits: jax.Array,
    given: Any = None,
    *,
    weighting: str = "probability",
    threshold: float = 0.0,
    temperature: float = 1.0,
) -> WeakLabels:
    """The teacher's most likely class as the label of each example that has none.

    Pseudo-labels of Lee 2013 ("Pseudo-label", ICML workshop). With p = softmax(z / T), its largest and second
    largest probability p_1 and p_2, and c classes, a label's weight is

        "one":          1                      as in Noisy Student's hard labels (Xie et al. 2020, arXiv:1911.04252)
        "probability":  p_1
        "margin":       p_1 - p_2
        "entropy":      1 - H(p) / log c       as Iscen et al. 2019 (arXiv:1904.04717) weigh labels

    and 0 where p_1 is below the threshold (FixMatch, Sohn et al. 2020, arXiv:2001.07685). Labels that are given
    stay, with the weight 1. Jittable. The weight is NaN where logits are, or where a traced label is out of range.

    Args:
      logits: the teacher's, floats `(n, classes)`.
      given: integers `(n,)`, below 0 (`UNLABELLED`) where an example has no label; None where none has.
      weighting: of the four above. A teacher that has learned few examples by heart is too sure: fit the temperature
        on held-out labels before its probabilities are read as such.
      threshold: in [0, 1]. temperature: T, above 0.

    Raises:
      DistillationError: shapes or dtypes do not fit; an unknown weighting; a number or a given label out of its range.

    >>> logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.1, 0.1, 0.8]]))
    >>> weak = pseudo_label(logits, jnp.array([-1, -1, 0]), threshold=0.5)
    >>> weak.labels, [f"{weight:.2f}" for weight in weak.weights]
    (Array([0, 0, 0], dtype=int32), ['0.70', '0.00', '1.00'])
    """
    logits = as_numbers(logits, "pseudo_label: logits")
    if logits.ndim != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise DistillationError(
            f"pseudo_label needs float logits (n, classes), not {logits.dtype} {logits.shape}"
        )
    if weighting not in WEIGHTINGS:
        raise DistillationError(f"weighting={weighting!r}: choose among {', '.join(WEIGHTINGS)}")
    as_weight(temperature, "temperature", "pseudo_label", positive=True)
    as_weight(threshold, "threshold", "pseudo_label")
    if not isinstance(threshold, jax.core.Tracer) and float(threshold) > 1:
        raise DistillationError(f"pseudo_label: threshold must be in [0, 1], not {threshold}")
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(logits).astype(jnp.float32) / temperature, axis=-1)
    likely = jnp.max(jnp.exp(log_p), axis=-1)
    weights = jnp.where(likely < threshold, 0.0, _weights(log_p, weighting))
    labels = jnp.argmax(log_p, axis=-1).astype(jnp.int32)
    if given is None:
        return WeakLabels(labels, weights)
    seen = given = as_numbers(given, "pseudo_label: given labels")
    given = jnp.asarray(given)
    if given.shape != labels.shape or not jnp.issubdtype(given.dtype, jnp.integer):
        raise DistillationError(
            f"given labels must be integers {labels.shape}, not {given.dtype} {given.shape}"
        )
    check_indices(seen, logits.shape[-1], "pseudo_label: given labels", or_none=True)
    known = given >= 0
    weights = nan_where_outside(jnp.where(known, 1.0, weights), jnp.maximum(given, 0), logits.shape[-1])
    return WeakLabels(jnp.where(known, given, labels).astype(jnp.int32), weights)


def weighted_cross_entropy(
    student: jax.Array, labels: jax.Array, weights: jax.Array, *, normalize: bool = False
) -> jax.Array:
    """Mean over the batch of w_i times the cross-entropy of its label, in nats: (1/B) Σ_i -w_i log softmax(z_i)[y_i].

    FixMatch's unlabelled loss (arXiv:2001.07685): a batch of which the teacher is unsure counts less. Unlabelled
    examples (labels below 0) count as if their weight were 0.

    Args:
      student: logits, floats `(batch, classes)`. labels: integers `(batch,)`. weights: floats `(batch,)`, at least 0.
      normalize: divides by Σ w_i, not by B: all batches count alike. A batch without any weight gives 0.

    Returns:
      A float32 scalar, whose gradient flows into the student alone. NaN where a traced label or weight is out of range.

    Raises:
      DistillationError: shapes or dtypes do not fit; a label beyond the classes; a weight below 0 or not finite.

    >>> logits, labels = jnp.array([[0.0, 0.0], [0.0, 0.0]]), jnp.array([0, 1])
    >>> round(float(weighted_cross_entropy(logits, labels, jnp.array([1.0, 0.5]))), 4)  # 3/4 log 2
    0.5199
    >>> round(float(weighted_cross_entropy(logits, labels, jnp.array([1.0, 0.5]), normalize=True)), 4)
    0.6931
    """
    student = as_numbers(student, "weighted_cross_entropy: student logits")
    given = tuple(
        as_numbers(x, f"weighted_cross_entropy: {name}")
        for name, x in (("labels", labels), ("weights", weights))
    )
    labels, weights = map(jnp.asarray, given)
    if student.ndim != 2 or not jnp.issubdtype(student.dtype, jnp.floating):
        raise DistillationError(
            f"student logits must be floats (batch, classes), not {student.dtype} {student.shape}"
        )
    for name, array, kind in (("labels", labels, jnp.integer), ("weights", weights, jnp.floating)):
        if array.shape != student.shape[:1] or not jnp.issubdtype(array.dtype, kind):
            raise DistillationError(
                f"{name} must be {kind.__name__} {student.shape[:1]} for student logits {student.shape}, not "
                f"{array.dtype} {array.shape}"
            )
    check_indices(given[0], student.shape[-1], "weighted_cross_entropy: labels", or_none=True)
    check_weights(given[1], "weighted_cross_entropy: weights")
    log_p = jax.nn.log_softmax(student.astype(jnp.float32), axis=-1)
    place = jnp.clip(labels, 0, student.shape[-1] - 1)
    own = jnp.take_along_axis(log_p, place[:, None], axis=-1)[:, 0]
    own = nan_where_outside(own, jnp.maximum(labels, 0), student.shape[-1])
    weights = jnp.where(weights >= 0, weights.astype(jnp.float32), jnp.nan)
    weights = jax.lax.stop_gradient(jnp.where(labels >= 0, weights, 0.0))
    none = weights == 0  # Not weights * own: 0 times an infinite loss would be NaN.
    total = jnp.sum(jnp.where(none, 0.0, weights * jnp.where(none, 0.0, -own)))
    if not normalize:
        return total / len(labels)
    return total / jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)


def label_noise(weak: WeakLabels, truth: Any, classes: int, given: Any = None) -> dict[str, Any]:
    """How wrong the teacher's labels are, where held-back labels tell.

    Args:
      weak: of `pseudo_label`. truth: integers `(n,)`, the labels held back. classes: how many there are.
      given: the labels that the teacher did not make, as passed to `pseudo_label`; they are left out.

    Returns:
      `"noise"`, the share of labels with a weight above 0 that are wrong; `"weighted_noise"`, the same share of their
      weight, which is lower where the weights are of use; `"coverage"`, the share of labels with a weight above 0;
      `"confusion"`, int64 `(classes, classes)`, the number of those with the true class of the row and the label of the
      column. NaN shares where nothing counts.

    Raises:
      DistillationError: shapes, labels or their number do not fit.

    >>> weak = WeakLabels(jnp.array([0, 1, 1, 0]), jnp.array([1.0, 0.9, 0.1, 0.0]))
    >>> noise = label_noise(weak, truth=[0, 1, 0, 1], classes=2)
    >>> round(noise["noise"], 3), round(noise["weighted_noise"], 3), noise["coverage"], noise["confusion"].tolist()
    (0.333, 0.05, 0.75, [[1, 1], [0, 1]])
    """
    check_made_by(weak, WeakLabels, "label_noise(weak, truth, classes)", "weak", "pseudo_label(logits)")
    classes = check_count(classes, "label_noise: classes")
    labels, weights = np.asarray(weak.labels), np.asarray(weak.weights, np.float64)
    truth = np.asarray(as_numbers(truth, "label_noise: truth"))
    made = np.ones(len(labels), bool) if given is None else as_numbers(given, "label_noise: given") < 0
    if not labels.shape == weights.shape == truth.shape == made.shape or labels.ndim != 1:
        raise DistillationError(
            f"labels {labels.shape}, weights {weights.shape}, truth {truth.shape} and given {made.shape} must be (n,)"
        )
    for name, array in (("labels", labels), ("truth", truth)):
        if (
            not np.issubdtype(array.dtype, np.integer)
            or array.min(initial=0) < 0
            or array.max(initial=0) >= classes
        ):
            raise DistillationError(f"{name} must be integers from 0 to {classes - 1}")
    counted = made & (weights > 0)
    wrong = labels != truth
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (truth[counted], labels[counted]), 1)
    return {
        "noise": _share(np.sum(wrong[counted]), np.sum(counted)),
        "weighted_noise": _share(np.sum(weights[counted & wrong]), np.sum(weights[counted])),
        "coverage": _share(np.sum(counted), np.sum(made)),
        "confusion": confusion,
    }


def _weights(log_p: jax.Array, weighting: str) -> jax.Array:
    """Of each row of log-probabilities, float32 in [0, 1]; with one class nothing is in doubt."""
    p = jnp.exp(log_p)
    if weighting == "one" or log_p.shape[-1] == 1:
        return jnp.ones(len(log_p), jnp.float32) + 0.0 * p[:, 0]  # NaN of what is NaN.
    if weighting == "entropy":
        entropy = -jnp.sum(jnp.where(p == 0, 0.0, p * log_p), axis=-1)
        return jnp.clip(1.0 - entropy / jnp.log(p.shape[-1]), 0.0, 1.0)
    first, second = jnp.moveaxis(jax.lax.top_k(p, 2)[0], -1, 0)
    return first if weighting == "probability" else first - second


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else float("nan")
