import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelzip_jax as mz
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.masking.allocation import Part, erk, layers, resolve
from modelzip_jax.testing.laws import check_laws

RNG = np.random.default_rng(0)
KERNEL = jnp.asarray(RNG.normal(size=(3, 3, 6, 10)), jnp.float32)
TREE = {"dense": {"kernel": jnp.asarray(RNG.normal(size=(13, 9)), jnp.float32)}, "conv": {"kernel": KERNEL}}


def slow(case):
    return pytest.param(case, marks=pytest.mark.slow)


def mask(leaf):
    return np.asarray(leaf) != 0


def test_channels_go_whole_and_weakest_first():
    got = mask(mz.decoded(KERNEL, mz.prune(sparsity=0.3, structure=mz.structures.channel())))
    whole = got.reshape(-1, 10)
    assert np.all(whole.all(0) | ~whole.any(0))
    norms = np.abs(np.asarray(KERNEL)).reshape(-1, 10).mean(0)
    np.testing.assert_array_equal(np.sort(np.flatnonzero(~whole.any(0))), np.sort(np.argsort(norms)[:3]))


def test_l2_norms_rank_other_channels_than_l1():
    w = jnp.array([[3.0, 2.0], [0.0, 2.0]])
    for power, kept in ((1, 1), (2, 0)):
        t = mz.prune(mz.scores.magnitude(power), sparsity=0.5, structure=mz.structures.channel())
        np.testing.assert_array_equal(mask(mz.decoded(w, t)).any(0), np.arange(2) == kept)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3), (1, 8), (5,), (1, 1)])
def test_blocks_go_whole_also_ragged_ones(shape):
    w = jnp.asarray(RNG.normal(size=(10, 9)), jnp.float32)
    got = mask(mz.decoded(w, mz.prune(sparsity=0.5, structure=mz.structures.block(*shape))))
    rows, columns = (1, *shape)[-2:]
    pruned = total = 0
    for i in range(0, 10, rows):
        for j in range(0, 9, columns):
            part = got[i : i + rows, j : j + columns]
            assert part.all() or not part.any()
            pruned, total = pruned + (not part.any()), total + 1
    assert pruned == int(0.5 * total + 0.5)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 7), st.integers(0, 99))
def test_n_of_m_keeps_exactly_n_largest_of_each_group(length, m, n, seed):
    n = 1 + n % m
    scores = np.random.default_rng(seed).integers(0, 4, (length, 3)).astype(np.float32)
    got = np.asarray(mz.structures.n_of_m(n, m, axis=0).choose(jnp.asarray(scores)))
    for column in range(3):
        for start in range(0, length, m):
            group = slice(start, min(start + m, length))
            size = group.stop - start
            keep = n if size == m else -(-n * size // m)
            assert got[group, column].sum() == keep
            kept, gone = scores[group, column][got[group, column]], scores[group, column][~got[group, column]]
            assert gone.size == 0 or kept.min() >= gone.max()


def test_two_of_four_in_the_file_and_in_training():
    t = mz.chain(mz.prune(structure=mz.structures.n_of_m(2, 4), every=2), mz.quantize(bits=4))
    tx = mz.wrap(optax.sgd(0.1), mz.only("dense/kernel", t))
    params, state = mz.start(tx, TREE)
    for _ in range(4):
        grads = jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    packed = mz.pack(state, params)
    groups = mask(mz.unpack(packed)["dense"]["kernel"])[:12].reshape(3, 4, 9)
    assert np.all(groups.sum(1) <= 2)
    assert packed.params["dense"]["kernel"].kept == 3 * 2 * 9 + 9


@pytest.mark.parametrize(
    "t",
    [
        slow(mz.prune(sparsity=0.5, structure=mz.structures.channel(0), allocation="global")),
        mz.prune(structure=mz.structures.n_of_m(1, 4), every=1),
        slow(mz.prune(mz.scores.movement(), sparsity=mz.schedules.cubic(0.6, 0, 2), every=1)),
    ],
    ids=repr,
)
def test_laws(t):
    check_laws(t, {"dense": TREE["dense"]})


def test_erk_meets_the_sparsity_and_keeps_small_layers_dense():
    sizes = {"a": (3, 3, 3, 16), "b": (3, 3, 64, 64), "c": (64, 10)}
    tree = {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in sizes.items()}
    for sparsity in (0.3, 0.8, 0.95):
        got = mz.decoded(tree, mz.prune(sparsity=sparsity, allocation="erk"))
        kept = {name: mask(x).mean() for name, x in got.items()}
        total = sum(x.size for x in tree.values())
        assert abs(sum(mask(x).sum() for x in got.values()) - (1 - sparsity) * total) <= len(sizes)
        assert kept["b"] < kept["c"] <= 1.0
        # Where no layer is full, densities are in the ratio of Σ axes / Π axes.
        if kept["a"] < 1 and kept["c"] < 1:
            raw = {name: sum(s) / np.prod(s) for name, s in sizes.items()}
            assert kept["c"] / kept["b"] == pytest.approx(raw["c"] / raw["b"], rel=0.02)


def test_erk_beside_a_scalar_meets_the_sparsity_and_keeps_the_scalar():
    """A temperature or a logit scale, of which ERK's density is the largest."""
    leaf = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)  # noqa: E731
    tree = {"scale": jnp.float32(2.0), "a": leaf(64, 64), "b": leaf(128, 64)}
    got = mz.decoded(tree, mz.prune(sparsity=0.8, allocation="erk"))
    zeros = sum(int((x == 0).sum()) for x in jax.tree.leaves(got))
    assert zeros / sum(x.size for x in jax.tree.leaves(tree)) == pytest.approx(0.8, abs=1e-3)
    assert got["scale"] == 2.0


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
@pytest.mark.parametrize("layer", [0, 1])
def test_each_layer_of_a_stack_is_pruned_as_a_tensor_of_its_own(layer, allocation):
    """`nn.scan` and vmapped experts: a layer of small weights keeps as many as the others."""
    each = RNG.normal(size=(3, 8, 6)).astype("f4") * np.float32([0.01, 1, 100]).reshape(3, 1, 1)
    t = mz.prune(sparsity=0.5, layers=layer, allocation=allocation)
    got = np.moveaxis(mz.decoded({"w": np.moveaxis(each, 0, layer)}, t)["w"], layer, 0)
    for one, alone in zip(got, each, strict=True):
        np.testing.assert_array_equal(one, mz.decoded({"w": alone}, mz.prune(sparsity=0.5))["w"])


