"""Metrics of classification against direct float64 computations."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.errors import EvaluationError, NonFiniteError
from modelzip_jax.evaluation import classification as c
from modelzip_jax.evaluation.estimate import Estimate, mean, proportion

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(203, 7)).astype(np.float32) * 3
LABELS = RNG.integers(0, 7, 203)


def test_metrics_equal_their_definitions():
    scores, n = c.score(LOGITS, LABELS), len(LABELS)
    p = np.exp(LOGITS.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    right = np.argmax(LOGITS, 1) == LABELS
    a = right.mean()
    assert c.accuracy(scores) == Estimate(a, pytest.approx(math.sqrt(a * (1 - a) / n)), n)
    top = np.argsort(-LOGITS, axis=1)
    for k in (1, 3, 7):
        assert c.accuracy(scores, k).value == np.mean(np.any(top[:, :k] == LABELS[:, None], axis=1))
    nll = -np.log(p[np.arange(n), LABELS])
    assert c.cross_entropy(scores).value == pytest.approx(nll.mean(), rel=1e-12)
    assert c.cross_entropy(scores).standard_error == pytest.approx(nll.std(ddof=1) / n**0.5, rel=1e-12)
    confidence, edges = p.max(1), np.linspace(0, 1, 16)
    bins = [(confidence > low) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    ece = sum(abs(right[b].mean() - confidence[b].mean()) * b.sum() / n for b in bins if b.any())
    assert c.expected_calibration_error(scores) == pytest.approx(ece, rel=1e-9)


def test_equal_logits_rank_as_argmax_takes_them():
    logits = np.zeros((4, 4))
    scores = c.score(logits, [0, 1, 2, 3])
    assert scores.rank.tolist() == [1, 2, 3, 4]
    assert c.accuracy(scores).value == np.mean(np.argmax(logits, 1) == np.arange(4))


def test_large_logits_do_not_overflow_and_a_class_can_be_ruled_out():
    scores = c.score([[1e4, -1e4], [-np.inf, 0.0]], [1, 1])
    assert scores.nll.tolist() == [2e4, 0.0]
    assert scores.rank.tolist() == [2, 1]


@pytest.mark.parametrize("size", [1, 64, 203, 500])
def test_batches_change_nothing_and_trace_once(size):
    traces = []

    @jax.jit
    def predict(x):
        traces.append(x.shape)
        return x["logits"] * 1.0 if isinstance(x, dict) else x * 1.0

    scores = c.score_batches(predict, LOGITS, LABELS, size)
    assert traces == [(size, 7)]
    for batched, whole in zip(scores, c.score(LOGITS, LABELS), strict=True):
        np.testing.assert_array_equal(batched, whole)


def test_evaluate_takes_pytrees():
    numbers = c.evaluate(lambda x: x["a"] + x["b"], {"a": LOGITS, "b": LOGITS}, LABELS, top_k=3)
    assert list(numbers) == ["accuracy", "top_3_accuracy", "cross_entropy", "calibration_error"]
    assert numbers["accuracy"] == c.accuracy(c.score(LOGITS, LABELS))
    assert all(isinstance(float(value), float) for value in numbers.values())


def test_gap_and_paired_comparison():
    train, test = c.score(LOGITS, np.argmax(LOGITS, 1)), c.score(LOGITS, LABELS)
    gap = c.train_test_gap(train, test)
    assert gap["accuracy"].value == pytest.approx(1 - c.accuracy(test).value)
    assert gap["accuracy"].standard_error == c.accuracy(test).standard_error
    assert gap["cross_entropy"].value < 0

    rounded = c.score(np.round(LOGITS * 2) / 2, LABELS)
    change = c.compare(rounded, test)
    difference = (rounded.rank == 1).astype(float) - (test.rank == 1)
    assert change["accuracy"] == mean(difference)
    assert change["accuracy"].standard_error < (c.accuracy(rounded) - c.accuracy(test)).standard_error
    assert change["cross_entropy"].value == pytest.approx((rounded.nll - test.nll).mean())


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (LOGITS, LABELS[:-1], EvaluationError, r"got \(203, 7\) and \(202,\)"),
        (LOGITS[0], LABELS[:7], EvaluationError, "expected logits"),
        (LOGITS, LABELS + 1, EvaluationError, "integers from 0 to 6"),
        (LOGITS, LABELS * 1.0, EvaluationError, "integers from 0 to 6"),
        ([[0.0, np.nan], [0.0, 1.0]], [0, 1], NonFiniteError, "1 of 2 rows of logits .* first row 0"),
        ([[0.0, 1.0], [0.0, np.inf]], [0, 1], NonFiniteError, "first row 1"),
    ],
)
def test_unusable_predictions_are_refused(logits, labels, error, message):
    with pytest.raises(error, match=message):
        c.score(logits, labels)


@pytest.mark.parametrize(
    ("predict", "inputs", "labels", "size", "message"),
    [
        (lambda x: x, LOGITS[:0], LABELS[:0], 4, "one length above 0"),
        (lambda x: x, LOGITS[:9], LABELS[:10], 4, "10 labels for 9 inputs"),
        (lambda x: x, LOGITS[:9], LABELS[:8], 4, r"got \(1, 7\) and \(0,\)"),
        (lambda x: x[:2], LOGITS, LABELS, 4, "returned 2 rows for a batch of 4"),
        (lambda x: x, LOGITS, LABELS, 0, "batch_size must be at least 1, not 0"),
        (lambda x: x[0], {"a": LOGITS, "b": LABELS[:3]}, LABELS, 4, r"got lengths \[3, 203\]"),
    ],
)
def test_unusable_data_is_refused(predict, inputs, labels, size, message):
    with pytest.raises(EvaluationError, match=message):
        c.score_batches(predict, inputs, labels, size)


def test_estimates():
    assert float(proportion(1, 4)) == 0.25
    assert math.isnan(mean([2.0]).standard_error)
    for empty in (lambda: mean([]), lambda: proportion(0, 0)):
        with pytest.raises(EvaluationError, match="no examples"):
            empty()


def test_coverage_of_the_standard_error():
    """Of many test sets, 68 % give an accuracy within one standard error of the true one."""
    hits = np.random.default_rng(0).binomial(400, 0.9, 4000)
    estimates = [proportion(int(h), 400) for h in hits]
    inside = np.mean([abs(e.value - 0.9) <= e.standard_error for e in estimates])
    assert inside == pytest.approx(0.683, abs=0.04)


def test_bfloat16_logits():
    assert c.score(jnp.asarray(LOGITS, jnp.bfloat16), LABELS).nll.dtype == np.float64
