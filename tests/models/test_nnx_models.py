"""The NNX models compute what the Linen ones do, on the same leaves."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from modelzip_jax import models, tree
from modelzip_jax.errors import ModelError
from modelzip_jax.models import nnx_mlp, nnx_resnet
from modelzip_jax.models.mlp import MLP
from modelzip_jax.models.resnet import CifarResNet

PAIRS = {
    "mlp": (MLP((16, 8)), nnx_mlp.MLP, {"widths": (16, 8)}, (5, 5, 1)),
    "pad": (CifarResNet(blocks=2), nnx_resnet.CifarResNet, {"blocks": 2}, (8, 8, 3)),
    "projection": (
        CifarResNet(1, shortcut="projection"),
        nnx_resnet.CifarResNet,
        {"blocks": 1, "shortcut": "projection"},
        (8, 8, 3),
    ),
}


def from_linen(model, variables):
    """Copies Linen variables into an NNX model by leaf path."""
    flat = {}
    for collection in variables.values():
        flat |= traverse_util.flatten_dict(collection)
    state = nnx.to_flat_state(nnx.state(model))
    assert {path for path, _ in state} == set(flat)
    for path, variable in state:
        variable.set_value(flat[path])
    nnx.update(model, nnx.from_flat_state(state))


def pair(name):
    linen, constructor, options, input_shape = PAIRS[name]
    x = jax.random.normal(jax.random.key(1), (4, *input_shape))
    variables = jax.jit(linen.init)(jax.random.key(0), x)
    # Statistics and scales away from their initial zeros and ones.
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [a + 0.1 * jax.random.uniform(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    variables = jax.tree.unflatten(treedef, leaves)
    model = constructor(input_shape, **options, rngs=nnx.Rngs(0))
    from_linen(model, variables)
    return linen, variables, model, x


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_and_statistics_equal_linen(name):
    linen, variables, model, x = pair(name)
    evaluate = nnx.jit(lambda model, x: model(x))
    train = nnx.jit(lambda model, x: model(x, train=True))
    np.testing.assert_allclose(evaluate(model, x), jax.jit(linen.apply)(variables, x), atol=1e-5, rtol=1e-5)

    apply = jax.jit(lambda v, x: linen.apply(v, x, train=True, mutable=["batch_stats"]))
    logits, updated = apply(variables, x)
    np.testing.assert_allclose(train(model, x), logits, atol=1e-5, rtol=1e-5)
    stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    chex.assert_trees_all_close(stats, updated.get("batch_stats", {}), atol=1e-5, rtol=1e-5)


def test_evaluation_leaves_the_statistics_alone():
    model = nnx_resnet.CifarResNet((8, 8, 3), blocks=1, rngs=nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    nnx.jit(lambda model, x: model(x))(model, jnp.ones((2, 8, 8, 3)))
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), before)


@pytest.mark.parametrize("name", models.names("nnx"))
def test_names_give_one_architecture_in_both_frameworks(name):
    x = jnp.zeros((1, 32, 32, 3))
    linen = jax.eval_shape(models.create(name).init, jax.random.key(0), x)["params"]
    constructor = models.create(name, framework="nnx")
    params = nnx.state(nnx.eval_shape(lambda: constructor(x.shape[1:], rngs=nnx.Rngs(0))), nnx.Param)
    shapes = [{path: leaf.shape for path, leaf in tree.named_leaves(t)} for t in (params, linen)]
    assert shapes[0] == shapes[1]


def test_parameter_counts_are_the_published_ones():
    for name, count in {"lenet_300_100": 266_610, "resnet20": 269_722}.items():
        constructor = models.create(name, framework="nnx")
        model = nnx.eval_shape(lambda constructor=constructor: constructor(rngs=nnx.Rngs(0)))
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
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


def test_gradients_are_finite_and_trace_once():
    model = nnx_resnet.CifarResNet((8, 8, 3), blocks=1, rngs=nnx.Rngs(0))
    traces = []

    @nnx.jit
    def gradient(model, x):
        traces.append(1)
        return nnx.grad(lambda model: -jax.nn.log_softmax(model(x, train=True))[:, 0].mean())(model)

    for seed in range(2):
        grads = gradient(model, jax.random.normal(jax.random.key(seed), (4, 8, 8, 3)))
    chex.assert_tree_all_finite(grads)
    assert all(np.any(g) for g in jax.tree.leaves(grads))
    assert len(traces) == 1


def test_unknown_shortcut_and_integers_are_refused():
    with pytest.raises(ModelError, match="'pad' or 'projection', not 'conv'"):
        nnx_resnet.CifarResNet((8, 8, 3), shortcut="conv", rngs=nnx.Rngs(0))
    model = nnx_mlp.MLP((4,), rngs=nnx.Rngs(0))
    with pytest.raises(ModelError, match="takes floats"):
        model(jnp.zeros((1, 4), jnp.uint8))
