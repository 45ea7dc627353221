"""Permuted networks compute what they did; one leaf left out and they do not."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax import trace, tree
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import LeafError, NonFiniteError, TransformError
from modelzip_jax.wavelets.bases import Basis
from modelzip_jax.wavelets.path import short_path


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(3)(jnp.tanh(nn.Dense(6)(x)))


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x)))
        x = nn.max_pool(x + nn.Conv(6, (3, 3), feature_group_count=6)(x), (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(nn.Dense(5)(x.reshape(len(x), -1))))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))


MODELS = {
    "mlp": (Dense(), (4, 5), {8, 6}),
    "convolutions": (Convolutional(), (2, 6, 6, 2), {6, 5}),
    "transformer": (Transformer(), (2, 5, 16), {12, 4}),  # Four heads of four places, and the hidden units.
}


@functools.cache
def traced(name):
    model, shape, units = MODELS[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    # Variances have to be positive; initial biases and scales would hide mistakes.
    variables = jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.1, 1.0, s.shape), s.dtype), shapes)
    groups = trace.couplings(model.apply, variables, x).groups
    assert {g.units for g in groups} == units
    return jax.jit(model.apply), variables, x, groups


@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays_and_every_leaf_of_it_matters(name):
    apply, variables, x, groups = traced(name)
    permuted, before = mz.rewrites.permute(variables, groups), apply(variables, x)
    np.testing.assert_allclose(apply(permuted, x), before, rtol=2e-5)
    old, new = dict(tree.named_leaves(variables)), dict(tree.named_leaves(permuted))
    moved = [leaf for leaf in old if not np.array_equal(old[leaf], new[leaf])]
    assert {leaf for group in groups for leaf in group.leaves} >= set(moved)
    assert len(moved) > 4
    for leaf in moved:
        if leaf.endswith("attention/key/bias"):
            continue  # Adds the same to all logits of a query, which softmax ignores.
        wrong = tree.map_named(lambda n, w, leaf=leaf: old[leaf] if n == leaf else w, permuted)
        assert not np.allclose(apply(wrong, x), before, rtol=2e-5), leaf


def smooth_network(seed=0):
    """A hidden layer along which all weights are smooth, its units shuffled."""
    rng, t = np.random.default_rng(seed), np.linspace(0, 6, 64)
    shuffled = rng.permutation(64)
    waves = np.stack([np.sin(t + phase) for phase in rng.uniform(0, 6, 48)]).astype(np.float32)[:, shuffled]
    params = {"a": waves, "bias": np.cos(t).astype(np.float32)[shuffled], "b": 3.0 * waves.T}
    groups = trace.couplings(
        lambda p, x: jnp.tanh(x @ p["a"] + p["bias"]) @ p["b"], params, np.ones((1, 48))
    ).groups
    return params, groups, shuffled


def test_shuffled_channels_are_put_in_order_and_the_file_gets_smaller():
    params, groups, shuffled = smooth_network()
    order = mz.rewrites.similarity_order(params, groups[0])
    assert abs(np.diff(shuffled[order]).sum()) == 63  # In order, or in reverse.
    assert set(np.abs(np.diff(shuffled[order]))) == {1}
    permuted = mz.rewrites.permute(params, groups)
    assert isinstance(permuted["a"], np.ndarray)

    def file(p):
        plan = mz.best_basis({"a": p["a"]}, 1e-3, bases=[(Basis("dct", "", 8, (1,)), ())])
        return file_sizes(mz.compress({"a": p["a"]}, plan)).total

    assert file(permuted) < 0.9 * file(params)


def test_orders_can_be_given_for_example_for_moments():
    _, variables, _, groups = traced("transformer")
    orders = {g: mz.rewrites.similarity_order(variables, g) for g in groups}
    jax.tree.map(
        np.testing.assert_array_equal,
        mz.rewrites.permute(variables, orders),
        mz.rewrites.permute(variables, groups),
    )
    backwards = {g: np.argsort(order) for g, order in orders.items()}
    moments = jax.tree.map(jnp.square, variables)
    there = jax.jit(lambda m: mz.rewrites.permute(m, orders))(moments)
    jax.tree.map(np.testing.assert_array_equal, mz.rewrites.permute(there, backwards), moments)


def test_bfloat16_keeps_its_type():
    _, variables, _, groups = traced("mlp")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    permuted = mz.rewrites.permute(half, groups)
    assert {leaf.dtype for leaf in jax.tree.leaves(permuted)} == {jnp.dtype(jnp.bfloat16)}
    orders = {g: mz.rewrites.similarity_order(half, g) for g in groups}
    exact = mz.rewrites.permute(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half), orders)
    jax.tree.map(np.testing.assert_array_equal, permuted, exact)


def test_a_state_of_nnx_stays_one():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up, self.down = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (4, 5))
    apply = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    groups = trace.couplings(apply, state, x).groups
    permuted = mz.rewrites.permute(state, groups)
    assert isinstance(permuted, nnx.State)
    assert jax.tree.structure(permuted) == jax.tree.structure(state)
    assert not np.array_equal(permuted["up"]["kernel"][...], state["up"]["kernel"][...])
    np.testing.assert_allclose(apply(permuted, x), apply(state, x), rtol=1e-5, atol=1e-6)


def test_units_of_different_kinds_stay_apart():
    params = {"a": jnp.array([[1.0, 9.0, 2.0, 8.0, 1.5, 8.5]]), "b": jnp.ones((6, 1))}

    def model(p, x):
        h = x @ p["a"]
        return jnp.concatenate([jax.nn.relu(h[:, :3]), jnp.tanh(h[:, 3:])], -1) @ p["b"]

    (group,) = trace.couplings(model, params, jnp.ones((1, 1))).groups
    permuted = mz.rewrites.permute(params, [group])
    np.testing.assert_array_equal(permuted["a"], [[1.0, 2.0, 9.0, 1.5, 8.0, 8.5]])
    np.testing.assert_allclose(model(permuted, jnp.ones((1, 1))), model(params, jnp.ones((1, 1))), rtol=1e-6)
    with pytest.raises(TransformError, match="several kinds"):
        mz.rewrites.permute(params, {group: np.arange(6)[::-1]})


def test_what_does_not_fit_is_named():
    params, groups, _ = smooth_network()
    with pytest.raises(TransformError, match="each of the units 0 to 63 once"):
        mz.rewrites.permute(params, {groups[0]: np.zeros(64, int)})
    with pytest.raises(TransformError, match="each of the units"):
        mz.rewrites.permute(params, {groups[0]: np.arange(63)})
    with pytest.raises(LeafError, match="all collections"):
        mz.rewrites.permute({"a": params["a"]}, groups)
    with pytest.raises(LeafError, match="traced with"):
        mz.rewrites.permute({**params, "bias": np.ones(4)}, groups)
    with pytest.raises(NonFiniteError, match="'a'"):
        mz.rewrites.permute({**params, "a": np.full((48, 64), np.nan)}, groups)


def test_paths_are_short_and_never_longer_than_what_was_there():
    points = np.random.default_rng(0).normal(size=(40, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)

    def length(path):
        return distances[path[:-1], path[1:]].sum()

    path = short_path(distances)
    assert sorted(path) == list(range(40))
    assert length(path) < 0.4 * length(np.arange(40))
    for i in range(39):  # No reversal of a stretch makes it shorter.
        for j in range(i + 1, 40):
            other = np.concatenate([path[:i], path[i : j + 1][::-1], path[j + 1 :]])
            assert length(other) >= length(path) - 1e-9
    np.testing.assert_array_equal(short_path(np.zeros((5, 5))), np.arange(5))
