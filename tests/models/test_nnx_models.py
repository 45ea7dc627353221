"""The NNX models compute what the Linen ones do, on the same leaves."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import fill
from flax import nnx, traverse_util

from modelzip_jax import models, tree
from modelzip_jax.errors import ModelError
from modelzip_jax.models import nnx_mlp, nnx_resnet
from modelzip_jax.models.mlp import MLP
from modelzip_jax.models.resnet import CifarResNet

PAIRS = {
    "mlp": (MLP((16, 8)), nnx_mlp.MLP, {"widths": (16, 8)}, (5, 5, 1)),
    "pad": (CifarResNet(blocks=1), nnx_resnet.CifarResNet, {"blocks": 1}, (8, 8, 3)),
    "projection": (
        CifarResNet(1, shortcut="projection"),
        nnx_resnet.CifarResNet,
        {"blocks": 1, "shortcut": "projection"},
        (8, 8, 3),
    ),
}


def abstract(constructor, *args, **options):
    """The model without values: initialising one op by op takes longer than all tests here."""
    return nnx.eval_shape(lambda: constructor(*args, **options, rngs=nnx.Rngs(0)))


def from_linen(model, variables):
    """An NNX model with the values of Linen variables, which must have the same leaf paths."""
    flat = {}
    for collection in variables.values():
        flat |= traverse_util.flatten_dict(collection)
    graphdef, state = nnx.split(model)
    leaves = nnx.to_flat_state(state)
    assert {path for path, _ in leaves} == set(flat)
    for path, variable in leaves:
        assert variable.shape == flat[path].shape
        variable.set_value(flat[path])
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_and_statistics_equal_linen(name):
    linen, constructor, options, input_shape = PAIRS[name]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, *input_shape)), jnp.float32)
    variables = fill(linen, x)
    model = from_linen(abstract(constructor, input_shape, **options), variables)

    np.testing.assert_allclose(model(x), linen.apply(variables, x), atol=1e-5, rtol=1e-5)
    chex.assert_trees_all_equal(statistics(model), variables.get("batch_stats", {}))
    logits, updated = linen.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(model(x, train=True), logits, atol=1e-5, rtol=1e-5)
    chex.assert_trees_all_close(statistics(model), updated.get("batch_stats", {}), atol=1e-5, rtol=1e-5)


def statistics(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


@pytest.mark.parametrize("name", models.model_names("nnx"))
def test_names_give_one_architecture_in_both_frameworks(name):
    x = jnp.zeros((1, 32, 32, 3))
    linen = jax.eval_shape(models.create(name).init, jax.random.key(0), x)["params"]
    params = nnx.state(abstract(models.create(name, framework="nnx"), x.shape[1:]), nnx.Param)
    shapes = [{path: leaf.shape for path, leaf in tree.named_leaves(t)} for t in (params, linen)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("name", "count"), [("lenet_300_100", 266_610), ("resnet20", 269_722)])
def test_parameter_counts_are_the_published_ones(name, count):
    leaves = jax.tree.leaves(nnx.state(abstract(models.create(name, framework="nnx")), nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


@pytest.mark.parametrize("name", ["mlp", "resnet20"])
def test_half_precision_keeps_logits_and_statistics_in_float32(name):
    constructor = models.create(name, framework="nnx", dtype="bfloat16", param_dtype="bfloat16")

    def forward():
        model = constructor((32, 32, 3), rngs=nnx.Rngs(0))
        return nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat), model(jnp.zeros((1, 32, 32, 3)))

    params, stats, logits = nnx.eval_shape(forward)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} <= {jnp.dtype("float32")}


def test_a_training_step_traces_once_and_its_gradients_are_finite():
    model, traces = nnx_mlp.MLP((6,), (8,), 8, rngs=nnx.Rngs(0)), []

    @nnx.jit
    def gradient(model, x):
        traces.append(1)
        return nnx.grad(lambda model: -jax.nn.log_softmax(model(x, train=True))[:, 0].mean())(model)

    for value in (1.0, 2.0):
        grads = gradient(model, jnp.full((4, 6), value))
    chex.assert_tree_all_finite(grads)
    assert all(np.any(g) for g in jax.tree.leaves(grads))
    assert len(traces) == 1


def test_unknown_shortcut_and_integers_are_refused():
    with pytest.raises(ModelError, match="'pad' or 'projection', not 'conv'"):
        abstract(nnx_resnet.CifarResNet, (8, 8, 3), shortcut="conv")
    with pytest.raises(ModelError, match="takes floats"):
        abstract(nnx_mlp.MLP, (4,))(jnp.zeros((1, 4), jnp.uint8))
