"""Classification: accuracy, top-k accuracy, cross-entropy and calibration, with standard errors.

Logits are scored example by example, in float64; every metric is a function of the scores, so that a
data set is passed over once and its logits are never all in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from modelzip_jax.errors import EvaluationError, NonFiniteError
from modelzip_jax.evaluation.batching import predictions
from modelzip_jax.evaluation.estimate import Estimate, mean, proportion

__all__ = [
    "Scores",
    "accuracy",
    "compare",
    "cross_entropy",
    "evaluate",
    "expected_calibration_error",
    "score",
    "score_batches",
    "train_test_gap",
]


class Scores(NamedTuple):
    """What the metrics need to know of each of n examples.

    rank: int (n,), place of the right class among the logits, 1 the largest; equal logits rank by
      class number, as `argmax` takes the first.
    nll: float64 (n,), cross-entropy with the right class in nats.
    confidence: float64 (n,), probability of the likeliest class.
    """

    rank: np.ndarray
    nll: np.ndarray
    confidence: np.ndarray


def score(logits: ArrayLike, labels: ArrayLike) -> Scores:
    """Scores of logits (n, classes), computed in float64, against labels int (n,).

    Raises:
      EvaluationError: shapes that do not fit, or labels outside 0..classes − 1.
      NonFiniteError: a logit is NaN or +inf; −inf rules a class out.

    >>> score([[2.0, 1.0, 0.0]], [1]).rank
    array([2])
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise EvaluationError(
            f"expected logits (n, classes) and labels (n,), got {logits.shape} and {labels.shape}"
        )
    classes = logits.shape[1]
    if not np.issubdtype(labels.dtype, np.integer) or np.any((labels < 0) | (labels >= classes)):
        raise EvaluationError(f"labels must be integers from 0 to {classes - 1}")
    bad = np.flatnonzero(~np.all(logits < np.inf, axis=1))
    if bad.size:
        raise NonFiniteError(
            f"{bad.size} of {len(logits)} rows of logits hold NaN or +inf, first row {bad[0]}"
        )
    own = np.take_along_axis(logits, labels[:, None], 1)
    before = np.arange(classes) < labels[:, None]
    rank = 1 + np.sum((logits > own) | ((logits == own) & before), axis=1)
    top = logits.max(1)
    log_sum = np.log(np.sum(np.exp(logits - top[:, None]), axis=1))
    return Scores(rank, log_sum + top - own[:, 0], np.exp(-log_sum))


def score_batches(
    predict: Callable[[Any], Any], inputs: Any, labels: ArrayLike, batch_size: int = 256
) -> Scores:
    """Scores of `predict(inputs)`, which gives logits (batch_size, classes), in batches of one size.

    Raises:
      EvaluationError: no inputs, or another number of labels than of inputs.
      NonFiniteError: a logit is NaN or +inf.

    >>> score_batches(lambda x: x, np.eye(3), [0, 1, 0], batch_size=2).rank
    array([1, 1, 2])
    """
    labels = np.asarray(labels)
    parts = [score(logits, labels[rows]) for rows, logits in predictions(predict, inputs, batch_size)]
    scores = Scores(*map(np.concatenate, zip(*parts, strict=True)))
    if len(scores.rank) != len(labels):
        raise EvaluationError(f"{len(labels)} labels for {len(scores.rank)} inputs")
    return scores


def accuracy(scores: Scores, k: int = 1) -> Estimate:
    """Share of the examples whose right class is among the `k` largest logits.

    >>> print(accuracy(score([[2.0, 1.0], [0.0, 1.0]], [1, 1])))
    0.5000 ± 0.3536
    """
    return proportion(int(np.sum(scores.rank <= k)), len(scores.rank))


def cross_entropy(scores: Scores) -> Estimate:
    """Mean cross-entropy with the right class, in nats an example.

    >>> round(cross_entropy(score([[0.0, 0.0], [0.0, 0.0]], [0, 1])).value, 4)
    0.6931
    """
    return mean(scores.nll)


def expected_calibration_error(scores: Scores, bins: int = 15) -> float:
    """Mean distance of accuracy and confidence over bins of equal width (Guo et al. 2017, eq. 3).

    https://arxiv.org/abs/1706.04599. It has a bias upwards of order √(bins/n), and no standard error.

    >>> expected_calibration_error(score([[0.0, 0.0], [0.0, 0.0]], [0, 1]))
    0.0
    """
    if not len(scores.rank):
        raise EvaluationError("there are no examples to measure")
    # Bins are closed above, as in the paper: a confidence of exactly 1 is in the last.
    index = np.clip(np.ceil(scores.confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, (scores.rank == 1) - scores.confidence, minlength=bins)
    return float(np.sum(np.abs(gaps)) / len(scores.rank))


def evaluate(
    predict: Callable[[Any], Any], inputs: Any, labels: ArrayLike, *, top_k: int = 5, batch_size: int = 256
) -> dict[str, Estimate | float]:
    """Every metric here: "accuracy", "top_5_accuracy", "cross_entropy" and "calibration_error".

    Args:
      predict: jitted, from a batch of inputs to logits (batch_size, classes).
      inputs: array or pytree of arrays, n examples on the first axis.
      labels: int (n,).
      top_k: the k of "top_k_accuracy".
      batch_size: examples at a time.

    Raises:
      EvaluationError: no inputs, shapes that do not fit, or labels that are no classes.
      NonFiniteError: a logit is NaN or +inf.

    >>> numbers = evaluate(lambda x: 9 * x, np.eye(3), [0, 1, 0], top_k=2)
    >>> {name: round(float(value), 3) for name, value in numbers.items()}
    {'accuracy': 0.667, 'top_2_accuracy': 1.0, 'cross_entropy': 3.0, 'calibration_error': 0.333}
    """
    scores = score_batches(predict, inputs, labels, batch_size)
    return {
        "accuracy": accuracy(scores),
        f"top_{top_k}_accuracy": accuracy(scores, top_k),
        "cross_entropy": cross_entropy(scores),
        "calibration_error": expected_calibration_error(scores),
    }


def train_test_gap(train: Scores, test: Scores) -> dict[str, Estimate]:
    """Accuracy on the training set minus that on the test set, and cross-entropy likewise.

    Positive and negative, respectively, where a model has overfitted.

    >>> seen, unseen = score(9 * np.eye(2), [0, 1]), score(9 * np.eye(2), [0, 0])
    >>> print(train_test_gap(seen, unseen)["accuracy"])
    0.5000 ± 0.3536
    """
    return {
        "accuracy": accuracy(train) - accuracy(test),
        "cross_entropy": cross_entropy(train) - cross_entropy(test),
    }


def compare(after: Scores, before: Scores) -> dict[str, Estimate]:
    """Change of accuracy and cross-entropy from `before` to `after`, on the same examples in one order.

    The standard errors are those of paired differences: much smaller than of two independent test
    sets, since a compressed model errs on almost the same examples as its original.

    Raises:
      EvaluationError: the numbers of examples differ.

    >>> old, new = score(9 * np.eye(3), [0, 1, 2]), score(9 * np.eye(3), [0, 1, 1])
    >>> print(compare(new, old)["accuracy"])
    -0.3333 ± 0.3333
    """
    if len(after.rank) != len(before.rank):
        raise EvaluationError(f"{len(after.rank)} examples after, {len(before.rank)} before")
    right, was_right = after.rank == 1, before.rank == 1
    return {
        "accuracy": mean(right.astype(np.float64) - was_right),
        "cross_entropy": mean(after.nll - before.nll),
    }
