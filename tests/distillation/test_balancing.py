"""Weights of several losses: formulas in float64, invariances, and a small training run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax import distillation
from modelzip_jax.errors import DistillationError, PatternError

LOSSES = st.lists(st.floats(0.125, 8.0, width=32), min_size=2, max_size=2)


def named(values):
    return {"a": jnp.float32(values[0]), "b": jnp.float32(values[1])}


def vector(tree):
    return np.array([float(tree["a"]), float(tree["b"])])


def run(balance, rows):
    state, update = balance.init(named(rows[0])), jax.jit(balance.update)
    for row in rows:
        state = update(state, named(row))
    return vector(balance.weights(state))


def dwa_reference(rows, temperature, every):
    rows = np.asarray(rows, np.float64)
    epochs = rows[: len(rows) // every * every].reshape(-1, every, 2).mean(axis=1)
    rates = epochs[-1] / epochs[-2] if len(epochs) > 1 else np.ones(2)
    powers = np.exp((rates - rates.max()) / temperature)
    return 2 * powers / powers.sum()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(LOSSES, min_size=1, max_size=7), st.sampled_from([0.5, 2.0, 10.0]), st.sampled_from([1, 2, 3])
)
def test_dwa_equals_its_formula(rows, temperature, every):
    weights = run(distillation.dynamic_weight_average(temperature, every), rows)
    np.testing.assert_allclose(weights, dwa_reference(rows, temperature, every), rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(weights.sum(), 2, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.lists(LOSSES, min_size=3, max_size=5), st.floats(1e-3, 1e3))
def test_dwa_does_not_change_when_a_loss_is_rescaled(rows, scale):
    balance = distillation.dynamic_weight_average(temperature=100.0)
    rescaled = [[scale * a, b] for a, b in rows]
    np.testing.assert_allclose(run(balance, rows), run(balance, rescaled), rtol=1e-3, atol=1e-5)


def test_dwa_is_even_in_the_first_two_epochs():
    balance = distillation.dynamic_weight_average(every=2)
    np.testing.assert_array_equal(run(balance, [[1, 5], [2, 4], [9, 1]]), 1)


@pytest.mark.parametrize(
    "balance",
    [
        distillation.dynamic_weight_average(),
        distillation.uncertainty_weighting(),
        distillation.grad_norm(),
    ],
)
def test_losses_and_gradients_that_have_come_to_zero_leave_weights_finite(balance):
    state, update = balance.init(named([1.0, 1.0])), jax.jit(balance.update)
    for losses in ([0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]):
        state = update(state, named(losses), named([0.0, losses[1]]))
        assert np.isfinite(vector(balance.weights(state))).all()


@given(LOSSES)
@settings(deadline=None, max_examples=20)
def test_uncertainty_starts_where_its_objective_is_least(losses):
    balance = distillation.uncertainty_weighting()
    np.testing.assert_allclose(
        vector(balance.weights(balance.init(named(losses)))), 0.5 / np.array(losses), rtol=1e-5
    )


def test_uncertainty_descends_its_objective():
    start, losses, h = 0.7, np.array([3.0, 0.2]), 1e-6
    balance = distillation.uncertainty_weighting(optax.sgd(1.0), log_variance=start)
    after = vector(balance.update(balance.init(named(losses)), named(losses)).log_variances)
    objective = lambda s: 0.5 * np.exp(-s) * losses + 0.5 * s  # noqa: E731
    slope = (objective(start + h) - objective(start - h)) / (2 * h)
    np.testing.assert_allclose(after, start - slope, rtol=1e-5)


def test_uncertainty_follows_a_loss_that_falls():
    balance = distillation.uncertainty_weighting(optax.adam(0.05))
    state, update = balance.init(named([1.0, 1e4])), jax.jit(balance.update)
    for _ in range(200):
        state = update(state, named([0.25, 1e3]))
    np.testing.assert_allclose(vector(balance.weights(state)), [2.0, 5e-4], rtol=0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_grad_norm_descends_its_objective(alpha):
    norms, first, now, h = np.array([3.0, 0.5]), np.array([2.0, 8.0]), np.array([1.0, 6.0]), 1e-6
    balance = distillation.grad_norm(alpha, optax.sgd(1.0))
    state = balance.update(balance.init(named(first)), named(now), named(norms))
    rates = now / first / np.mean(now / first)
    target = norms.mean() * rates**alpha  # The weights are 1 at the start; a constant of the objective.

    def objective(v):
        weights = 2 * np.exp(v) / np.exp(v).sum()
        return np.abs(weights * norms - target).sum() / norms.mean()

    slope = [(objective(h * e) - objective(-h * e)) / (2 * h) for e in np.eye(2)]
    np.testing.assert_allclose(vector(state.logits), -np.array(slope), rtol=1e-4)


def test_norms_are_those_of_each_gradient():
    params = {"trunk": jnp.array([3.0, 4.0]), "head": jnp.array(2.0)}
    losses_of = lambda p: {"a": p["trunk"] @ p["trunk"], "b": p["head"] * p["trunk"][0]}  # noqa: E731
    _, grads, norms = distillation.balanced_gradients(
        losses_of, params, named([0.5, 3.0]), norms=True, shared="trunk"
    )
    assert (float(norms["a"]), float(norms["b"])) == (10.0, 2.0)
    np.testing.assert_allclose(grads["trunk"], 0.5 * 2 * np.array([3.0, 4.0]) + 3.0 * np.array([2.0, 0.0]))
    np.testing.assert_allclose(grads["head"], 9.0)
    with pytest.raises(PatternError, match="body"):
        distillation.balanced_gradients(losses_of, params, named([1, 1]), norms=True, shared="body")


def test_gradients_come_with_what_the_network_updates_by_itself():
    losses_of = lambda p: (named([1.0, 2.0]) | {"a": p * p}, {"mean": p + 1})  # noqa: E731
    (losses, aux), grads, _ = distillation.balanced_gradients(
        losses_of, jnp.float32(3.0), named([2.0, 1.0]), has_aux=True
    )
    assert (float(losses["a"]), float(aux["mean"]), float(grads)) == (9.0, 4.0, 12.0)


def remaining(balance):
    """What is left, after 300 steps, of two losses of scales 1 and 10^4: a shared layer, two heads, noisy targets."""
    keys = jax.random.split(jax.random.key(0), 8)
    x = jax.random.normal(keys[0], (256, 8))
    targets = [
        jnp.tanh(x @ jax.random.normal(a, (8, 2))) + 0.3 * jax.random.normal(b, (256, 2))
        for a, b in (keys[1:3], keys[3:5])
    ]
    params = {"trunk": jax.random.normal(keys[5], (8, 16)) / 3}
    params |= {n: jax.random.normal(k, (16, 2)) / 4 for n, k in zip("ab", keys[6:], strict=True)}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.02, momentum=0.9))

    def losses_of(p):
        hidden = jnp.tanh(x @ p["trunk"])
        errors = [jnp.mean((hidden @ p[n] - t) ** 2) for n, t in zip("ab", targets, strict=True)]
        return {"a": errors[0], "b": 1e4 * errors[1]}

    def step(carry, _):
        p, opt_state, state = carry
        losses, grads, norms = distillation.balanced_gradients(
            losses_of, p, balance.weights(state), norms=balance.reads_gradients, shared="trunk"
        )
        updates, opt_state = tx.update(grads, opt_state, p)
        return (optax.apply_updates(p, updates), opt_state, balance.update(state, losses, norms)), None

    first = losses_of(params)
    begin = (params, tx.init(params), balance.init(first))
    (last, _, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=300))(begin)
    return vector(losses_of(last)) / vector(first)


@pytest.mark.parametrize("balance", [distillation.fixed_weights(), distillation.dynamic_weight_average()])
def test_neither_fixed_weights_nor_rates_make_up_for_scales(balance):
    a, b = remaining(balance)
    assert a > 4 * b


@pytest.mark.parametrize("balance", [distillation.uncertainty_weighting(), distillation.grad_norm()])
def test_losses_of_scales_1_and_10000_fall_alike(balance):
    a, b = remaining(balance)
    assert max(a, b) < 0.15
    assert 1 / 2 < a / b < 2


def test_fixed_weights_go_by_name():
    balance = distillation.fixed_weights({"b": 0.0, "a": 2.0})
    state = balance.init(named([1.0, 1.0]))
    assert vector(balance.weights(balance.update(state, named([5.0, 5.0])))).tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: distillation.dynamic_weight_average(temperature=0.0), "temperature"),
        (lambda: distillation.dynamic_weight_average(every=0), "every"),
        (lambda: distillation.uncertainty_weighting(log_variance=float("inf")), "log_variance"),
        (lambda: distillation.grad_norm(alpha=-1.0), "alpha"),
        (lambda: distillation.fixed_weights({"a": float("nan")}), r"weights\['a'\]"),
        (lambda: distillation.fixed_weights({"a": 1.0}).init(named([1, 1])), r"\['a', 'b'\]"),
        (lambda: distillation.dynamic_weight_average().init(named([1, 0])), "'b' is 0.0"),
        (lambda: distillation.uncertainty_weighting().init(named([-1, 1])), "'a' is -1.0"),
        (lambda: distillation.grad_norm().init({"a": jnp.ones(3)}), "'a'"),
        (lambda: distillation.fixed_weights().init({"a": jnp.int32(1)}), "int32"),
        (lambda: distillation.fixed_weights().init({}), "no loss"),
        (lambda: distillation.weighted_sum({"a": 1.0}, named([1, 1])), "'b'"),
        (lambda: distillation.balanced_gradients(lambda p: {"a": p}, jnp.float32(1), named([1, 1])), "'b'"),
        (
            lambda: (b := distillation.grad_norm()).update(b.init(named([1, 1])), named([1, 1])),
            "balanced_gradients",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, word):
    with pytest.raises(DistillationError, match=word):
        call()
