"""What is unpacked on the host equals what is unpacked under jit, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.host_unpacking import unpacked_on_host
from modelzip_jax.packed import is_packed

RNG = np.random.default_rng(0)
RECIPES = {
    "quantize": mz.quantize(5),
    "asymmetric groups": mz.quantize(3, granularity="group", group_size=16, symmetric=False),
    "one bit": mz.quantize(1),
    "pruned": mz.prune(sparsity=0.6),
    "pruned, quantized": mz.chain(mz.prune(sparsity=0.6), mz.quantize(4, axis=0)),
    "all pruned but one": mz.chain(mz.prune(sparsity=0.999999), mz.quantize(4, granularity="tensor")),
    "clusters": mz.chain(mz.prune(sparsity=0.5), mz.cluster(8)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", RECIPES)
def test_on_the_host_as_under_jit(name, dtype):
    shapes = [(9, 21), (3, 3, 4, 10), (0, 4)] if name != "clusters" else [(9, 21), (3, 3, 4, 10)]
    params = {str(s): jnp.asarray(RNG.normal(size=s)).astype(dtype) for s in shapes}
    packed = mz.compress(params, RECIPES[name])
    here, jitted = mz.unpack(packed), jax.jit(mz.unpack)(packed)
    for leaf in jax.tree.leaves(packed.params, is_leaf=is_packed):
        assert unpacked_on_host(leaf) is not None
    for key in params:
        assert here[key].dtype == jitted[key].dtype == dtype
        # As bits: -0.0 is not 0.0.
        np.testing.assert_array_equal(
            np.asarray(here[key]).view(np.uint8), np.asarray(jitted[key]).view(np.uint8)
        )


def test_other_kinds_and_tracers_are_left_to_jit():
    packed = mz.compress({"w": RNG.normal(size=(8, 4)).astype("f4")}, mz.chain(mz.wavelet(), mz.quantize(4)))
    assert unpacked_on_host(packed.params["w"]) is None
    np.testing.assert_allclose(mz.unpack(packed)["w"], jax.jit(mz.unpack)(packed)["w"], atol=1e-6)
