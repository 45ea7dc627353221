"""Sparse training obeys the laws on half precision, scalars, empty leaves and `nnx.State`, alone and in chains."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import modelzip_jax as mz

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype("f4")


MIXED = {
    "kernel": normal(6, 8),
    "bf16": jnp.asarray(normal(6, 4), jnp.bfloat16),
    "f16": jnp.asarray(normal(8), jnp.float16),
    "scale": np.float32(0.3),
    "none": np.zeros((0, 4), "f4"),
}
TREES = {
    "mixed": MIXED,
    "scalar alone": {"scale": np.float32(0.3)},
    "empty alone": {"none": np.zeros((0, 4), "f4")},
    "nothing": {},
    "nnx": nnx.state(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Param),
}
OPTIONS = {"sparsity": 0.5, "every": 1, "end": 3, "fraction": 0.6}
METHODS = {
    "rigl": mz.rigl(**OPTIONS),
    "sparse evolution": mz.sparse_evolution(**OPTIONS, allocation="global"),
    # Scores with a memory, both of them.
    "regrow": mz.regrow(
        mz.scores.fisher(0.9), drop=mz.scores.movement(), first=mz.scores.magnitude(), **OPTIONS
    ),
}


@pytest.mark.parametrize(
    "tree", [pytest.param(t, marks=() if t == "nothing" else pytest.mark.slow) for t in sorted(TREES)]
)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_laws(method, tree):
    mz.testing.check_laws(METHODS[method], TREES[tree], steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_laws_before_quantization(method):
    mz.testing.check_laws(mz.chain(METHODS[method], mz.quantize(4, learned=True)), MIXED, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_laws_of_wavelet_coefficients(method):
    t = mz.chain(mz.wavelet("haar", 1, -1), METHODS[method], mz.quantize(4))
    mz.testing.check_laws(t, {"kernel": MIXED["kernel"], "bf16": MIXED["bf16"]}, steps=2, ulp=8)
