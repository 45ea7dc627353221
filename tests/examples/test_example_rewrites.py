"""What the worked example does to a network in one go: filters that leave, and weights within a reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import ConfigError, TransformError
from modelzip_jax.examples.filter_visits import parameter_count, visit_filters
from modelzip_jax.examples.weight_reach import within_reach
from modelzip_jax.models.resize import resized
from modelzip_jax.models.vgg import VGG

RNG = np.random.default_rng(0)
MODEL = VGG(depths=(1, 1, 1, 1, 1), channels=(4, 6, 6, 8, 8))


@pytest.fixture(scope="module")
def network():
    """Variables with statistics and norms of all sizes, and inputs."""
    x = jax.random.normal(jax.random.key(1), (4, 32, 32, 1))
    variables = jax.jit(MODEL.init)(jax.random.key(0), x)
    rng = np.random.default_rng(0)

    def anything(name, leaf):
        if name.endswith("kernel"):
            return leaf
        positive = name.endswith(("var", "scale"))
        return jnp.asarray(
            rng.uniform(0.5 if positive else -0.3, 1.5 if positive else 0.3, leaf.shape), leaf.dtype
        )

    return mz.tree.map_named(anything, variables), x


def test_the_same_function_with_kernels_that_fill_their_reach(network):
    variables, x = network
    found = within_reach(variables, 0.5)
    for name, leaf in mz.tree.named_leaves(found):
        if name.endswith("kernel"):
            np.testing.assert_allclose(jnp.abs(leaf).max(), 0.5, rtol=1e-6)
    np.testing.assert_allclose(MODEL.apply(found, x), MODEL.apply(variables, x), rtol=2e-3, atol=2e-4)


def test_kernels_of_zeros_and_reaches_of_nothing(network):
    variables, _ = network
    nothing = mz.tree.map_named(lambda n, w: w * 0 if n.endswith("Conv_1/kernel") else w, variables)
    found = dict(mz.tree.named_leaves(within_reach(nothing, 0.5)))
    assert not found["params/Conv_1/kernel"].any()
    np.testing.assert_array_equal(
        found["batch_stats/BatchNorm_1/var"], variables["batch_stats"]["BatchNorm_1"]["var"]
    )
    with pytest.raises(TransformError, match="above 0"):
        within_reach(variables, 0.0)


@pytest.fixture(scope="module")
def activity(network):
    variables, x = network
    rest = {"batch_stats": variables["batch_stats"]}
    return trace.activation_sparsity(
        lambda p, x: MODEL.apply({"params": p, **rest}, x), variables["params"], [x]
    )


@pytest.mark.parametrize("order", ["sparsest", "densest", "first", "last"])
def test_visits_in_the_order_that_was_asked_for(network, activity, order):
    variables, x = network
    most = parameter_count(variables["params"]) // 2
    smaller, visits = visit_filters(MODEL.apply, variables, x, activity, max_params=most, order=order, keep=2)
    active, places = [v.active for v in visits], [int(v.leaf[5]) for v in visits]
    expected = {
        "sparsest": active == sorted(active), "densest": active == sorted(active, reverse=True),
        "first": places == [0, 1, 2, 3, 4], "last": places == [4, 3, 2, 1, 0],
    }  # fmt: skip
    assert expected[order]
    assert visits[-1].parameters == parameter_count(smaller["params"]) <= most
    assert all(2 <= v.kept <= v.filters for v in visits)
    shapes = {name: leaf.shape for name, leaf in mz.tree.named_leaves(smaller)}
    assert resized(MODEL, shapes).apply(smaller, x).shape == (4, 10)


def test_of_two_filters_the_less_active_one_leaves(network, activity):
    variables, x = network
    most = parameter_count(variables["params"]) * 3 // 4
    smaller, visits = visit_filters(MODEL.apply, variables, x, activity, max_params=most, order="first")
    for visit, layer in zip(visits, activity.layers, strict=False):
        kernel = np.asarray(variables["params"][visit.leaf.split("/")[0]]["kernel"])
        kept = np.sort(np.argsort(layer.total, kind="stable")[visit.filters - visit.kept :])
        before = visits[visits.index(visit) - 1] if visit is not visits[0] else None
        if before is None or before.kept == before.filters:
            found = smaller["params"][visit.leaf.split("/")[0]]["kernel"]
            np.testing.assert_array_equal(found, kernel[..., kept])
    assert any(v.kept < v.filters for v in visits)


def test_an_order_that_there_is_not(network, activity):
    variables, x = network
    with pytest.raises(ConfigError, match="order"):
        visit_filters(MODEL.apply, variables, x, activity, max_params=1000, order="fastest")