def test_erk_under_a_traced_sparsity():
    parts = [Part("a", (4, 4), 16), Part("b", (32, 32), 1024)]
    both = jax.jit(jax.vmap(lambda s: jnp.stack(erk()(parts, s))))(jnp.array([0.5, 0.9]))
    np.testing.assert_allclose(both[1], jnp.stack(erk()(parts, jnp.float32(0.9))), rtol=1e-6)


def test_a_share_for_each_pattern():
    t = mz.prune(sparsity=0.25, allocation=layers({"dense/*": 0.5}))
    got = mz.decoded(TREE, t)
    assert mask(got["dense"]["kernel"]).sum() == 117 - 59
    assert mask(got["conv"]["kernel"]).mean() == 0.75


def test_global_channels_compare_over_layers():
    tree = {"weak": 0.1 * KERNEL, "strong": KERNEL}
    got = mz.decoded(tree, mz.prune(sparsity=0.5, structure=mz.structures.channel(), allocation="global"))
    assert not mask(got["weak"]).any()
    assert mask(got["strong"]).all()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: mz.prune(), TransformError, "needs a sparsity"),
        (lambda: mz.prune(sparsity=0.5, structure=mz.structures.n_of_m(2, 4)), TransformError, "fixes the sparsity"),
        (lambda: mz.structures.n_of_m(5, 4), TransformError, "n of m"),
        (lambda: mz.structures.block(0), TransformError, "at least 1"),
        (lambda: layers({"a": 1.0}), TransformError, "in \\[0, 1\\)"),
        (lambda: resolve("erc"), TransformError, "did you mean 'erk'"),
        (lambda: mz.decoded(jnp.ones(3), mz.prune(sparsity=0.5, structure=mz.structures.block(2, 2))), LeafError,
         "no blocks"),
        (lambda: mz.decoded(jnp.ones(3), mz.prune(structure=mz.structures.n_of_m(2, 4))), LeafError, "no axis -2"),
    ],
)  # fmt: skip
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (3, 0, 5)])
@pytest.mark.parametrize(
    "structure", [mz.structures.channel(), mz.structures.block(2, 2), mz.structures.n_of_m(2, 4)]
)
def test_leaves_without_weights_have_groups_without_nan(shape, structure):
    params = {"none": jnp.zeros(shape), "w": jnp.arange(1.0, 17.0).reshape(4, 4)}
    ours = {} if structure.fixes_sparsity else {"sparsity": 0.5}
    decoded = mz.decoded(params, mz.prune(structure=structure, **ours))
    assert decoded["none"].shape == shape
    assert int(jnp.sum(decoded["w"] != 0.0)) == 8
    if not structure.fixes_sparsity:
        limited = mz.decoded(
            params, mz.prune(structure=structure, allocation=mz.allocation.at_most(params=8))
        )
        assert int(jnp.sum(limited["w"] != 0.0)) == 8


def test_a_budget_of_nothing_to_prune_is_no_division_by_zero():
    params = {"none": jnp.zeros((0, 4)), "bias": jnp.ones(3)}
    only = mz.only("none", mz.prune(allocation=mz.allocation.at_most(params=2)))
    assert mz.decoded(params, only)["none"].shape == (0, 4)
