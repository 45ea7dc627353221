import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import ConfigError, TransformError, WrapError
from modelzip_jax.loop.averaging import mean_of, with_average
from modelzip_jax.training.config import base
from modelzip_jax.training.optimizers import learning_rate, optimizer, sgdr

PARAMS = {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3), "bias": jnp.array([1.0, -2.0, 3.0])}


def loss(params):
    return sum(jnp.sum((x - 0.3) ** 2) for x in jax.tree.leaves(params))


def train(tx, params, steps, state=None):
    if state is None:
        params, state = (
            mz.start(tx, params) if "WrapState" in str(tx.init(params)) else (params, tx.init(params))
        )
    visited = []
    for _ in range(steps):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        visited.append(params)
    return params, state, visited


def test_average_is_the_bias_corrected_mean_of_what_was_visited():
    decay = 0.8
    params, state, visited = train(with_average(optax.sgd(0.05), decay), PARAMS, 7)
    weights = np.array([decay ** (7 - i) for i in range(1, 8)])
    for name in PARAMS:
        expected = np.tensordot(weights / weights.sum(), np.stack([np.float64(v[name]) for v in visited]), 1)
        np.testing.assert_allclose(mean_of(state, params)[name], expected, rtol=2e-6)


def test_average_before_any_step_is_the_start():
    tx = with_average(optax.sgd(0.1), 0.9)
    np.testing.assert_array_equal(mean_of(tx.init(PARAMS), PARAMS)["kernel"], PARAMS["kernel"])


def test_the_average_of_chosen_layers():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    tx = mz.wrap(with_average(optax.sgd(1.0), 0.5, only="a"), mz.identity())
    params, state = mz.start(tx, params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    averaged, _ = mz.averaged(state, params)
    np.testing.assert_allclose(averaged["a"], -(3 + 2 / 2 + 1 / 4) / (1 + 1 / 2 + 1 / 4))
    np.testing.assert_array_equal(averaged["b"], [-3.0, -3.0])
    with pytest.raises(mz.errors.PatternError):
        with_average(optax.sgd(1.0), 0.5, only="c").init(params)


def test_a_config_chooses_the_layers_that_are_averaged():
    config = base().optimizer
    config.name, config.average, config.averaged, config.schedule.name = "sgd", 0.9, ("kernel",), "constant"
    params, state, _ = train(optimizer(config, 4), PARAMS, 4)
    mean = mean_of(state, params)
    assert not np.array_equal(mean["kernel"], params["kernel"])
    np.testing.assert_array_equal(mean["bias"], params["bias"])


def test_average_of_latents_is_decoded_and_packed():
    zipper = mz.only("kernel", mz.chain(mz.prune(sparsity=0.5), mz.quantize(bits=3)))
    tx = mz.wrap(with_average(optax.sgd(0.05), 0.7), zipper)
    params, state, _ = train(tx, PARAMS, 5)
    new, adopted = mz.averaged(state, params)
    assert len(np.unique(new["kernel"])) <= 7
    assert np.sum(np.asarray(new["kernel"]) == 0) >= 6
    assert not np.array_equal(new["bias"], params["bias"])
    packed = mz.unpack(mz.pack(adopted, new))
    jax.tree.map(np.testing.assert_array_equal, packed, new)


def test_average_around_wrap_is_refused():
    tx = with_average(mz.wrap(optax.sgd(0.1), mz.prune(sparsity=0.5)), 0.9)
    with pytest.raises(WrapError, match="inside"):
        mz.averaged(tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1, 2])
def test_decay_outside_its_range(decay):
    with pytest.raises(TransformError, match="decay"):
        with_average(optax.sgd(0.1), decay)


def test_sgdr_is_the_papers_formula():
    schedule = sgdr(0.5, first=10, steps=70, mult=2.0, floor=0.1)
    begins, lengths = (0, 10, 30), (10, 20, 40)
    for begin, length in zip(begins, lengths, strict=True):
        for t in range(length):
            expected = 0.1 + 0.4 * (1 + np.cos(np.pi * t / length)) / 2
            assert float(schedule(begin + t)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["constant", "cosine", "sgdr", "step"])
def test_schedules_warm_up_and_begin_at_the_peak(name):
    config = base().optimizer.schedule
    config.name, config.peak, config.warmup, config.first = name, 0.2, 10, 20
    rate = learning_rate(config, 110)
    assert float(rate(0)) == 0.0
    assert float(rate(5)) == pytest.approx(0.1)
    assert float(rate(10)) == pytest.approx(0.2)
    if name == "step":
        assert float(rate(61)) == pytest.approx(0.02)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
@pytest.mark.parametrize("extra", [{}, {"clip": 1.0}, {"average": 0.9}])
def test_every_optimizer_trains_wrapped_and_alone(name, extra):
    config = base().optimizer
    config.name, config.schedule.peak, config.weight_decay = name, 0.05, 1e-4
    config.update(extra)
    for wrap in (lambda tx: tx, lambda tx: mz.wrap(tx, mz.only("kernel", mz.quantize(bits=4)))):
        params, _, visited = train(wrap(optimizer(config, 100)), PARAMS, 25)
        assert float(loss(params)) < float(loss(visited[0])) * 0.9


def test_weight_decay_spares_biases():
    config = base().optimizer
    config.name, config.weight_decay, config.schedule.peak = "sgd", 0.5, 0.1
    config.momentum = 0.0
    tx = optimizer(config, 10)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["bias"], 0)
    np.testing.assert_allclose(updates["kernel"], -0.05 * PARAMS["kernel"], rtol=1e-6)


def test_unknown_names_are_answered_with_the_nearest():
    config = base().optimizer
    config.name = "adamx"
    with pytest.raises(ConfigError, match="did you mean 'adamw'"):
        optimizer(config, 10)
    config.name, config.schedule.name = "adamw", "cosinus"
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        optimizer(config, 10)
