"""Orthonormal transforms: each is the other's transpose, in both modes, batched and twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.wavelets.multilevel import _join_all, _split_all, dwt, idwt

X = jax.random.normal(jax.random.key(0), (3, 13, 10))
G = jax.random.normal(jax.random.key(1), X.shape)


@pytest.mark.parametrize("axes", [(1,), (1, 2)])
@pytest.mark.parametrize("packets", [False, True])
@pytest.mark.parametrize("filter", ["haar", "db4", "sym4", "coif1", "bior4.4"])
def test_gradients_are_those_of_the_code_itself(filter, packets, axes):
    for ours, plain in ((dwt, _split_all), (idwt, _join_all)):

        def direct(x, plain=plain):
            return plain(x, axes, filter=filter, levels=2, packets=packets)

        def rule(x, ours=ours):
            return ours(x, filter, 2, axes, packets)

        np.testing.assert_allclose(jax.vjp(rule, X)[1](G)[0], jax.vjp(direct, X)[1](G)[0], atol=5e-6)
        np.testing.assert_allclose(jax.jvp(rule, (X,), (G,))[1], direct(G), atol=5e-6)


def test_batched_and_differentiated_twice():
    batched = jax.vmap(lambda x: idwt(x, "db2", 2, (0, 1)), 1, 1)(X)
    np.testing.assert_array_equal(batched, idwt(X, "db2", 2, (0, 2)))
    hessian = jax.hessian(lambda y: jnp.sum(idwt(y, "db2", 1) ** 2))(jnp.ones(6))
    np.testing.assert_allclose(hessian, 2 * np.eye(6), atol=1e-6)
