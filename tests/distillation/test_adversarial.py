"""Losses of the discriminator's game: values and gradients in float64, optima, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax import distillation
from modelzip_jax.errors import DistillationError

RNG = np.random.default_rng(0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_the_discriminators_loss_and_gradient(mu):
    s, t = RNG.normal(size=5) * 3, RNG.normal(size=7) * 3
    loss = lambda s, t: distillation.discriminator_loss(s, t, adversarial_samples=mu)  # noqa: E731
    value, (ds, dt) = jax.value_and_grad(loss, (0, 1))(jnp.float32(s), jnp.float32(t))
    expected = -np.log(sigmoid(t)).mean() - np.log(sigmoid(-s)).mean() - mu * np.log(sigmoid(s)).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(ds, (sigmoid(s) - mu * sigmoid(-s)) / 5, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dt, -sigmoid(-t) / 7, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("saturating", [False, True])
def test_the_students_loss_and_gradient(saturating):
    s = RNG.normal(size=6) * 3
    value, grad = jax.value_and_grad(lambda s: distillation.adversarial_loss(s, saturating=saturating))(
        jnp.float32(s)
    )
    expected, slope = (
        (np.log(sigmoid(-s)), -sigmoid(s)) if saturating else (-np.log(sigmoid(s)), -sigmoid(-s))
    )
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(grad, slope / 6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_the_best_discriminator_is_the_one_that_is_stated(mu):
    teacher, student = np.array([5, 1, 2]), np.array([1, 3, 4])  # How often each of three features is seen.
    t, s = teacher / teacher.sum(), student / student.sum()
    best = (t + mu * s) / (t + s + mu * s)

    def loss(scores):
        return distillation.discriminator_loss(
            jnp.repeat(scores, student, total_repeat_length=8),
            jnp.repeat(scores, teacher, total_repeat_length=8),
            adversarial_samples=mu,
        )

    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(np.log(best / (1 - best)))), 0, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.lists(st.integers(-3, 3), min_size=1, max_size=8)
)
def test_auc_counts_pairs(student, teacher):
    pairs = [0.5 * (np.sign(t - s) + 1) for s in student for t in teacher]
    found = distillation.discriminator_auc(jnp.float32(student), jnp.float32(teacher))
    np.testing.assert_allclose(found, np.mean(pairs), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("value", [-1e4, 0.0, 1e4])
def test_extreme_scores_of_one_example_are_finite(value, dtype):
    scores = jnp.full((1,), value, dtype)
    for loss in (
        lambda s: distillation.discriminator_loss(s, -s, adversarial_samples=1.0),
        distillation.adversarial_loss,
        lambda s: distillation.adversarial_loss(s, saturating=True),
    ):
        found, grad = jax.jit(jax.value_and_grad(loss))(scores)
        assert found.dtype == jnp.float32
        assert np.isfinite(found)
        assert np.isfinite(np.float32(grad)).all()


def test_penalties_are_of_kernels():
    params = {
        "a": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([7.0])},
        "b": {"kernel": jnp.array([[3.0]])},
    }
    assert float(distillation.weight_penalty(params, "l1")) == 6
    assert float(distillation.weight_penalty(params, "l2")) == 14
    np.testing.assert_allclose(jax.grad(distillation.weight_penalty)(params)["a"]["kernel"], [[2.0, -4.0]])
    assert float(distillation.weight_penalty({"bias": jnp.ones(2)}, "l2")) == 0


D, KEY = distillation, jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: D.adversarial_loss(jnp.arange(3)), "student_scores.*int32"),
        (lambda: D.discriminator_loss(jnp.ones(3), jnp.ones(0)), "teacher_scores"),
        (lambda: D.discriminator_loss(jnp.ones(3), jnp.ones(3), adversarial_samples=-1), "adversarial_samples"),
        (lambda: D.weight_penalty({}, "l3"), "l3"),
        (lambda: D.discriminator(l2=float("nan")), "l2"),
        (lambda: D.discriminator(widths=[0]).init(KEY, jnp.ones((2, 3)), jnp.ones((2, 3))), "width"),
        (lambda: D.perceptron(D.init_perceptron(KEY, 3, [], 1), jnp.ones((2, 4))), "4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(call, word):
    with pytest.raises(DistillationError, match=word):
        call()
