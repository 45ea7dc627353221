import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import LeafError, NonFiniteError, TransformError
from modelzip_jax.models.mlp import MLP
from modelzip_jax.models.nnx_resnet import CifarResNet as NnxResNet
from modelzip_jax.models.resize import resized
from modelzip_jax.models.resnet import CifarResNet
from modelzip_jax.rewrites.channels import batch_norm_scale, unit_scores
from modelzip_jax.rewrites.shrinking import shrink, shrunk_shapes, silence
from modelzip_jax.rewrites.unit_choice import choose_units

MODELS = {
    "mlp": (MLP((24, 16)), (2, 4, 4, 1)),
    "resnet": (CifarResNet(blocks=1, stages=(6, 8, 10)), (2, 8, 8, 3)),
}


@functools.cache
def traced(name):
    model, shape = MODELS[name]
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    variables = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return model, variables, x, trace.couplings(model.apply, variables, x).groups


def cut(name, removals):
    """Parameters and FLOPs of the model that is really shrunk."""
    model, variables, x, _ = traced(name)
    smaller, shrunk = shrink(variables, removals, rebuild=lambda shapes: resized(model, shapes))
    params = sum(w.size for w in jax.tree.leaves(shrunk["params"]))
    return params, trace.cost(smaller.apply, shrunk, x).flops


def bounded(name, scores, **options):
    model, variables, x, _ = traced(name)
    return choose_units(
        scores, variables, rebuild=lambda shapes: resized(model, shapes), inputs=(x,), **options
    )


def magnitudes(name, **options):
    _, variables, _, groups = traced(name)
    return unit_scores(variables, groups, mz.scores.magnitude(2)(variables["params"]), **options)


def test_a_unit_scores_what_goes_with_it():
    _, variables, _, groups = traced("resnet")
    found = magnitudes("resnet", normalize=False)
    for group in groups:
        for unit in (0, group.units - 1):
            # All that silencing the unit clears, batch statistics aside.
            left = silence(variables, {group: [unit]})["params"]
            squares = jax.tree.map(
                lambda a, b: np.sum(np.float64(a) ** 2 - np.float64(b) ** 2), variables["params"], left
            )
            np.testing.assert_allclose(found[group][unit], sum(jax.tree.leaves(squares)), rtol=1e-5)


def test_normalized_groups_compare():
    raw, scaled = magnitudes("resnet", normalize=False), magnitudes("resnet")
    for group in raw:
        np.testing.assert_allclose(scaled[group], raw[group] / raw[group].mean())
    mean = magnitudes("resnet", aggregate="mean", normalize=False)
    ratios = [raw[group] / mean[group] for group in raw]  # Weights of a unit.
    assert all(np.allclose(r, round(r[0])) and r[0] > 1 for r in ratios)


def test_scores_that_do_not_fit_are_named():
    _, variables, _, groups = traced("mlp")
    with pytest.raises(LeafError, match="Dense_0/kernel"):
        unit_scores(variables, groups, {"Dense_0": {"kernel": np.ones((2, 2))}})
    with pytest.raises(TransformError, match="no leaf of group"):
        unit_scores(variables, groups, {"other": np.ones(3)})
    with pytest.raises(LeafError, match="all collections"):
        unit_scores(variables["params"], groups, variables["params"])
    with pytest.raises(TransformError, match="aggregate"):
        unit_scores(variables, groups, variables, aggregate="max")


def test_scales_of_batch_normalisation():
    _, variables, _, groups = traced("resnet")
    found = batch_norm_scale(variables, groups)
    params = variables["params"]
    for block in range(3):
        (group,) = [g for g in groups if f"params/BasicBlock_{block}/BatchNorm_0/scale" in g.leaves]
        scale = params[f"BasicBlock_{block}"]["BatchNorm_0"]["scale"]
        np.testing.assert_allclose(found[group], np.abs(scale), rtol=1e-6)
    # The stream of the first stage goes on through the padded shortcuts of both others.
    (stream,) = [g for g in groups if "params/BatchNorm_0/scale" in g.leaves]
    scales = [params["BatchNorm_0"]["scale"]]
    scales += [params[f"BasicBlock_{i}"]["BatchNorm_1"]["scale"][:6] for i in range(3)]
    np.testing.assert_allclose(found[stream], np.mean(np.abs(scales), axis=0), rtol=1e-6)
    _, variables, _, groups = traced("mlp")
    with pytest.raises(TransformError, match=r"no batch normalisation.*Dense_"):
        batch_norm_scale(variables, groups)


def test_scales_of_nnx_modules():
    graph, shapes = nnx.split(nnx.eval_shape(lambda: NnxResNet((8, 8, 3), blocks=1, rngs=nnx.Rngs(0))))
    state = jax.tree.map(lambda s: jnp.full(s.shape, 3.0, s.dtype), shapes)
    groups = trace.couplings(lambda s, x: nnx.merge(graph, s)(x), state, jnp.ones((1, 8, 8, 3))).groups
    found = batch_norm_scale(state, groups)
    assert len(found) == len(groups) >= 3
    assert all((scores == 3.0).all() for scores in found.values())


