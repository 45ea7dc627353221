import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from budget_models import SMALL, bounds, case, flops_left, kept, kernels, params_left, size

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import NonFiniteError, TransformError
from modelzip_jax.masking.allocation.wide import digits, fits, scaled_up, weighted

RNG = np.random.default_rng(0)


def compressed(weights, score=None, structure=None, **budget):
    t = mz.prune(score, allocation=mz.allocation.at_most(**budget), structure=structure)
    return mz.compress(weights, mz.only("**/kernel", t))


@pytest.mark.parametrize("name", SMALL)
def test_parameters_are_met_exactly(name):
    params, _ = case(name)
    total = size(params)
    frozen = total - sum(x.size for x in kernels(params))
    for budget in bounds(total, frozen, 4, seed=len(name)):
        assert params_left(compressed(params, params=budget), params) == min(budget, total), budget


@pytest.mark.parametrize("name", SMALL)
def test_flops_are_met_and_never_exceeded(name):
    params, cost = case(name)
    names = [n for n, _ in mz.tree.named_leaves(params) if n.endswith("kernel")]
    frozen = cost.flops - sum(cost.by_leaf()[n] for n in names)
    cheapest = min(cost.by_leaf()[n] / x.size for n, x in zip(names, kernels(params), strict=True))
    for budget in bounds(cost.flops, frozen, 2, seed=len(name)):
        packed = compressed(params, flops=budget, costs=cost)
        found = flops_left(packed, params, cost)
        assert found <= budget
        if budget >= cost.flops:
            assert found == cost.flops
        else:
            assert found > budget - cheapest - cost.flops / 4096
            assert found >= 0.995 * budget or budget == frozen + 1


def test_one_threshold_over_score_over_cost():
    model = lambda p, x: jnp.concatenate([x] * 3) @ p["dear"] + jnp.sum(x @ p["cheap"])  # noqa: E731
    params = {"dear": jnp.float32([[3, 6, 9, 12]]), "cheap": jnp.float32([[1.5, 2.5, 3.5, 4.5]])}
    cost = trace.cost(model, params, jnp.ones((1, 1)))
    assert cost.by_leaf() == {"dear": 24, "cheap": 8}  # 6 and 2 a weight: 1, 2, 3, 4 and 1.5, 2.5, 3.5, 4.5
    for budget, dear, cheap in [
        (32, 4, 4),
        (31, 3, 4),
        (25, 3, 3),
        (18, 2, 3),
        (10, 1, 2),
        (7, 0, 3),
        (2, 0, 1),
    ]:
        t = mz.prune(allocation=mz.allocation.at_most(flops=budget, costs=cost))
        got = mz.decoded(params, t)
        assert [int(jnp.sum(got[n] != 0)) for n in ("dear", "cheap")] == [dear, cheap], budget


def test_equal_scores_stay_in_order():
    params = {"a": jnp.ones((2, 3)), "b": -jnp.ones(4)}
    t = mz.prune(allocation=mz.allocation.at_most(params=8))
    got = mz.decoded(params, t)
    np.testing.assert_array_equal(got["a"], 1)
    np.testing.assert_array_equal(got["b"], [-1, -1, 0, 0])
    cost = trace.cost(
        lambda p, x: x @ p["a"] @ p["b"], {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}, jnp.ones(2)
    )
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
    t = mz.prune(allocation=mz.allocation.at_most(flops=14, costs=cost))
    got = mz.decoded(params, t)
    assert (int(got["a"].sum()), int(got["b"].sum())) == (6, 1)


def test_nan_scores_are_an_error_that_names_the_leaf():
    params = {"a": jnp.ones(4), "b": jnp.ones(4)}
    t = mz.prune(mz.scores.given(), allocation=mz.allocation.at_most(params=3))
    scores = {"a": jnp.ones(4), "b": jnp.float32([1, jnp.nan, 1, 1])}
    with pytest.raises(NonFiniteError, match="Given gives scores that are NaN for leaf 'b'"):
        mz.compress(params, t, scores=scores)
    got = jax.jit(lambda s: t.decode(t.init(params, mz.Context(scores=s))))(
        scores
    )  # traced: NaN ranks highest
    np.testing.assert_array_equal(got["b"], [0, 1, 0, 0])
    assert int(got["a"].sum()) == 2


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
def test_nan_scores_are_an_error_under_every_allocation(allocation):
    t = mz.prune(mz.scores.given(), sparsity=0.5, allocation=allocation)
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    with pytest.raises(NonFiniteError, match="Given gives scores that are NaN for leaf 'b'"):
        mz.compress(params, t, scores={"a": jnp.ones((2, 2)), "b": jnp.full((2, 2), jnp.nan)})


