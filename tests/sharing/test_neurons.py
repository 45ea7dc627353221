"""Shared and merged neurons."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.rewrites.merging import merge_neurons
from modelzip_jax.sharing.grouping import draw_features, group_neurons, share_initialization

RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def distinct(kernel):
    return len(np.unique(np.asarray(kernel).reshape(-1, kernel.shape[-1]), axis=1).T)


# The drawn chains of tests/test_drawn_chains.py have them, too.
@pytest.mark.slow
def test_laws():
    tree = {"kernel": normal(6, 5), "conv": jnp.asarray(normal(2, 2, 3, 4), jnp.bfloat16)}
    mz.testing.check_laws(mz.share_neurons(2), tree, steps=2)


def test_groups_have_the_requested_size_and_the_nearest_members():
    centres = 10 * normal(6, 4)
    kernel = np.repeat(centres, 3, axis=1) + 0.01 * normal(6, 12)
    index = np.asarray(group_neurons(kernel[:, RNG.permutation(12)], 3))
    assert np.bincount(index).tolist() == [3, 3, 3, 3]
    assert np.asarray(group_neurons(kernel, 3)).tolist() == np.repeat(range(4), 3).tolist()
    assert np.bincount(group_neurons(normal(6, 11), 3)).tolist() == [3, 3, 3, 2]


def test_features_choose_the_neurons_that_answer_to_them():
    kernel = np.eye(4, dtype=np.float32).repeat(2, axis=1)
    features = np.eye(4, dtype=np.float32)[[2, 0, 3, 1]]
    assert np.asarray(group_neurons(kernel, 2, features)).tolist() == [1, 1, 3, 3, 0, 0, 2, 2]


def test_drawn_features_are_windows_of_the_inputs():
    inputs = jnp.arange(2 * 4 * 5 * 3.0).reshape(2, 4, 5, 3)
    found = np.asarray(draw_features(inputs, (2, 2, 3, 8), 20, jax.random.key(1)))
    windows = {
        tuple(np.asarray(inputs[n, i : i + 2, j : j + 2]).reshape(-1))
        for n in range(2) for i in range(3) for j in range(4)
    }  # fmt: skip
    assert {tuple(row) for row in found} <= windows
    assert len({tuple(row) for row in found}) > 5
    assert draw_features(jnp.ones((9, 7)), (7, 3), 4, jax.random.key(0)).shape == (4, 7)
    with pytest.raises(mz.errors.TransformError, match="do not fit"):
        draw_features(jnp.ones((9, 7)), (8, 3), 4, jax.random.key(0))


def test_parameters_fall_by_the_factor_from_initialisation_through_training_to_the_file(tmp_path):
    x = jnp.asarray(normal(64, 10))
    y = jnp.argmax(x[:, :3], axis=1)
    first = share_initialization(jnp.asarray(normal(10, 24)), 4, x, jax.random.key(0))
    np.testing.assert_allclose(jnp.linalg.norm(first, axis=0).mean(), np.sqrt(10), rtol=0.2)
    assert distinct(first) == 6
    params = {"first": first, "bias": jnp.zeros(24), "second": jnp.asarray(normal(24, 3)) / 5}
    zipper = mz.only("first", mz.share_neurons(4))
    tx = mz.wrap(optax.adam(0.02), zipper)

    def loss(params):
        hidden = jax.nn.relu(x @ params["first"] + params["bias"])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["second"], y).mean()

    started, state = mz.start(tx, params)
    np.testing.assert_allclose(started["first"], first, rtol=1e-5)
    moments = [leaf.shape for leaf in jax.tree.leaves(state.inner)]
    assert (10, 6) in moments
    assert (10, 24) not in moments

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    trained = started
    for _ in range(40):
        trained, state = step(trained, state)
    assert loss(trained) < 0.5 * loss(started)
    packed = mz.pack(state, trained)
    assert packed.params["first"].nbytes == 10 * 6 * 4 + 24
    mz.save(tmp_path / "m.mz", packed)
    loaded = mz.unpack(mz.load(tmp_path / "m.mz"))
    assert distinct(loaded["first"]) == 6
    np.testing.assert_array_equal(loaded["first"], mz.params(state, trained)["first"])


def test_a_shared_vector_gets_the_sum_of_its_neurons_gradients():
    t = mz.share_neurons(2)
    encoded = t.init({"w": jnp.array([[1.0, 5.0, 2.0, 6.0]])}, mz.Context())

    def weighted(latents):
        return jnp.sum(t.decode(encoded._replace(latents=latents))["w"] * jnp.array([1.0, 2.0, 10.0, 20.0]))

    slope = jax.grad(weighted)(encoded.latents)
    assert slope["w"].tolist() == [[11.0, 22.0]]


def test_a_quantizer_may_follow():
    transform = mz.chain(mz.share_neurons(2), mz.quantize(4, granularity="tensor"))
    packed = mz.compress({"w": normal(8, 8)}, transform)
    assert packed.nbytes == 8 * 4 * 4 // 8 + 4 + 8


def test_merging_equal_neurons_changes_nothing():
    w, b = normal(5, 6), normal(6)
    params = {
        "a": {"kernel": w[:, [0, 1, 2, 0, 4, 1]], "bias": b[[0, 1, 2, 0, 4, 1]]},
        "b": {"kernel": normal(6, 3)},
    }
    merged = merge_neurons(params, "a/kernel", "b/kernel", keep=4, bias="a/bias")

    def run(p, x):
        return jax.nn.gelu(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]

    assert merged["a"]["kernel"].shape == (5, 4)
    x = normal(9, 5)
    np.testing.assert_allclose(run(merged, x), run(params, x), atol=1e-5)


def test_the_least_salient_pair_is_merged_first():
    """By the definition, in a loop over all pairs."""
    w, a = normal(4, 5), normal(5, 3)
    cost = {(i, j): np.sum(a[j] ** 2) * np.sum((w[:, i] - w[:, j]) ** 2)
            for i in range(5) for j in range(5) if i != j}  # fmt: skip
    i, j = min(cost, key=cost.get)
    merged = merge_neurons({"w": w, "a": a}, "w", "a", keep=4)
    wanted = a.copy()
    wanted[i] += a[j]
    np.testing.assert_allclose(merged["a"], np.delete(wanted, j, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(merged["w"], np.delete(w, j, axis=1))


def test_convolutions_merge_channels():
    params = {"a": normal(3, 3, 2, 4), "b": normal(3, 3, 4, 5)}
    merged = merge_neurons(params, "a", "b", keep=3)
    assert merged["a"].shape == (3, 3, 2, 3)
    assert merged["b"].shape == (3, 3, 3, 5)
    np.testing.assert_allclose(np.sum(merged["b"], axis=2), np.sum(params["b"], axis=2), rtol=1e-4, atol=1e-5)


def test_wrong_arguments():
    params = {"a": normal(4, 5), "b": normal(6, 3), "c": normal(5, 2)}
    with pytest.raises(mz.errors.LeafError, match="not a layer"):
        merge_neurons(params, "a", "b", keep=2)
    with pytest.raises(mz.errors.PatternError):
        merge_neurons(params, "x", "b", keep=2)
    with pytest.raises(mz.errors.TransformError, match="keep"):
        merge_neurons(params, "a", "c", keep=6)
    with pytest.raises(mz.errors.TransformError, match="factor"):
        mz.share_neurons(1)
    with pytest.raises(mz.errors.LeafError, match="no neurons"):
        mz.share_neurons(2).init({"bias": jnp.ones(4)}, mz.Context())
