"""Fisher information from one gradient a batch: on average that of one an example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import TraceError


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_both_have_the_same_mean(likelihood):
    w = jax.random.normal(jax.random.key(0), (5, 4)) / 2
    batches = [jax.random.normal(jax.random.key(i), (8, 5)) for i in range(400)]

    def find(**how):
        return mz.trace.fisher_information(
            lambda p, x: x @ p, w, batches, likelihood=likelihood, **how
        ).diagonal

    examples, sums = np.asarray(find()), np.asarray(find(gradients="batches"))
    np.testing.assert_allclose(sums, examples, rtol=0.3)
    np.testing.assert_allclose(sums.mean(), examples.mean(), rtol=0.04)


def test_factors_of_outputs_alone():
    params, x = {"w": jnp.ones((3, 2)), "v": jnp.ones((2, 4))}, jax.random.normal(jax.random.key(0), (5, 3))

    def model(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    both, outputs = (
        mz.trace.fisher_information(model, params, [x], kinds=(kind,)) for kind in ("kronecker", "outputs")
    )
    for name in params:
        assert outputs[name].factors[0].inputs is None
        np.testing.assert_array_equal(outputs[name].factors[0].outputs, both[name].factors[0].outputs)
    with pytest.raises(mz.errors.LeafError, match="no Fisher information of its shape"):
        mz.sensitivity.loss_increase(outputs).prepare(params)("w", np.ones((3, 2)), np.zeros((3, 2)))


def test_of_given_labels_they_differ_and_are_refused():
    batch = (jnp.ones((2, 3)), jnp.zeros((2, 1)))
    for how in ({"gradients": "batches"}, {"gradients": "all"}):
        with pytest.raises(TraceError, match="gradients="):
            mz.trace.fisher_information(lambda p, x: x @ p, jnp.ones((3, 1)), [batch], labels="given", **how)