def test_infinite_and_negative_scores():
    model = lambda p, x: jnp.concatenate([x] * 3) @ p["dear"] + jnp.sum(x @ p["cheap"])  # noqa: E731
    params = {"dear": jnp.ones((1, 4)), "cheap": jnp.ones((1, 4))}
    cost = trace.cost(model, params, jnp.ones((1, 1)))
    scores = {"dear": jnp.float32([[jnp.inf, -1, -1, -1]]), "cheap": jnp.float32([[-1, -2, -9, -jnp.inf]])}
    t = mz.prune(mz.scores.given(), allocation=mz.allocation.at_most(flops=10, costs=cost))
    got = mz.decoded(params, t, scores=scores)
    np.testing.assert_array_equal(got["dear"], [[1, 0, 0, 0]])
    np.testing.assert_array_equal(got["cheap"], [[1, 1, 0, 0]])


def test_what_is_not_pruned_counts_wherever_it_is():
    params = {"kernel": jnp.arange(1.0, 9.0), "bias": jnp.ones(3), "other": jnp.ones((2, 2))}
    at_most = mz.allocation.at_most(params=12)  # 7 are not pruned
    alone = mz.only("kernel", mz.prune(allocation=at_most))
    beside = mz.partition(
        {"thin": mz.prune(allocation=at_most), "coarse": mz.quantize(bits=8)},
        {"kernel": "thin", "other": "coarse"},
    )
    chained = mz.chain(alone, mz.only("kernel", mz.identity()))
    for t in (alone, beside, chained):
        assert kept(mz.compress(params, t))["kernel"] == 5
        assert int(jnp.sum(mz.decoded(params, t)["kernel"] != 0)) == 5
        started, _ = mz.start(mz.wrap(optax.sgd(0.1), t), params)
        assert int(jnp.sum(started["kernel"] != 0)) == 5


