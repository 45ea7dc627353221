"""Sparse–dense learning is training without some of a layer's features, for a phase or for good."""

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


def model(p, x):
    return jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]


MODEL = {
    "a": {"kernel": W, "bias": jnp.zeros(5)},
    "b": {"kernel": jax.random.normal(jax.random.key(3), (5, 3))},
}
# Of a feature's scale its samples know, its weights do not.
SAMPLES = Z * jnp.linspace(0.05, 2.0, 12)
STATS = mz.trace.statistics(model, MODEL, [SAMPLES[:30], SAMPLES[30:]], kinds=("above_mean",))


def added_up(z, w):
    """The survey's steps 1 to 3, sample by sample."""
    d = np.zeros(w.shape)
    for row in np.abs(np.asarray(z)):
        d += np.where(row >= row.mean(), row, 0.0)[:, None] * np.abs(np.asarray(w))
    return d


def test_d_is_what_the_samples_add_up():
    kernels = {"a": {"kernel": W}, "b": {"kernel": MODEL["b"]["kernel"]}}
    stats = {"a": {"kernel": STATS["a"]["kernel"]}, "b": {"kernel": STATS["b"]["kernel"]}}
    got = mz.scores.sampled_features()(kernels, mz.Context(stats=stats))
    hidden = jax.nn.relu(SAMPLES @ W)
    np.testing.assert_allclose(40 * got["a"]["kernel"], added_up(SAMPLES, W), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        40 * got["b"]["kernel"], added_up(hidden, kernels["b"]["kernel"]), rtol=1e-4, atol=1e-5
    )


def test_the_samples_decide_which_features_stay():
    zipper = mz.only("**/kernel", mz.sparse_dense_by_samples(0.5))
    kernel = mz.decoded(MODEL, zipper, stats=STATS)["a"]["kernel"]
    kept = np.flatnonzero(np.any(np.asarray(kernel) != 0, axis=1))
    wanted = np.sort(np.argsort(added_up(SAMPLES, W).mean(axis=1))[6:])
    np.testing.assert_array_equal(kept, wanted)
    by_norm = mz.decoded({"kernel": W}, mz.sparse_dense(0.5, begin=0, end=9))["kernel"]
    assert not np.array_equal(kept, np.flatnonzero(np.any(np.asarray(by_norm) != 0, axis=1)))


def test_s_stays_to_the_end_and_is_what_the_file_holds():
    zipper = mz.only("**/kernel", mz.sparse_dense_by_samples(0.5))
    tx = mz.wrap(optax.adamw(1e-2, weight_decay=0.1), zipper, given={"stats": STATS})
    params, state = mz.start(tx, MODEL)
    first = jax.tree.map(lambda x: x != 0, params)
    loss = lambda p: jnp.mean((model(p, SAMPLES) - SAMPLES[:, :3]) ** 2)  # noqa: E731
    before = loss(params)
    for _ in range(5):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params) < before
    for name in ("a", "b"):
        np.testing.assert_array_equal(params[name]["kernel"] != 0, first[name]["kernel"])
    packed = mz.pack(state, params)
    assert packed.nbytes < 0.75 * packed.dense_bytes
    assert mz.only("**/kernel", mz.sparse_dense_by_samples(0.5)) == packed.transform


@pytest.mark.parametrize("chained", [False, True], ids=["alone", "quantized"])
def test_laws_by_samples(chained):
    sampled = mz.sparse_dense_by_samples(mz.schedules.cubic(0.5, begin=0, end=2), every=1)
    whole = mz.chain(mz.sparse_dense_by_samples(0.4), mz.quantize(4, learned=True)) if chained else sampled
    mz.testing.check_laws(mz.only("**/kernel", whole), MODEL, given={"stats": STATS}, steps=2)


def test_compress_asks_for_samples():
    zipper = mz.only("**/kernel", mz.sparse_dense_by_samples(0.5))
    packed = mz.compress(MODEL, zipper, stats=STATS)
    np.testing.assert_array_equal(
        mz.unpack(packed)["a"]["kernel"], mz.decoded(MODEL, zipper, stats=STATS)["a"]["kernel"]
    )
    with pytest.raises(mz.errors.TransformError, match="SampledFeatures needs stats"):
        mz.compress(MODEL, zipper)
