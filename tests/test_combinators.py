import jax
import jax.numpy as jnp
import numpy as np
import pytest
from custom_transforms import Rotate

import modelzip_jax as mz

RNG = np.random.default_rng(1)
TREE = {
    "a": {"kernel": RNG.normal(size=(8, 6)).astype("f4"), "bias": RNG.normal(size=6).astype("f4")},
    "b": {"kernel": RNG.normal(size=(8, 6)).astype("f4"), "bias": RNG.normal(size=6).astype("f4")},
}
HALF = mz.prune(sparsity=0.5)


def zeros(tree):
    return jax.tree.map(lambda x: int(jnp.sum(x == 0)), tree)


def decoded(transform, tree=TREE):
    return mz.decoded(tree, transform)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_empty_chain_is_the_identity():
    same(decoded(mz.chain()), decoded(mz.identity()))
    same(mz.unpack(mz.compress(TREE, mz.chain())), TREE)
    assert mz.resume(mz.compress(TREE, mz.chain()))[0] == mz.chain()


def test_a_chain_of_one_is_that_one():
    same(decoded(mz.chain(mz.quantize(3))), decoded(mz.quantize(3)))


def test_chains_nest():
    parts = [HALF, mz.identity(), mz.quantize(4)]
    flat = decoded(mz.chain(*parts))
    same(decoded(mz.chain(mz.chain(parts[0], parts[1]), parts[2])), flat)
    same(decoded(mz.chain(parts[0], mz.chain(parts[1], parts[2]))), flat)


def test_what_makes_symbols_comes_last():
    for bad in ([mz.quantize(4), HALF], [mz.quantize(4), mz.identity()], [mz.quantize(4), mz.quantize(2)]):
        with pytest.raises(mz.errors.TransformError, match="makes symbols, so nothing can follow"):
            mz.chain(*bad)


def test_symbols_twice_on_a_leaf_are_refused_by_name():
    inner = mz.only("a/*", mz.quantize(4))
    for last in (HALF, mz.only("**/kernel", mz.quantize(2)), mz.chain(mz.identity())):
        with pytest.raises(mz.errors.TransformError, match=r"'a/(bias|kernel)' is made symbols"):
            mz.compress(TREE, mz.chain(inner, last))


def test_only_parts_over_disjoint_leaves_chain():
    t = mz.chain(mz.only("a/kernel", mz.quantize(4)), mz.only("b/kernel", HALF))
    got = decoded(t)
    same(got["a"]["kernel"], decoded(mz.quantize(4))["a"]["kernel"])
    same(got["b"]["kernel"], decoded(HALF)["b"]["kernel"])
    same(got["a"]["bias"], TREE["a"]["bias"])


OVERLAPPING = mz.chain(mz.only("a/*", HALF), mz.only("**/kernel", mz.quantize(4)))


def test_only_parts_over_overlapping_leaves_chain():
    t = OVERLAPPING
    got = decoded(t)
    assert zeros(got)["a"]["kernel"] >= 24
    same(got["a"]["bias"], decoded(HALF)["a"]["bias"])
    same(got["b"]["kernel"], decoded(mz.quantize(4))["b"]["kernel"])
    same(got["b"]["bias"], TREE["b"]["bias"])


@pytest.mark.slow
def test_laws_of_parts_over_overlapping_leaves():
    mz.testing.check_laws(OVERLAPPING, TREE)


def test_only_takes_several_patterns():
    got = zeros(decoded(mz.only(("a/kernel", "b/bias"), HALF)))
    assert got == {"a": {"kernel": 24, "bias": 0}, "b": {"kernel": 0, "bias": 3}}


def test_each_pattern_has_to_match():
    with pytest.raises(mz.errors.PatternError, match=r"'c/\*' matches no leaf.*a/bias"):
        mz.compress(TREE, mz.only(("a/*", "c/*"), HALF))


def test_min_ndim_leaves_vectors_alone():
    t = mz.only("**", HALF, min_ndim=2)
    assert zeros(decoded(t)) == {"a": {"kernel": 24, "bias": 0}, "b": {"kernel": 24, "bias": 0}}


def test_a_global_threshold_sees_the_selected_leaves_together():
    tree = {
        "small": np.float32([1, 2, 3, 4]),
        "large": np.float32([10, 20, 30, 40]),
        "other": np.ones(4, "f4"),
    }
    t = mz.only(("small", "large"), mz.prune(sparsity=0.5, allocation="global"))
    assert zeros(decoded(t, tree)) == {"small": 4, "large": 0, "other": 0}


def test_the_first_pattern_that_matches_decides():
    parts = {"fine": mz.quantize(8), "coarse": mz.quantize(2), "half": HALF}
    t = mz.partition(parts, {"a/kernel": "fine", "**/kernel": "coarse", "a/*": "half"})
    got = decoded(t)
    same(got["a"]["kernel"], decoded(parts["fine"])["a"]["kernel"])
    same(got["b"]["kernel"], decoded(parts["coarse"])["b"]["kernel"])
    assert zeros(got)["a"]["bias"] == 3
    same(got["b"]["bias"], TREE["b"]["bias"])
    mz.testing.check_laws(t, TREE)


def test_a_part_of_a_partition_may_be_without_leaves():
    t = mz.partition({"x": HALF, "y": mz.quantize(4)}, {"a/bias": "y", "**": "x"}, min_ndim=2)
    same(decoded(t), decoded(mz.only("**", HALF, min_ndim=2)))


