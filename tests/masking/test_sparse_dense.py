"""Sparse–dense learning is training without some of a layer's features, and then with all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz

W = jax.random.normal(jax.random.key(0), (12, 5))
Z = jax.random.normal(jax.random.key(1), (40, 12))
Y = Z @ jax.random.normal(jax.random.key(2), (12, 5))


def by_hand(steps, begin, end, dropped):
    """Gradient descent where z is masked by hand between the two steps, rows restarting from zero at the second."""
    w, history = W, []
    keep = jnp.ones(12)
    for step in range(1, steps + 1):
        if step == begin:
            norms = jnp.linalg.norm(w, axis=1)
            keep = jnp.ones(12).at[jnp.argsort(norms)[:dropped]].set(0.0)
            w = w * keep[:, None]
        if step == end:
            keep = jnp.ones(12)
        grad = jax.grad(lambda w, m: jnp.mean(((m * Z) @ w - Y) ** 2))(w, keep)
        w = w - 0.5 * grad
        history.append(w)
    return history


def test_it_is_training_with_masked_features():
    tx = mz.wrap(optax.sgd(0.5), mz.sparse_dense(0.25, begin=3, end=7))
    params, state = mz.start(tx, {"kernel": W})
    expected = by_hand(10, 3, 7, 3)
    for step in range(10):
        # The loop's gradient is taken before the update that brings or lifts the mask: a step's mask is in the params.
        updates, state = tx.update(jax.grad(_loss)(_masked(params, state, step + 1)), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["kernel"], expected[step], rtol=2e-5, atol=2e-6)
    assert (np.asarray(params["kernel"]) != 0).all()


def _loss(params):
    return jnp.mean((Z @ params["kernel"] - Y) ** 2)


def _masked(params, state, step):
    """The params that the hand-written loop has when it takes this step's gradient."""
    if step != 3:
        return params
    rows = jnp.linalg.norm(params["kernel"], axis=1)
    return {"kernel": params["kernel"] * jnp.ones(12).at[jnp.argsort(rows)[:3]].set(0.0)[:, None]}


def test_features_with_a_mask_are_rows_with_a_mask():
    pruned = mz.decoded({"kernel": W}, mz.sparse_dense(0.5, begin=0, end=9))["kernel"]
    m = jnp.any(pruned != 0, axis=1)
    assert int(m.sum()) == 6
    np.testing.assert_allclose((m * Z) @ W, Z @ pruned, rtol=1e-5, atol=1e-5)


def test_single_weights_are_dense_sparse_dense():
    t = mz.sparse_dense(0.5, 1, 3, structure=mz.structures.unstructured())
    assert t == mz.prune(
        mz.scores.magnitude(2), sparsity=mz.schedules.dense_sparse_dense(0.5, 1, 3), every=1, remember=False
    )
    with pytest.raises(mz.errors.TransformError, match="before it begins"):
        mz.sparse_dense(0.5, 3, 3)
