"""Fewer bits out of more: the upper half of the codes, fitted anew."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.packed import is_packed

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(48, 5)).astype(np.float32), "bias": np.zeros(5, np.float32)}
KINDS = {
    "symmetric": mz.quantize(8),
    "asymmetric groups": mz.quantize(8, symmetric=False, granularity="group", group_size=20, axis=-1),
    "five bits": mz.quantize(5, granularity="tensor"),
    "learned": mz.quantize(8, learned=True),
    "halving": mz.quantize(8, grid=mz.grids.halving()),
    "quantile": mz.quantize(6, grid=mz.grids.quantile(), granularity="tensor"),
    "masked": mz.chain(mz.prune(sparsity=0.5), mz.quantize(8)),
    "masked levels": mz.chain(mz.prune(sparsity=0.5), mz.quantize(8, grid=mz.grids.halving())),
    "wavelet": mz.chain(mz.wavelet("haar"), mz.quantize(8)),
}


FEW = ("symmetric", "asymmetric groups", "halving", "masked levels")


def errors(a, b):
    return float(np.sum((np.asarray(a["kernel"]) - np.asarray(b["kernel"])) ** 2))


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_a_narrowed_model_is_near_saved_and_trained_on(name, tmp_path):
    packed = mz.compress(PARAMS, mz.only("kernel", KINDS[name]))
    small = mz.narrow(packed, 4)
    assert small.nbytes < packed.nbytes
    wide, narrow = mz.unpack(packed), mz.unpack(small)
    # Dropping four bits of eight leaves 16 values: hardly worse than quantizing to 16 of them.
    kernel = {"kernel": wide["kernel"]}
    plain = mz.decoded(kernel, mz.only("kernel", mz.quantize(4, symmetric=False, axis=-1)))
    assert errors(narrow, wide) < 3.0 * errors(plain, wide)
    mz.save(tmp_path / "small.mz", small)
    again = mz.load(tmp_path / "small.mz")
    assert again.transform == small.transform
    transform, encoded = mz.resume(again)
    np.testing.assert_allclose(transform.decode(encoded)["kernel"], narrow["kernel"], rtol=0, atol=1e-6)
    tx = mz.wrap(optax.sgd(0.1), again)
    state = tx.init(jax.tree.map(jnp.asarray, mz.unpack(again)))
    params = mz.params(state, mz.unpack(again))
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
    assert np.all(np.isfinite(updates["kernel"]))


def test_the_upper_half_of_each_code_is_the_smaller_code():
    packed = mz.compress(PARAMS, mz.only("kernel", mz.quantize(8))).params["kernel"]
    small = mz.narrow(mz.compress(PARAMS, mz.only("kernel", mz.quantize(8))), 4).params["kernel"]
    np.testing.assert_array_equal(small.codes.unpack_host(), packed.codes.unpack_host() >> 4)
    np.testing.assert_array_equal(small.codes.words, packed.codes.words[4:])


def test_steps_are_those_of_least_squares():
    packed = mz.compress(PARAMS, mz.only("kernel", mz.quantize(8, granularity="tensor")))
    small = mz.narrow(packed, 3).params["kernel"]
    x = small.codes.unpack_host().astype(np.float64) - 4
    y = np.asarray(mz.unpack(packed)["kernel"], np.float64).ravel()
    slope, intercept = np.polyfit(x, y, 1)
    np.testing.assert_allclose(small.step[0, 0], slope, rtol=1e-5)
    np.testing.assert_allclose(-small.step[0, 0] * small.zero[0, 0], intercept, atol=1e-5)


def test_zeros_under_a_mask_stay():
    packed = mz.narrow(mz.compress(PARAMS, mz.only("kernel", KINDS["masked"])), 2)
    assert np.mean(np.asarray(mz.unpack(packed)["kernel"]) == 0) == 0.5


@pytest.mark.parametrize("bits", [0, 8, 4.0, True])
def test_wrong_bits(bits):
    with pytest.raises(mz.errors.TransformError, match="from 1 to 7"):
        mz.narrow(mz.compress(PARAMS, mz.only("kernel", mz.quantize(8))), bits)


def test_nothing_to_narrow():
    with pytest.raises(mz.errors.TransformError, match="no codes of more than 4"):
        mz.narrow(mz.compress(PARAMS, mz.only("kernel", mz.quantize(4))), 4)
    with pytest.raises(mz.errors.TransformError, match="takes a packed model"):
        mz.narrow(PARAMS, 4)
    leaves = jax.tree.leaves(mz.compress(PARAMS, mz.only("kernel", mz.quantize(4))).params, is_leaf=is_packed)
    assert all(map(is_packed, leaves))
