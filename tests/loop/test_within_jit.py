"""`init` within somebody's jit, over parameters that are its arguments or that it closes over.

Where values cannot be read on the host, as on an accelerator, other code computes: both kinds of code are run.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax import concrete

RNG = np.random.default_rng(0)
TRANSFORMS = {
    "prune": mz.prune(sparsity=0.5),
    "global": mz.prune(sparsity=mz.schedules.cubic(0.5, begin=0, end=9), allocation="global"),
    "at most": mz.prune(allocation=mz.allocation.at_most(params=100)),
    "rigl": mz.rigl(sparsity=0.5, every=2, end=9),
    "quantize": mz.quantize(4, axis=-1),
    "groups": mz.quantize(4, granularity="group", group_size=4),
    "squared error": mz.quantize(3, range="mse", axis=-1),
    "learned": mz.quantize(4, learned=True, axis=-1),
    "one step": mz.wavelets.quantize_step(0.1, bits=8),
    "cluster": mz.cluster(4),
    "wavelet": mz.wavelet("haar", 2),
    "chain": mz.chain(mz.prune(sparsity=0.5), mz.quantize(4, axis=-1)),
}


@pytest.fixture(params=["host", "accelerator"])
def device(request, monkeypatch):
    if request.param == "accelerator":
        monkeypatch.setattr(concrete, "_default_device", lambda: types.SimpleNamespace(platform="gpu"))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_init_gives_the_same_weights_within_jit(name):
    params = jax.tree.map(
        jnp.asarray, {"kernel": RNG.normal(size=(8, 16)).astype("f4"), "bias": np.zeros(16, "f4")}
    )
    tx = mz.wrap(optax.adam(1e-3), mz.only("kernel", TRANSFORMS[name]))

    def start(params):
        return mz.start(tx, params)[0]

    expected = start(params)
    for found in (jax.jit(start)(params), jax.jit(lambda: start(params))()):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_is_not_finite_is_found_within_jit(name):
    params = {"kernel": jnp.full((8, 16), jnp.nan)}
    tx = mz.wrap(optax.adam(1e-3), TRANSFORMS[name])
    with pytest.raises(mz.errors.NonFiniteError, match="kernel"):
        jax.jit(lambda: tx.init(params))()