def test_a_pattern_that_decides_nothing_is_refused():
    t = mz.partition({"x": HALF, "y": mz.quantize(4)}, {"**": "x", "a/*": "y"})
    with pytest.raises(mz.errors.PatternError, match=r"'a/\*' decides nothing.*'\*\*' stands before it"):
        decoded(t)
    same(decoded(mz.only(("**", "a/*"), HALF)), decoded(HALF))
    with pytest.raises(mz.errors.TransformError, match=r"no pattern has the labels \['y'\]"):
        mz.partition({"x": HALF, "y": mz.quantize(4)}, {"**": "x"})


def test_metrics_of_several_masks_in_a_chain_are_told_apart():
    first = mz.prune(structure=mz.structures.n_of_m(2, 4))
    t = mz.chain(first, mz.prune(sparsity=0.75), mz.quantize(4))
    found = t.metrics(t.init({"w": jnp.arange(1.0, 17.0).reshape(8, 2)}, mz.Context()))
    assert {name: float(x) for name, x in found.items() if "sparsity" in name} == {
        "0:sparsity": 0.5, "1:sparsity": 0.75
    }  # fmt: skip


def test_partitions_nest():
    t = mz.only("a/*", mz.partition({"k": mz.quantize(4)}, {"*/kernel": "k"}))
    got = decoded(t)
    same(got["a"]["kernel"], decoded(mz.quantize(4))["a"]["kernel"])
    same(got["a"]["bias"], TREE["a"]["bias"])


def test_metrics_carry_the_label():
    t = mz.partition({"x": HALF, "y": mz.prune(sparsity=0.25)}, {"a/*": "x", "b/*": "y"})
    found = t.metrics(t.init(jax.tree.map(jnp.asarray, TREE), mz.Context()))
    assert set(found) == {"x:sparsity", "x:mask_churn", "y:sparsity", "y:mask_churn"}
    np.testing.assert_allclose([found["x:sparsity"], found["y:sparsity"]], [0.5, 14 / 54], rtol=1e-6)


def test_refusals_say_what_was_given():
    with pytest.raises(mz.errors.TransformError, match=r"chain\(\) takes a transform .* not 4"):
        mz.chain(HALF, 4)
    with pytest.raises(mz.errors.TransformError, match=r"only\(\) takes a path pattern .* not \(\)"):
        mz.only((), HALF)
    with pytest.raises(mz.errors.TransformError, match=r"only\(\) takes a path pattern .* not \(3,\)"):
        mz.only((3,), HALF)
    with pytest.raises(mz.errors.TransformError, match=r"only\(\) takes a transform .* not 'x'"):
        mz.only("**", "x")
    with pytest.raises(mz.errors.TransformError, match=r"labels \['y'\]; there are transforms for \['x'\]"):
        mz.partition({"x": HALF}, {"**": "y"})


@pytest.mark.parametrize(
    "made", [lambda s: mz.chain(HALF, s), lambda s: mz.only("**", s), lambda s: mz.residual(s, HALF)]
)
def test_a_search_is_no_part_of_a_transform(made):
    with pytest.raises(
        mz.errors.TransformError, match=r"not a Smallest, .* give it to mz.compress\(\) itself"
    ):
        made(mz.smallest(bytes=1000))


def test_a_partition_takes_transforms():
    with pytest.raises(mz.errors.TransformError, match=r"partition\(\) takes a transform .* not 3"):
        mz.partition({"x": 3}, {"**": "x"})


def test_gradients_are_split_among_the_parts():
    seen = {}

    class Watch(type(mz.identity())):
        def update(self, encoded, context):
            seen["grads"], seen["stats"] = context.grads, context.stats
            return encoded

    tree = jax.tree.map(jnp.asarray, TREE)
    t = mz.only("a/*", Watch())
    t.update(t.init(tree, mz.Context()), mz.Context(grads=tree, stats=tree, step=1))
    assert mz.tree.absent(seen["grads"]["b"]["kernel"])
    assert mz.tree.absent(seen["stats"]["b"]["kernel"])
    assert seen["grads"]["a"]["kernel"] is tree["a"]["kernel"]


class Seen(mz.Transform):
    """Remembers which latents it was told to reach the weights."""

    def init(self, weights, context):
        self.support_given = context.support
        return super().init(weights, context)


def test_what_follows_a_mask_is_told_of_it():
    seen, params = Seen(), {"w": jnp.array([1.0, -3.0, 2.0, 0.5]), "b": jnp.array([4.0, 1.0])}
    mz.chain(mz.prune(sparsity=0.5), mz.identity(), seen).init(params, mz.Context())
    assert seen.support_given["w"].tolist() == [False, True, True, False]
    mz.chain(mz.prune(sparsity=0.5), mz.prune(sparsity=0.75), seen).init(params, mz.Context())
    assert seen.support_given["w"].tolist() == [False, True, False, False]
    mz.chain(mz.only("w", mz.prune(sparsity=0.5)), seen).init(params, mz.Context())
    assert seen.support_given["w"].tolist() == [False, True, True, False]
    assert seen.support_given["b"].tolist() == [True, True]
    mz.chain(mz.only("w", mz.identity()), seen).init(params, mz.Context())
    assert seen.support_given is None


def test_no_mask_is_known_behind_an_analysis():
    seen = Seen()
    mz.chain(mz.prune(sparsity=0.5), Rotate(), seen).init(
        {"w": jnp.array([1.0, -3.0, 2.0, 0.5])}, mz.Context()
    )
    assert seen.support_given is None
