"""Weak labels against formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax import distillation
from modelzip_jax.errors import DistillationError
from modelzip_jax.training.data import subset

RNG = np.random.default_rng(0)


def probabilities(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


WEIGHTS = {
    "one": lambda p: np.ones(len(p)),
    "probability": lambda p: np.sort(p)[:, -1],
    "margin": lambda p: np.sort(p)[:, -1] - np.sort(p)[:, -2],
    "entropy": lambda p: 1.0 + np.sum(p * np.log(p), axis=-1) / np.log(p.shape[-1]),
}


@pytest.mark.parametrize("weighting", list(WEIGHTS))
@pytest.mark.parametrize(("temperature", "threshold"), [(1.0, 0.0), (2.5, 0.4)])
def test_labels_and_weights_are_their_formulas(weighting, temperature, threshold):
    logits = RNG.normal(size=(60, 5)) * 3.0
    p = probabilities(logits / temperature)
    weak = jax.jit(
        lambda z: distillation.pseudo_label(
            z, weighting=weighting, temperature=temperature, threshold=threshold
        )
    )(jnp.asarray(logits, jnp.float32))
    expected = np.where(p.max(axis=-1) >= threshold, WEIGHTS[weighting](p), 0.0)
    np.testing.assert_array_equal(weak.labels, p.argmax(axis=-1))
    np.testing.assert_allclose(weak.weights, expected, rtol=1e-4, atol=1e-5)
    assert threshold == 0.0 or 0 < np.sum(expected == 0.0) < 60


@pytest.mark.parametrize("weighting", list(WEIGHTS))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_are_finite_and_between_0_and_1(weighting, dtype):
    logits = jnp.array([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [-1e4, -1e4, -1e4]], dtype)
    weak = distillation.pseudo_label(logits, weighting=weighting)
    assert np.all((np.asarray(weak.weights) >= 0.0) & (np.asarray(weak.weights) <= 1.0))
    assert distillation.pseudo_label(jnp.zeros((2, 1)), weighting=weighting).weights.tolist() == [1.0, 1.0]


def test_labels_that_are_given_stay():
    truth = RNG.integers(0, 4, 400).astype(np.int32)
    known = subset({"labels": truth, "index": np.arange(400)}, 0.1, seed=2)["index"]
    given_labels = distillation.hide_labels(truth, known)
    assert np.sum(given_labels >= 0) == 40
    weak = distillation.pseudo_label(jnp.zeros((400, 4)), given_labels, weighting="margin")
    np.testing.assert_array_equal(np.asarray(weak.labels)[known], truth[known])
    assert set(np.asarray(weak.weights)[known]) == {1.0}
    assert np.sum(weak.weights) == 40.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 6), st.booleans())
def test_the_weighted_loss_and_its_gradient(seed, batch, classes, normalize):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(batch, classes)) * 4.0, rng.integers(-1, classes, batch)
    weights = rng.choice([0.0, 0.3, 1.0], batch)
    effective = np.where(labels >= 0, weights, 0.0)
    p, rows = probabilities(logits), np.arange(batch)
    whole = max(effective.sum(), 1e-30) if normalize else batch
    value = np.sum(effective * -np.log(p[rows, labels])) / whole
    gradient = effective[:, None] * (p - np.eye(classes)[labels]) / whole
    loss = lambda z: distillation.weighted_cross_entropy(  # noqa: E731
        z, jnp.asarray(labels), jnp.asarray(weights, jnp.float32), normalize=normalize
    )
    found, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slope, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_extreme_logits_and_no_weight_stay_finite(normalize, weight):
    logits = jnp.array([[1e4, -1e4]], jnp.bfloat16)
    loss = lambda z, w: distillation.weighted_cross_entropy(z, jnp.array([1]), w, normalize=normalize)  # noqa: E731
    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(logits, jnp.array([weight]))
    np.testing.assert_allclose(value, 2e4 * weight, rtol=1e-2)
    assert np.isfinite(np.asarray(grads[0], np.float32)).all()
    assert grads[1].tolist() == [0.0]


def test_noise_by_hand():
    given_labels = np.array([-1, -1, -1, -1, 2])
    weak = distillation.WeakLabels(jnp.array([0, 1, 2, 2, 2]), jnp.array([0.8, 0.2, 0.0, 0.5, 1.0]))
    noise = distillation.label_noise(weak, np.array([0, 0, 1, 2, 2]), 3, given_labels)
    assert noise["noise"] == pytest.approx(1 / 3)
    assert noise["weighted_noise"] == pytest.approx(0.2 / 1.5)
    assert noise["coverage"] == 0.75
    assert noise["confusion"].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    nothing = distillation.label_noise(weak, np.array([0, 0, 1, 2, 2]), 3, np.zeros(5, int))
    assert np.isnan([nothing["noise"], nothing["weighted_noise"], nothing["coverage"]]).all()


def test_weights_of_a_calibrated_teacher_lower_the_noise():
    p = RNG.dirichlet(np.full(4, 0.7), 4000)
    truth = np.array([RNG.choice(4, p=row) for row in p])
    weak = distillation.pseudo_label(jnp.asarray(np.log(p + 1e-12), jnp.float32), weighting="margin")
    noise = distillation.label_noise(weak, truth, 4)
    wrong, margin = 1.0 - p.max(axis=-1), WEIGHTS["margin"](p)
    assert noise["noise"] == pytest.approx(wrong.mean(), abs=0.03)
    assert noise["weighted_noise"] == pytest.approx(np.average(wrong, weights=margin), abs=0.03)
    assert noise["weighted_noise"] < noise["noise"] - 0.05


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda z: distillation.pseudo_label(z[0]), r"\(3,\)"),
        (lambda z: distillation.pseudo_label(z.astype(int)), "int"),
        (lambda z: distillation.pseudo_label(z, np.zeros(3, int)), r"\(2,\).*\(3,\)"),
        (lambda z: distillation.pseudo_label(z, np.zeros(2)), "float"),
        (lambda z: distillation.pseudo_label(z, weighting="sure"), "sure"),
        (
            lambda z: distillation.pseudo_label(z, temperature=0.0),
            "temperature must be a positive finite number, not 0",
        ),
        (
            lambda z: distillation.pseudo_label(z, threshold=float("nan")),
            "threshold must be a finite number of at least 0, not nan",
        ),
        (lambda z: distillation.weighted_cross_entropy(z, np.zeros(3, int), np.ones(2)), r"labels .*\(3,\)"),
        (lambda z: distillation.weighted_cross_entropy(z, np.zeros(2, int), np.ones(2, int)), "weights must"),
        (lambda z: distillation.weighted_cross_entropy(z[0], np.zeros(2, int), np.ones(2)), r"\(3,\)"),
        (lambda z: distillation.hide_labels([0.5], []), "float64"),
        (lambda z: distillation.hide_labels([0, -1], []), "at least 0"),
        (lambda z: distillation.hide_labels([0, 1], [2]), "0 to 1"),
        (lambda z: distillation.label_noise(distillation.pseudo_label(z), [0], 3), r"truth \(1,\)"),
        (
            lambda z: distillation.label_noise(distillation.pseudo_label(z), [0, 3], 3),
            "truth must be integers",
        ),
    ],
)
def test_bad_calls_are_named(call, match):
    with pytest.raises(DistillationError, match=match):
        call(jnp.zeros((2, 3)))
