import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.errors import LeafError, PatternError, TransformError
from modelzip_jax.models.language_model import LanguageModel
from modelzip_jax.models.resize import resized
from modelzip_jax.models.resnet import CifarResNet
from modelzip_jax.rewrites.blocks import Branch, block_effects, drop_blocks, remove_layers, stacked_blocks

OUTPUTS = ("blocks/attention/output/*", "blocks/mlp_out/*")


def filled(model, x):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(
        lambda s: jnp.asarray(np.abs(rng.normal(0.3, 0.2, s.shape)) + 0.1, jnp.float32), shapes
    )


@functools.cache
def resnet(blocks):
    model, x = CifarResNet(blocks, stages=(2, 3, 4)), jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    return model, filled(model, x), x


@functools.cache
def language_model():
    model = LanguageModel(vocab_size=11, num_layers=3, num_heads=2, embed_dim=4, max_length=5)
    x = jnp.array([[1, 2, 3, 4, 5]])
    return model, filled(model, x)["params"], x


def last_norms(count):
    return {f"block_{i}": f"**/BasicBlock_{i}/BatchNorm_1/*" for i in range(count)}


@pytest.mark.parametrize("blocks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_resnet_without_blocks_is_a_shallower_resnet(blocks):
    model, variables, x = resnet(blocks)
    first = [stage * blocks for stage in range(3)]  # Their shortcuts stride and pad, and cannot go.
    names = [f"block_{i}" for i in range(3 * blocks) if i not in first]
    dropped = drop_blocks(variables, last_norms(3 * blocks), names)
    shallow = {
        collection: {name: leaf for name, leaf in leaves.items() if "Block" not in name}
        | {f"BasicBlock_{i}": leaves[f"BasicBlock_{block}"] for i, block in enumerate(first)}
        for collection, leaves in variables.items()
    }
    expected = CifarResNet(1, stages=(2, 3, 4)).apply(shallow, x)
    np.testing.assert_allclose(model.apply(dropped, x), expected, rtol=1e-6)
    assert not np.allclose(model.apply(variables, x), expected, rtol=1e-2)


@pytest.mark.slow
def test_a_language_model_without_a_layer_is_a_smaller_one():
    model, params, x = language_model()
    blocks = stacked_blocks(params, *OUTPUTS)
    assert list(blocks) == ["layer_0", "layer_1", "layer_2"]
    apply = jax.jit(model.apply)
    expected = apply({"params": drop_blocks(params, blocks, ["layer_1"])}, x)
    smaller, left = remove_layers(params, "blocks/**", [1], rebuild=lambda shapes: resized(model, shapes))
    assert smaller.num_layers == 2
    assert left["blocks"]["mlp_out"]["kernel"].shape == (2, 16, 4)
    np.testing.assert_allclose(jax.jit(smaller.apply)({"params": left}, x), expected, rtol=1e-6)
    assert not np.allclose(apply({"params": params}, x), expected, rtol=1e-2)


def test_names_begin_with_the_collection_where_there_is_one():
    model, params, _ = language_model()
    smaller, left = remove_layers(
        {"params": params}, "params/blocks/**", [0, 2], rebuild=lambda shapes: resized(model, shapes)
    )
    assert smaller.num_layers == 1
    np.testing.assert_array_equal(
        left["params"]["blocks"]["mlp_in"]["bias"], params["blocks"]["mlp_in"]["bias"][1:2]
    )


@pytest.mark.parametrize("at_once", [1, 2])
def test_effects_are_differences_of_losses_in_one_trace(at_once):
    model, params, x = language_model()
    blocks = stacked_blocks(params, *OUTPUTS)
    blocks["attention of layer 0"] = Branch(OUTPUTS[:1], 0)
    blocks["all attention"] = "blocks/attention/output/*"

    def loss(params):
        return -jax.nn.log_softmax(model.apply({"params": params}, x))[0, :, 3].mean()

    # Five blocks and the whole model: two at a time leave no remainder, which would be traced by itself.
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(n=1)(loss)
    effects = block_effects(counted, params, blocks, at_once=at_once)
    again = block_effects(counted, drop_blocks(params, blocks, ["layer_0"]), blocks, at_once=at_once)
    whole = jax.jit(loss)
    for name in blocks:
        expected = whole(drop_blocks(params, blocks, [name])) - whole(params)
        np.testing.assert_allclose(effects[name], expected, atol=1e-5 * float(whole(params)))
    assert again["layer_0"] == again["attention of layer 0"] == 0.0


@pytest.mark.slow
def test_effects_of_resnet_blocks():
    model, variables, x = resnet(2)

    def loss(variables):
        return jnp.sum(model.apply(variables, x) ** 2)

    effects = block_effects(loss, variables, last_norms(6))
    dropped = loss(drop_blocks(variables, last_norms(6), ["block_3"])) - loss(variables)
    np.testing.assert_allclose(effects["block_3"], dropped, rtol=1e-5)


def test_what_is_not_there_is_named():
    params = {"blocks": {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}, "c": jnp.ones(())}
    total = lambda p: jnp.sum(p["c"])  # noqa: E731
    with pytest.raises(PatternError, match="nothing/here"):
        block_effects(total, params, {"x": "nothing/here"})
    with pytest.raises(LeafError, match="has no layer 3"):
        block_effects(total, params, {"x": Branch(("blocks/a",), 3)})
    with pytest.raises(LeafError, match="blocks/a: 3, blocks/b: 2"):
        stacked_blocks(params, "blocks/*")
    with pytest.raises(LeafError, match="no axis"):
        stacked_blocks(params, "c")
    with pytest.raises(TransformError, match="did you mean 'first'"):
        drop_blocks(params, {"first": "c"}, ["fist"])
    with pytest.raises(TransformError, match="layers 0 to 2"):
        remove_layers(params, "blocks/a", [3])
    with pytest.raises(TransformError, match="keep at least one"):
        remove_layers(params, "blocks/a", [0, 1, 2])
    with pytest.raises(TransformError, match="scalar"):
        block_effects(lambda p: p["blocks"]["a"], params, {"x": "c"})
    with pytest.raises(TransformError, match="at least one block"):
        block_effects(total, params, {})


def test_types_stay():
    params = {"a": jnp.ones(2, jnp.bfloat16), "n": jnp.ones(2, jnp.int32)}
    dropped = drop_blocks(params, {"x": ["a", "n"]}, ["x"])
    assert dropped["a"].dtype == jnp.bfloat16
    assert dropped["n"].dtype == jnp.int32