def test_the_budget_holds_when_a_schedule_ends():
    params = {"kernel": jnp.arange(1.0, 101.0), "bias": jnp.ones(10)}
    schedule = mz.schedules.polynomial(0.3, begin=0, end=4, power=1)  # only its course counts, not its 0.3
    t = mz.only("kernel", mz.prune(sparsity=schedule, allocation=mz.allocation.at_most(params=30), every=1))
    tx = mz.wrap(optax.sgd(0.0), t)
    weights, state = mz.start(tx, params)
    update = jax.jit(tx.update)
    left = [int(jnp.sum(weights["kernel"] != 0))]
    for _ in range(6):
        steps, state = update(jax.tree.map(jnp.zeros_like, weights), state, weights)
        weights = optax.apply_updates(weights, steps)
        left.append(int(jnp.sum(mz.params(state, weights)["kernel"] != 0)))
    assert left == [100, 80, 60, 40, 20, 20, 20]
    cost = trace.cost(lambda p, x: x @ p["kernel"], params, jnp.ones(100))
    allocation = mz.allocation.at_most(flops=cost.flops // 4, costs=cost)
    t = mz.prune(sparsity=mz.schedules.cubic(0.9, 0, 8), allocation=allocation)
    values = {"kernel": params["kernel"]}
    kinds = [float(t.metrics(t.init(values, mz.Context(step=s)))["sparsity"]) for s in (0, 4, 8, 9)]
    assert kinds == pytest.approx([0, 0.75 * 0.875, 0.75, 0.75], abs=0.011)


def test_any_function_is_a_way_to_the_budget():
    at_most = mz.allocation.at_most(params=4)
    t = mz.prune(sparsity=lambda step: 0.5 * step, allocation=at_most)
    values = {"w": jnp.arange(1.0, 11.0)}
    sparsity = [float(t.metrics(t.init(values, mz.Context(step=s)))["sparsity"]) for s in range(4)]
    assert sparsity == pytest.approx([0, 0.3, 0.6, 0.6])


@pytest.mark.parametrize(
    ("structure", "groups"),
    [(mz.structures.channel(), {"a": 6, "b": 4}), (mz.structures.block(2, 2), {"a": 24, "b": 24})],
)
def test_structures_are_counted_in_weights(structure, groups):
    params = {
        "a": jnp.asarray(RNG.normal(size=(16, 6)), jnp.float32),
        "b": jnp.asarray(RNG.normal(size=(24, 4)), jnp.float32),
    }
    for budget in (40, 97, 150, 191, 192):
        t = mz.prune(structure=structure, allocation=mz.allocation.at_most(params=budget))
        masks = jax.tree.map(lambda x: np.asarray(x) != 0, mz.decoded(params, t))
        left = sum(int(m.sum()) for m in masks.values())
        assert budget - 24 < left <= budget  # what is left over pays no channel of 24, no block of 4
        for name, m in masks.items():
            whole = structure.spread(structure.group(jnp.asarray(m, jnp.float32)) > 0.5, m.shape)
            np.testing.assert_array_equal(whole, m)
            assert groups[name] == structure.group(params[name]).size


def test_blocks_cut_off_at_an_edge_never_exceed_a_budget():
    params = {"a": jnp.asarray(RNG.normal(size=(7, 5)), jnp.float32)}
    for budget in (4, 9, 20, 34, 35):
        t = mz.prune(structure=mz.structures.block(2, 2), allocation=mz.allocation.at_most(params=budget))
        left = int(jnp.sum(mz.decoded(params, t)["a"] != 0))
        assert left <= budget
        assert (left == 35) == (budget == 35)


def test_jit_and_vmap():
    params, cost = case("mlp")
    t = mz.only("**/kernel", mz.prune(allocation=mz.allocation.at_most(flops=cost.flops // 3, costs=cost)))
    inside = jax.jit(lambda p: t.decode(t.init(p, mz.Context())))(params)
    jax.tree.map(np.testing.assert_array_equal, inside, mz.decoded(params, t))
    several = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), params)
    masks = jax.jit(jax.vmap(lambda p: jax.tree.map(lambda x: x != 0, t.decode(t.init(p, mz.Context())))))(
        several
    )
    for m, x in zip(kernels(masks), kernels(inside), strict=True):
        np.testing.assert_array_equal(m, jnp.stack([x != 0] * 3))


def test_a_leaf_without_flops_stays():
    params = {"used": jnp.arange(1.0, 5.0), "unused": jnp.full(4, 1e-3)}
    cost = trace.cost(lambda p, x: x @ p["used"], params, jnp.ones(4))
    got = mz.decoded(params, mz.prune(allocation=mz.allocation.at_most(flops=4, costs=cost)))
    np.testing.assert_array_equal(got["used"], [0, 0, 3, 4])
    np.testing.assert_array_equal(got["unused"], params["unused"])


def test_a_recipe_with_a_budget_is_recorded(tmp_path):
    params, cost = case("mlp")
    packed = compressed(params, flops=cost.flops // 2, costs=cost)
    mz.save(tmp_path / "a.mz", packed)
    assert mz.load(tmp_path / "a.mz").transform == packed.transform


def test_budgets_that_cannot_be_met_say_so():
    params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    with pytest.raises(
        TransformError, match="a budget of 2 parameters is not above the 2 of what is not pruned"
    ):
        compressed(params, params=2)
    model = lambda p, x: (x @ p["kernel"]) @ jnp.ones((2, 3))  # noqa: E731
    cost = trace.cost(model, params, jnp.ones((1, 4)))
    with pytest.raises(
        TransformError, match="a budget of 12 FLOPs is not above the 12 of what is not pruned"
    ):
        compressed(params, flops=12, costs=cost)
    other = trace.cost(lambda p, x: x @ p["other"], {"other": jnp.ones((4, 2))}, jnp.ones((1, 4)))
    with pytest.raises(TransformError, match=r"none of the pruned leaves, \['kernel'\].*are \['other'\]"):
        compressed({"kernel": jnp.ones((4, 2))}, flops=12, costs=other)
    fused = trace.cost(lambda p, x: x @ (p["kernel"] + p["bias"]), params, jnp.ones((1, 4)))
    with pytest.raises(TransformError, match="share a product, of which only"):
        compressed(params, flops=12, costs=fused)


def test_what_a_budget_refuses():
    at_most = mz.allocation.at_most
    for arguments, message in [
        ({}, "a bound on params or on flops"),
        ({"params": 3, "flops": 3}, "and not both"),
        ({"params": 0}, "must be an integer of at least 1, not 0"),
        ({"params": 3.0}, "must be an integer of at least 1, not 3.0"),
        ({"flops": 3}, "needs costs=trace.cost"),
    ]:
        with pytest.raises(TransformError, match=message):
            at_most(**arguments)
    with pytest.raises(TransformError, match=r"leave out sparsity=0\.5"):
        mz.prune(sparsity=0.5, allocation=at_most(params=3))
    with pytest.raises(TransformError, match="fixes the sparsity"):
        mz.prune(structure=mz.structures.n_of_m(2, 4), allocation=at_most(params=3))
    with pytest.raises(TransformError, match="ends dense"):
        mz.prune(sparsity=mz.schedules.dense_sparse_dense(0.5, 0, 3), allocation=at_most(params=3))
    with pytest.raises(TransformError, match=r"sparsity must be in \[0, 1\), not 1.0"):
        mz.prune(sparsity=1.0)
    with pytest.raises(TransformError, match=r"only mz\.prune takes"):
        at_most(params=3)([], jnp.float32(0.5))
    t = mz.prune(mz.scores.gradient_magnitude(), allocation=at_most(params=3))
    with pytest.raises(TransformError, match="needs grads to choose the first masks"):
        mz.compress({"w": jnp.ones(4)}, t)

    class Pairs(mz.structures.Structure):
        def group(self, scores):
            return scores.reshape(-1, 2).mean(1)

        def spread(self, kept, shape):
            return jnp.repeat(kept, 2).reshape(shape)

    np.testing.assert_array_equal(
        mz.decoded({"w": jnp.float32([1, 2, 3, 4])}, mz.prune(sparsity=0.5, structure=Pairs()))["w"],
        [0, 0, 3, 4],
    )

    with pytest.raises(TransformError, match="Pairs defines no `largest`"):
        mz.compress({"w": jnp.ones(4)}, mz.prune(structure=Pairs(), allocation=at_most(params=3)))


def test_layers_that_are_hardly_active_are_thinned():
    params = {
        "a": jnp.asarray(RNG.normal(size=(4, 8)), jnp.float32),
        "b": jnp.ones((8, 6)),
        "c": jnp.ones((6, 2)),
    }
    params["a"] = params["a"] - 0.7  # relu leaves little of it for positive inputs

    def model(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"] + 1.0) @ p["c"]

    found = trace.activation_sparsity(model, params, [jnp.asarray(RNG.uniform(size=(64, 4)), jnp.float32)])
    rule = mz.allocation.by_activation(found, limit=0.5)
    assert rule.thinned == ("a",)
    got = mz.decoded(params, mz.prune(sparsity=0.75, allocation=rule))
    assert [int(jnp.sum(got[n] == 0)) for n in "abc"] == [24, 0, 0]
    with pytest.raises(TransformError, match=r"share of activations in \(0, 1\]"):
        mz.allocation.by_activation(found, limit=0.0)
    with pytest.raises(
        TransformError, match="no layer has a share of non-zero activations under 1e-06; the least is"
    ):
        mz.allocation.by_activation(found, limit=1e-6)


def test_stacked_layers_count_together():
    params = {"w": jnp.stack([jnp.eye(3), -jnp.eye(3)]), "out": jnp.ones((3, 1))}

    def model(p, x):
        return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, p["w"])[0] @ p["out"] + 1.0

    found = trace.activation_sparsity(model, params, [jnp.ones((2, 3))])
    assert len(found.layers) == 3
    assert mz.allocation.by_activation(found, limit=0.6).thinned == ("w",)


def test_wide_sums_are_exact():
    counts = [2**31 - 1, 12345678, 0, 7]
    costs = [2**60 + 12345, 65535 * 65537, 2**80, 1]
    total = sum(a * b for a, b in zip(counts, costs, strict=True))
    got = weighted(jnp.asarray(counts, jnp.int32), np.stack([digits(c) for c in costs]))
    np.testing.assert_array_equal(got, digits(total))
    for other in (total - 1, total, total + 1, total + 2**90):
        assert bool(fits(got, digits(other))) == (total <= other)
    np.testing.assert_array_equal(scaled_up(digits(5), digits(total), jnp.float32(1)), digits(total + 5))
    np.testing.assert_array_equal(scaled_up(digits(5), digits(total), jnp.float32(0)), digits(5))
    np.testing.assert_array_equal(
        scaled_up(digits(5), digits(total), jnp.float32(0.25)), digits(5 + total // 4)
    )
    with pytest.raises(OverflowError):
        digits(1 << 112)