def test_shares():
    *_, groups = traced("resnet")
    scores = {g: np.arange(g.units) + 100.0 * i for i, g in enumerate(groups)}
    uniform = choose_units(scores, share=0.4, allocation="uniform")
    assert all(gone.tolist() == list(range(round(0.4 * g.units))) for g, gone in uniform.items())
    overall = choose_units(scores, share=0.4)
    assert sum(map(len, overall.values())) == round(0.4 * sum(g.units for g in groups))
    assert len(overall[groups[0]]) == groups[0].units - 1
    assert len(choose_units(scores, share=0.4, keep=3)[groups[0]]) == groups[0].units - 3
    # As much as can go, goes, and one unit of each group is left.
    everything = choose_units(scores, share=0.999)
    assert all(len(gone) == g.units - 1 for g, gone in everything.items())


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_bounds_on_parameters_hold_tightly(allocation):
    params, _ = cut("mlp", {})
    for share in (0.3, 0.6, 0.85):
        limit = round(share * params)
        used, _ = cut("mlp", bounded("mlp", magnitudes("mlp"), max_params=limit, allocation=allocation))
        assert used <= limit
        assert used > limit - 33  # A unit of the first layer has 17 + 16 parameters.


def test_counts_that_stay_are_multiples():
    *_, groups = traced("resnet")
    scores = {g: np.arange(g.units)[::-1] for g in groups}
    for allocation in ("global", "uniform"):
        gone = choose_units(scores, share=0.5, allocation=allocation, round_to=4)
        left = {g: g.units - len(gone[g]) for g in groups}
        assert all(n == g.units or n % 4 == 0 for g, n in left.items())
        assert any(n < g.units for g, n in left.items())
        assert all(set(gone[g]) == set(range(n, g.units)) for g, n in left.items())  # Lowest scores go.
    everything = choose_units(scores, share=0.999, round_to=4)
    assert {len(units) - g.units for g, units in everything.items()} == {-4}
    # A group of fewer units stays, and so does one of which more shall be kept.
    assert not any(map(len, choose_units(scores, share=0.9, round_to=11).values()))
    assert {g.units - len(u) for g, u in choose_units(scores, share=0.999, round_to=4, keep=5).items()} <= {
        6,
        8,
    }

    params, _ = cut("mlp", {})
    gone = bounded("mlp", magnitudes("mlp"), max_params=params // 2, round_to=8)
    assert all((g.units - len(units)) % 8 == 0 for g, units in gone.items())
    assert cut("mlp", gone)[0] <= params // 2


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5])
def test_bounds_on_flops_hold_and_nothing_more_fits(share):
    _, flops = cut("resnet", {})
    limit = round(share * flops)
    gone = bounded("resnet", magnitudes("resnet"), max_flops=limit, tolerance=0.0)
    _, used = cut("resnet", gone)
    assert used <= limit
    for group, units in gone.items():
        if len(units):
            more = {**gone, group: units[1:]}
            assert cut("resnet", more)[1] > limit


def test_both_bounds_hold():
    params, flops = cut("resnet", {})
    gone = bounded("resnet", magnitudes("resnet"), max_flops=flops // 2, max_params=params // 3)
    used = cut("resnet", gone)
    assert used[0] <= params // 3
    assert used[1] <= flops // 2


def test_a_bound_that_holds_already_removes_nothing():
    assert all(not len(gone) for gone in bounded("mlp", magnitudes("mlp"), max_params=10**9).values())


def test_a_bound_out_of_reach_names_the_smallest_number():
    smallest, _ = cut("mlp", choose_units(magnitudes("mlp"), share=0.999))
    with pytest.raises(TransformError, match=rf"max_params={smallest - 1} with {smallest} at the least"):
        bounded("mlp", magnitudes("mlp"), max_params=smallest - 1)
    used, _ = cut("mlp", bounded("mlp", magnitudes("mlp"), max_params=smallest))
    assert used == smallest


def test_bad_requests_are_named():
    _, variables, _, groups = traced("mlp")
    scores = magnitudes("mlp")
    with pytest.raises(TransformError, match="either share="):
        choose_units(scores, variables)
    with pytest.raises(TransformError, match="either share="):
        choose_units(scores, variables, share=0.5, max_params=10)
    with pytest.raises(TransformError, match="rebuild="):
        choose_units(scores, variables, max_flops=10)
    with pytest.raises(TransformError, match="round_to must be at least 1"):
        choose_units(scores, share=0.5, round_to=0)
    with pytest.raises(TransformError, match="share must"):
        choose_units(scores, share=1.0)
    with pytest.raises(TransformError, match="not scores"):
        choose_units({groups[0]: [1.0]}, share=0.5)
    with pytest.raises(NonFiniteError, match="NaN"):
        choose_units({groups[0]: np.full(groups[0].units, np.nan)}, share=0.5)


def test_shapes_are_those_of_the_shrunk_tree():
    _, variables, *_ = traced("resnet")
    removals = choose_units(magnitudes("resnet"), share=0.5)
    got = jax.tree.map(lambda s: (s.shape, s.dtype), shrunk_shapes(variables, removals))
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), shrink(variables, removals))
    assert got == expected


def test_shapes_suffice_to_choose():
    model, variables, x, groups = traced("mlp")
    shapes = jax.eval_shape(lambda v: v, variables)
    scores = magnitudes("mlp")
    from_shapes = choose_units(
        scores,
        shapes,
        max_flops=1000,
        rebuild=lambda s: resized(model, s),
        inputs=(jax.eval_shape(lambda: x),),
    )
    expected = bounded("mlp", scores, max_flops=1000)
    for group in groups:
        np.testing.assert_array_equal(from_shapes[group], expected[group])
        assert len(expected[group])
