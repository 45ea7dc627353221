"""Orthonormal transforms: each is the other's transpose, in both modes, batched and twice."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.wavelets.multilevel import _join_all, _split_all, dwt, idwt

X = jax.random.normal(jax.random.key(0), (3, 13, 10))
G = jax.random.normal(jax.random.key(1), X.shape)


@pytest.mark.parametrize("axes", [(1,), (1, 2)])
@pytest.mark.parametrize("packets", [False, True])
@pytest.mark.parametrize(
    "filter",
    ["haar", "bior4.4", *(pytest.param(f, marks=pytest.mark.slow) for f in ("db4", "sym4", "coif1"))],
)
def test_gradients_are_those_of_the_code_itself(filter, packets, axes):
    for ours, plain in ((dwt, _split_all), (idwt, _join_all)):

        def direct(x, plain=plain):
            return plain(x, axes, filter=filter, levels=2, packets=packets)

        def rule(x, ours=ours):
            return ours(x, filter, 2, axes, packets)

        np.testing.assert_allclose(jax.vjp(rule, X)[1](G)[0], jax.vjp(direct, X)[1](G)[0], atol=5e-6)
        np.testing.assert_allclose(jax.jvp(rule, (X,), (G,))[1], direct(G), atol=5e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("filter", ["haar", "bior4.4", pytest.param("db4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [(9,), (1,), (0, 4), (6, 0), (5, 7)])
def test_any_dtype_and_shape_keeps_both(shape, filter, dtype):
    x = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        for transform in (dwt, idwt):
            for packets in (False, True):
                y, pull = jax.vjp(lambda x: transform(x, filter, 2, -1, packets), x)  # noqa: B023
                assert (y.shape, y.dtype) == (pull(y)[0].shape, pull(y)[0].dtype) == (x.shape, x.dtype)


def test_double_precision_is_as_exact_as_it_says():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (64,), jnp.float64)
        for filter in ("haar", "db4"):
            np.testing.assert_allclose(idwt(dwt(x, filter, 3), filter, 3), x, atol=1e-10)


def test_batched_and_differentiated_twice():
    batched = jax.vmap(lambda x: idwt(x, "db2", 2, (0, 1)), 1, 1)(X)
    np.testing.assert_array_equal(batched, idwt(X, "db2", 2, (0, 2)))
    hessian = jax.hessian(lambda y: jnp.sum(idwt(y, "db2", 1) ** 2))(jnp.ones(6))
    np.testing.assert_allclose(hessian, 2 * np.eye(6), atol=1e-6)


@pytest.mark.parametrize(
    "filter", ["haar", *(pytest.param(f, marks=pytest.mark.slow) for f in ("db2", "bior4.4"))]
)
def test_leaves_without_weights_and_of_every_rank_are_packed(filter):
    rng = np.random.default_rng(0)
    tree = {"w": rng.normal(size=(16, 8)), "bias": rng.normal(size=8), "empty": np.zeros((0, 8)),
            "flat": np.zeros((8, 0)), "scalar": np.float32(2.0), "half": rng.normal(size=(9, 4))}  # fmt: skip
    tree = {k: jnp.asarray(x, jnp.bfloat16 if k == "half" else jnp.float32) for k, x in tree.items()}
    for quantizer in (mz.quantize(4, granularity="tensor"), mz.quantize(4, learned=True)):
        transform = mz.chain(mz.wavelet(filter, 2, -1), quantizer)
        tx = mz.wrap(optax.adam(0.01), transform)
        params, state = mz.start(tx, tree)
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        shipped, exact = mz.unpack(mz.pack(state, params)), mz.params(state, params)
        for name, x in tree.items():
            assert (shipped[name].shape, shipped[name].dtype) == (x.shape, x.dtype)
            # What XLA fuses into filters rounds here and there differently.
            a, b = (np.asarray(y, np.float32) for y in (shipped[name], exact[name]))
            np.testing.assert_allclose(a, b, rtol=float(jnp.finfo(x.dtype).eps), atol=2e-6)
