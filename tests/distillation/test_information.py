"""Bounds on mutual information: float64 references, laws, and Gaussians whose information is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip_jax import distillation
from modelzip_jax.errors import DistillationError

RNG = np.random.default_rng(0)
SCORES = st.integers(2, 6).flatmap(
    lambda n: hnp.arrays(np.float32, (n, n), elements=st.floats(-1e4, 1e4, width=32))
)


def log_mean(x, axis=None):
    top = x.max(axis=axis, keepdims=True)
    return np.log(np.exp(x - top).mean(axis=axis)) + top.reshape(np.shape(x.max(axis=axis)))


def info_nce_reference(x):
    return (np.diagonal(x) - log_mean(x, axis=1)).mean()


def donsker_varadhan_reference(x):
    return np.diagonal(x).mean() - log_mean(x[~np.eye(len(x), dtype=bool)])


BOUNDS = [
    (distillation.info_nce, info_nce_reference),
    (distillation.donsker_varadhan, donsker_varadhan_reference),
]


@pytest.mark.parametrize(("bound", "reference"), BOUNDS)
def test_values_and_gradients(bound, reference):
    x, h = RNG.normal(size=(5, 5)) * 2, 1e-5
    value, grad = jax.jit(jax.value_and_grad(bound))(jnp.float32(x))
    np.testing.assert_allclose(value, reference(x), rtol=1e-5)
    units = np.eye(25).reshape(25, 5, 5)
    slopes = [(reference(x + h * e) - reference(x - h * e)) / (2 * h) for e in units]
    np.testing.assert_allclose(grad, np.reshape(slopes, (5, 5)), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(SCORES)
def test_info_nce_is_at_most_the_log_of_the_batch(scores):
    assert float(distillation.info_nce(jnp.asarray(scores))) <= math.log(len(scores)) + 1e-6


@settings(deadline=None, max_examples=30)
@given(SCORES, st.integers(0, 5))
def test_bounds_do_not_depend_on_order_or_constants(scores, seed):
    order = np.random.default_rng(seed).permutation(len(scores))
    scale = max(1.0, float(np.abs(scores).max()))
    for bound, shift in [
        (distillation.info_nce, 0.01 * np.arange(len(scores))[:, None]),
        (distillation.donsker_varadhan, 0.5),
    ]:
        value = float(bound(jnp.asarray(scores)))
        for other in (scores[order][:, order], scores + np.float32(shift)):
            np.testing.assert_allclose(bound(jnp.asarray(other)), value, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_corrected_gradient_divides_by_the_moving_average(decay):
    x, old = RNG.normal(size=(4, 4)), 0.3
    bound = lambda s: distillation.corrected_donsker_varadhan(s, jnp.float32(old), decay)  # noqa: E731
    (value, new), grad = jax.value_and_grad(bound, has_aux=True)(jnp.float32(x))
    others = ~np.eye(4, dtype=bool)
    average = decay * np.exp(old) + (1 - decay) * np.exp(x[others]).mean()
    np.testing.assert_allclose(value, donsker_varadhan_reference(x), rtol=1e-5)
    np.testing.assert_allclose(new, np.log(average), rtol=1e-5)
    np.testing.assert_allclose(grad, np.eye(4) / 4 - others * np.exp(x) / 12 / average, rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_extreme_scores_are_finite(scale, dtype):
    for bound in (
        distillation.info_nce,
        distillation.donsker_varadhan,
        lambda s: distillation.corrected_donsker_varadhan(s, jnp.float32(0.0))[0],
    ):
        for n in (2, 5):
            value, grad = jax.value_and_grad(bound)(scale * jnp.eye(n, dtype=dtype))
            assert value.dtype == jnp.float32
            assert np.isfinite(value)
            assert np.isfinite(np.float32(grad)).all()
    assert float(distillation.info_nce(jnp.full((1, 1), scale, dtype))) == 0


def correlated(key, shape, rho):
    x, noise = jax.random.normal(key, (2, *shape))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def known(rho, dimensions=1):
    return -0.5 * dimensions * math.log(1 - rho**2)


def log_ratio(x, y, rho):
    """log p(y | x) / p(y) of every pair: the score at which both bounds are tight."""
    y = y[:, 0][None]
    return -0.5 * (y - rho * x) ** 2 / (1 - rho**2) + 0.5 * y**2 + known(rho)


@pytest.mark.parametrize("rho", [0.3, 0.8, 0.95])
def test_bounds_reach_the_information_of_gaussians_by_the_best_score(rho):
    keys = jax.random.split(jax.random.key(1), 20)
    estimates = {}
    for n in (8, 512):
        scores = [log_ratio(*correlated(key, (n, 1), rho), rho) for key in keys]
        estimates[n] = np.array([[float(bound(s)) for bound, _ in BOUNDS] for s in scores])
    mean, error = estimates[512].mean(axis=0), estimates[512].std(axis=0) / math.sqrt(20)
    np.testing.assert_allclose(mean, known(rho), atol=float(4 * error.max()) + 0.01)
    few = estimates[8].mean(axis=0)[0]
    assert few < mean[0] <= known(rho) + 4 * error[0]


@pytest.mark.parametrize("make", [distillation.info_nce_critic, distillation.donsker_varadhan_critic])
def test_trained_critics_come_near_and_stay_below(make):
    rho, shape, critic, tx = 0.8, (128, 2), make(16, [32]), optax.adam(3e-3)
    x, y = correlated(jax.random.key(0), shape, rho)
    params, memory = critic.init(jax.random.key(1), x, y)

    def step(carry, key):
        params, memory, opt_state = carry
        s, t = correlated(key, shape, rho)

        def loss_of(params):
            output = critic.critic_loss(params, memory, s, t)
            return output.loss, output

        grads, output = jax.grad(loss_of, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), output.memory, opt_state), None

    keys = jax.random.split(jax.random.key(2), 1000)
    (params, memory, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, memory, tx.init(params)))
    held = jax.random.split(jax.random.key(3), 40)
    nats = [critic.critic_loss(params, memory, *correlated(key, shape, rho)).metrics["nats"] for key in held]
    mean, error = float(np.mean(nats)), float(np.std(nats) / math.sqrt(40))
    assert 0.75 * known(rho, 2) < mean < known(rho, 2) + 3 * error


def test_vid_equals_its_gaussian_in_float64():
    s, t, raw = RNG.normal(size=(6, 4, 3)), RNG.normal(size=(6, 4, 3)), RNG.normal(size=3)
    value, (ds, dt, dr) = jax.value_and_grad(distillation.variational_information, (0, 1, 2))(
        jnp.float32(s), jnp.float32(t), jnp.float32(raw)
    )
    variance = np.log1p(np.exp(raw)) + 1e-5
    expected = 0.5 * ((s - t) ** 2 / variance + np.log(2 * np.pi * variance)).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(ds, (s - t) / variance / t.size, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(dt, 0)
    mse = ((s - t) ** 2).mean(axis=(0, 1))
    slope = 0.5 * (1 / variance - mse / variance**2) / 3 / (1 + np.exp(-raw))
    np.testing.assert_allclose(dr, slope, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.01, 0.99), st.integers(0, 9))
def test_vid_is_least_at_the_mean_squared_error_and_then_gives_the_information(rho, seed):
    s, t = correlated(jax.random.key(seed), (4096, 1), rho)
    errors = np.mean((np.float64(t) - rho * np.float64(s)) ** 2)
    raw = distillation.init_variance(1, float(errors))
    loss, slope = jax.value_and_grad(lambda r: distillation.variational_information(rho * s, t, r))(raw)
    np.testing.assert_allclose(loss, 0.5 * (1 + np.log(2 * np.pi * errors)), atol=1e-4)
    np.testing.assert_allclose(slope, 0, atol=1e-3)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    np.testing.assert_allclose(entropy - float(loss), known(rho), atol=0.06)


def test_learned_variances_reach_the_closed_form():
    scales = jnp.array([0.1, 1.0, 3.0])
    t = scales * jax.random.normal(jax.random.key(0), (256, 3))
    tx, raw = optax.adam(0.1), distillation.init_variance(3)
    state = tx.init(raw)

    @jax.jit
    def step(raw, state):
        grads = jax.grad(lambda r: distillation.variational_information(jnp.zeros_like(t), t, r))(raw)
        updates, state = tx.update(grads, state, raw)
        return optax.apply_updates(raw, updates), state

    for _ in range(400):
        raw, state = step(raw, state)
    np.testing.assert_allclose(
        distillation.learned_variance(raw), np.mean(np.float64(t) ** 2, axis=0), rtol=0.02
    )


def test_vid_is_finite_at_extremes():
    raw = jnp.array([-1e4, 0.0, 1e4])
    for dtype in (jnp.float32, jnp.bfloat16):
        s, t = jnp.full((1, 3), 1e4, dtype), jnp.full((1, 3), -1e4, dtype)
        value, grads = jax.value_and_grad(distillation.variational_information, (0, 2))(s, t, raw)
        assert value.dtype == jnp.float32
        assert all(np.isfinite(np.float32(x)).all() for x in (value, *grads))


@pytest.mark.parametrize("variance", [1e-4, 0.5, 5.0, 1e3])
def test_variances_begin_as_asked(variance):
    np.testing.assert_allclose(
        distillation.learned_variance(distillation.init_variance(2, variance)), variance, rtol=1e-3
    )


D = distillation


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: D.info_nce(jnp.ones((3, 4))), r"\(3, 4\)"),
        (lambda: D.donsker_varadhan(jnp.ones((1, 1))), "at least 2"),
        (lambda: D.info_nce(jnp.ones((3, 3), int)), "int32"),
        (lambda: D.corrected_donsker_varadhan(jnp.ones((3, 3)), jnp.float32(0), 1.0), "decay"),
        (lambda: D.variational_information(jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.ones(4)), "projector"),
        (lambda: D.variational_information(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(4)), r"init_variance\(3\)"),
        (lambda: D.variational_information(jnp.ones((2, 3), int), jnp.ones((2, 3)), jnp.ones(3)), "student is int32"),
        (lambda: D.init_variance(3, 0.0), "variance"),
        (lambda: D.info_nce_critic(0), "width"),
        (lambda: D.donsker_varadhan_critic(decay=2.0), "decay"),
        (
            lambda: D.info_nce_critic().init(jax.random.key(0), jnp.ones((3, 2)), jnp.ones((4, 2))),
            "in their batch",
        ),
        (
            lambda: D.variational_critic().init(jax.random.key(0), jnp.ones((3, 5, 2)), jnp.ones((3, 4, 2))),
            "projector",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(call, word):
    with pytest.raises(DistillationError, match=word):
        call()
