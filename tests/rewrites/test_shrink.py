import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import LeafError, ModelError, TransformError
from modelzip_jax.models.language_model import LanguageModel
from modelzip_jax.models.lenet import LeNet5
from modelzip_jax.models.mlp import MLP
from modelzip_jax.models.nnx_resnet import CifarResNet as NnxResNet
from modelzip_jax.models.resize import resized
from modelzip_jax.models.resnet import CifarResNet
from modelzip_jax.models.vgg import VGG
from modelzip_jax.rewrites.shrinking import shrink, shrink_nnx, silence

IMAGE = (2, 32, 32, 3)
MODELS = {
    "mlp": (MLP((12, 8)), (2, 4, 4, 1)),
    "lenet5": (LeNet5(widths=(4, 6, 10)), (2, 16, 16, 1)),
    "vgg": (VGG((1, 1, 2, 1, 1), width=1 / 16), IMAGE),
    "resnet, padded": (CifarResNet(blocks=2, stages=(4, 6, 8)), IMAGE),
    "resnet, projected": (CifarResNet(blocks=1, shortcut="projection", stages=(4, 6, 8)), IMAGE),
    "language model": (LanguageModel(vocab_size=11, num_layers=2, num_heads=4, embed_dim=8, max_length=6), (2, 6)),
    "language model, unscanned": (
        LanguageModel(vocab_size=11, num_layers=2, num_heads=4, embed_dim=8, max_length=6, scan=False), (2, 6),
    ),
}  # fmt: skip


def filled(shapes, seed=0):
    """Random leaves, variances positive: initial scales and biases would hide mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(np.abs(rng.normal(0.3, 0.2, s.shape)) + 0.1, s.dtype), shapes)


@functools.cache
def traced(name):
    model, shape = MODELS[name]
    rng = np.random.default_rng(1)
    x = rng.integers(0, 11, shape) if len(shape) == 2 else rng.normal(size=shape).astype(np.float32)
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), x))
    return model, variables, x, trace.couplings(model.apply, variables, x)


def half(groups, seed=0):
    """A random half of each group's units; of heads and places in them, heads only, as modules can be rebuilt."""
    rng = np.random.default_rng(seed)
    chosen = [g for g in groups if "value" not in str(g.leaves) or "query" in str(g.leaves)]
    return [(g, rng.permutation(g.units)[: g.units // 2]) for g in chosen]


SLOW = ("vgg", "resnet, projected", "language model, unscanned")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MODELS]
)
def test_the_smaller_model_computes_what_the_silenced_one_does(name):
    model, variables, x, found = traced(name)
    removals = half(found.groups)
    assert removals
    smaller, shrunk = shrink(variables, removals, rebuild=lambda shapes: resized(model, shapes))
    expected = model.apply(silence(variables, removals), x)
    np.testing.assert_allclose(
        smaller.apply(shrunk, x), expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max())
    )
    assert mz.tree.nbytes(shrunk) < 0.7 * mz.tree.nbytes(variables)
    before, after = (trace.cost(m.apply, v, x).flops for m, v in ((model, variables), (smaller, shrunk)))
    assert after < 0.75 * before


def test_heads_and_places_in_them_can_go_together():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(x, x)

    model, x = Attention(), jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = filled(jax.eval_shape(model.init, jax.random.key(0), x))
    groups = trace.couplings(model.apply, variables, x).groups
    assert len(groups) == 2
    removals = [(g, [0]) for g in groups]
    shrunk = shrink(variables, removals)["params"]["attention"]
    assert shrunk["query"]["kernel"].shape == (8, 3, 2)
    assert shrunk["value"]["kernel"].shape == (8, 3, 1)
    silenced = silence(variables, removals)["params"]["attention"]

    def attend(p):
        q, k, v = (
            jnp.einsum("nld,dhe->nlhe", x, p[n]["kernel"]) + p[n]["bias"] for n in ("query", "key", "value")
        )
        weights = jax.nn.softmax(jnp.einsum("nqhe,nkhe->nhqk", q, k) / np.sqrt(2.0))
        return jnp.einsum("nhqk,nkhe,hed->nqd", weights, v, p["out"]["kernel"]) + p["out"]["bias"]

    np.testing.assert_allclose(
        attend(silenced), model.apply({"params": {"attention": silenced}}, x), rtol=1e-5
    )
    np.testing.assert_allclose(attend(shrunk), attend(silenced), rtol=1e-5)


def test_nnx_modules_shrink_in_place():
    module = nnx.eval_shape(lambda: NnxResNet(IMAGE[1:], blocks=1, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(module)
    module = nnx.merge(graph, filled(state))
    graph, state = nnx.split(module)
    x = jax.random.normal(jax.random.key(1), IMAGE)

    def apply(state, x):
        return nnx.merge(graph, state)(x)

    inner = [g for g in trace.couplings(apply, state, x).groups if len(g.leaves) == 6]
    assert len(inner) == 3
    removals = half(inner)
    expected = apply(silence(state, removals), x)
    before = mz.tree.nbytes(nnx.state(module))
    shrink_nnx(module, removals)
    np.testing.assert_allclose(module(x), expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))
    assert mz.tree.nbytes(nnx.state(module)) < 0.7 * before


def test_a_shrunk_model_comes_back_from_its_file(tmp_path):
    model, variables, x, found = traced("vgg")
    smaller, shrunk = shrink(variables, half(found.groups), rebuild=lambda shapes: resized(model, shapes))
    packed = mz.compress(shrunk["params"], mz.identity())
    packed = dataclasses.replace(packed, variables={"batch_stats": shrunk["batch_stats"]})
    mz.save(tmp_path / "model.mz", packed)
    loaded = mz.load(tmp_path / "model.mz")
    again = {"params": mz.unpack(loaded), **loaded.variables}
    np.testing.assert_array_equal(smaller.apply(again, x), smaller.apply(shrunk, x))


def test_masks_and_indices_mean_the_same():
    _, variables, _, found = traced("mlp")
    (group, *_) = found.groups
    mask = np.zeros(group.units, bool)
    mask[[1, 3]] = True
    a, b = shrink(variables, {group: mask}), shrink(variables, {group: [3, 1]})
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_it_works_under_jit():
    _, variables, _, found = traced("mlp")
    removals = half(found.groups)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(lambda v: shrink(v, removals))(variables),
        shrink(variables, removals),
    )


def test_bad_removals_are_named():
    _, variables, _, found = traced("mlp")
    (group, *_) = found.groups
    with pytest.raises(TransformError, match="keep at least one"):
        shrink(variables, {group: np.ones(group.units, bool)})
    with pytest.raises(TransformError, match=f"units 0 to {group.units - 1}"):
        shrink(variables, {group: [group.units]})
    with pytest.raises(TransformError, match="flags"):
        shrink(variables, {group: np.ones(3, bool)})
    with pytest.raises(LeafError, match="all collections"):
        shrink(variables["params"], {group: [0]})
    with pytest.raises(LeafError, match="anew"):
        shrink(shrink(variables, {group: range(group.units - 1)}), {group: [5]})


def test_a_module_without_a_rule_is_refused():
    with pytest.raises(ModelError, match="rebuild"):
        resized(nn.Dense(3), {})
