"""Derivatives through steps of training: by the learning rate, and by the weights that training began with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from every_transform import PARAMS, TRANSFORMS

import modelzip_jax as mz

X = jax.random.normal(jax.random.key(1), (16, 8))
ALWAYS = ("prune, scheduled", "quantize, learned", "cluster, differentiable", "chain of three", "partition")
SMOOTH = ("identity", "prune", "wavelet", "cosines", "shared neurons")
"""Those that round nothing, so that the derivative is a limit of differences, and not by definition."""


def loss(params):
    hidden = jnp.tanh(X @ params["a"]["kernel"] + params["a"]["bias"])
    return jnp.mean(jnp.square(hidden @ params["half"]["kernel"].astype(jnp.float32) - 1.0))


def after_two_steps(name):
    def final(rate, params):
        tx = mz.wrap(optax.sgd(rate, momentum=0.9), TRANSFORMS[name], offsets_tx=optax.sgd(rate))
        params, state = mz.start(tx, params)
        for _ in range(2):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return loss(params)

    return final


@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in TRANSFORMS]
)
def test_finite_by_learning_rate_and_first_weights(name):
    rate, params = jax.jit(jax.grad(after_two_steps(name), (0, 1)))(0.05, PARAMS)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((rate, params)))
    assert rate != 0
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), PARAMS
    )
    assert np.any(params["a"]["bias"] != 0)  # which no transform encodes


@pytest.mark.parametrize("name", SMOOTH)
def test_equal_to_differences(name):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)
    final = jax.jit(after_two_steps(name))
    found = jax.grad(after_two_steps(name))(0.05, params)
    difference = (final(0.05 + 1e-3, params) - final(0.05 - 1e-3, params)) / 2e-3
    np.testing.assert_allclose(found, difference, rtol=2e-2)
