"""Every use of every parameter, whatever the model is written with."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from trace_models import MobileNet, ViT, normal

from modelzip_jax import tree
from modelzip_jax.errors import LeafError, TraceError
from modelzip_jax.models import language_model, lenet, nnx_mlp, resnet, vgg
from modelzip_jax.models.bert import SentenceEncoder, SentenceEncoderConfig
from modelzip_jax.trace import couplings, uses


def of(found, leaf):
    return [u for u in found if u.leaf == leaf]


def roles(found):
    return [(u.leaf, u.kind, u.contracted, u.output) for u in found]


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def init(model, *inputs):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)


TOKENS = shape(2, 8, dtype=jnp.int32)
SMALL_BERT = SentenceEncoderConfig(50, 8, 2, 2, 16, 16)
MODELS = {
    "lenet": (lenet.LeNet5(), shape(1, 28, 28, 1)),
    "vgg19": (vgg.vgg19(), shape(1, 32, 32, 3)),
    "resnet20": (resnet.resnet20(), shape(1, 32, 32, 3)),
    "resnet50": (resnet.resnet50(), shape(1, 64, 64, 3)),
    "mobilenet": (MobileNet(), shape(1, 8, 8, 3)),
    "vit": (ViT(), shape(1, 8, 8, 3)),
    "minilm": (SentenceEncoder(SMALL_BERT), TOKENS, TOKENS),
    "decoder": (language_model.LanguageModel(num_layers=2, embed_dim=8, num_heads=2, remat=True), TOKENS),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_leaf_of_every_model_has_its_uses(name):
    model, *inputs = MODELS[name]
    params = init(model, *inputs)
    found = uses(model.apply, params, *inputs)
    assert {u.leaf for u in found} == {n for n, _ in tree.named_leaves(params)}
    assert not of(found, "opaque")
    for leaf, x in tree.named_leaves(params):
        kinds = {u.kind for u in of(found, leaf)}
        if leaf.endswith("kernel"):
            assert kinds <= {"dot", "conv"}, leaf
            (use,) = of(found, leaf)
            assert not use.derived
            assert set(use.contracted) | set(use.output) | set(use.layers) == set(range(len(x.shape)))
            assert use.view.complete
        elif leaf.endswith("embedding"):
            assert kinds <= {"gather", "dot", "elementwise"}
        else:
            assert kinds == ({"copy"} if leaf.endswith("cls") else {"elementwise"})


def test_square_everything_is_no_puzzle():
    """Batch = in = out features, where guessing by shape fails."""
    x = jnp.ones((4, 4))
    found = uses(lambda p, x: p["b"] @ (x @ p["a"].T), {"a": x, "b": x}, x)
    assert roles(found) == [("a", "dot", (1,), (0,)), ("b", "dot", (1,), (0,))]
    assert [u.operand for u in found] == [1, 0]


def test_scanned_layers_keep_their_axis():
    model, tokens = MODELS["decoder"]
    found = uses(model.apply, init(model, tokens), tokens)
    (query,) = of(found, "params/blocks/attention/query/kernel")
    assert (query.layers, query.contracted, query.output, query.trips) == ((0,), (1,), (2,), 2)
    assert ":scan/" in query.path


def test_tied_weights_show_each_use():
    model, tokens = MODELS["decoder"]
    found = of(uses(model.apply, init(model, tokens), tokens), "params/token_embedding/embedding")
    assert [(u.kind, u.index) for u in found] == [("gather", 0), ("dot", 1)]
    assert (found[1].contracted, found[1].output) == ((1,), (0,))


def test_fused_projections():
    p = {name: jnp.ones((6, 8)) for name in "qkv"} | {"all": jnp.ones((6, 24))}

    def concatenated(p, x):
        return x @ jnp.concatenate([p["q"], p["k"], p["v"]], axis=1)

    found = uses(concatenated, p, jnp.ones((2, 6)))
    assert roles(found) == [(n, "dot", (0,), (1,)) for n in "qkv"]
    assert [u.view.axes[1].origin for u in found] == [0, 8, 16]
    found = uses(lambda p, x: jnp.einsum("bi,nio->nbo", x, jnp.stack([p["q"], p["k"]])), p, jnp.ones((2, 6)))
    assert roles(found) == [("q", "dot", (0,), (1,)), ("k", "dot", (0,), (1,))]

    def one_third(p, x):
        return jnp.einsum("bi,ihd->bhd", x, p["all"].reshape(6, 3, 2, 4)[:, 1])

    (use,) = uses(one_third, p, jnp.ones((2, 6)))
    assert use.view.starts == (0, 8)
    assert not use.view.complete


def test_derived_weights_name_what_changed_them():
    p = {"w": jnp.ones((6, 8)), "a": jnp.ones((6, 2)), "b": jnp.ones((2, 8))}
    found = uses(lambda p, x: x @ (p["w"] + 0.5 * (p["a"] @ p["b"])), p, jnp.ones((3, 6)))
    assert [(u.leaf, u.derived, u.contracted, u.output) for u in found] == [
        ("w", True, (0,), (1,)), ("a", True, (0,), ()), ("b", True, (), (1,)),
    ]  # fmt: skip
    assert found[0].through == ("dot_general", "mul", "add")

    def weight_norm(p, x):
        return x @ (p["w"] / jnp.linalg.norm(p["w"], axis=0))

    (use,) = uses(weight_norm, p, jnp.ones((3, 6)))
    assert (use.leaf, use.contracted, use.output) == ("w", (0,), (1,))
    assert use.through == ("mul", "reduce_sum", "sqrt", "div")


def test_loops_and_branches():
    p = {"w": jnp.ones((3, 4, 4)), "v": jnp.ones((4, 4)), "b": jnp.ones(4), "h": jnp.ones((4, 4))}

    def model(p, x):
        y = lax.fori_loop(0, 3, lambda i, c: c @ p["w"][i], x)
        y = lax.while_loop(lambda c: c[0].sum() < 3, lambda c: (c[0] @ c[1], c[1]), (y, p["v"]))[0]
        y = lax.cond(y.sum() > 0, lambda y: y @ p["v"], lambda y: y + p["b"], y)
        return lax.scan(lambda c, x: (c * 0.5 + x, c), p["h"], y[None])[0]

    found = uses(model, p, jnp.ones((4, 4)))
    w, v, b, again, h = found
    assert (w.layers, w.contracted, w.output, w.trips) == ((0,), (1,), (2,), 3)
    assert "while/body" in v.path
    assert v.trips is None
    assert again.index == 1
    assert ":cond/1/" in again.path
    assert (b.kind, ":cond/0/" in b.path) == ("elementwise", True)
    assert h.kind == "copy"


def test_custom_derivatives_and_jit_are_transparent():
    @jax.custom_vjp
    def ours(x, w):
        return x @ w

    ours.defvjp(lambda x, w: (x @ w, None), lambda r, g: (g, g))
    found = uses(jax.jit(lambda p, x: ours(x, p)), jnp.ones((4, 4)), jnp.ones((4, 4)))
    assert found[0].contracted == (0,)
    assert "custom_vjp" in found[0].path


def test_shard_map():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))
    def product(x, w):
        return x @ w

    (use,) = uses(lambda p, x: product(x, p), jnp.ones((4, 4)), jnp.ones((4, 4)))
    assert (use.contracted, use.output, use.derived) == ((0,), (1,), False)


def test_what_has_no_rule_is_opaque_and_named():
    (use,) = uses(lambda p, x: jnp.array(x).at[0].add(p[0]), jnp.ones(2), jnp.ones(4))
    assert (use.kind, use.primitive) == ("opaque", "scatter-add")
    (use,) = uses(lambda p, x: lax.conv(p, x, (1, 1), "SAME"), jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 3, 3)))
    assert (use.kind, use.primitive, use.operand) == ("opaque", "conv_general_dilated", 0)


def test_refs_that_are_only_read_are_transparent():
    def model(p, x):
        return x @ jax.ref.new_ref(p)[...]

    (use,) = uses(model, jnp.ones((4, 4)), jnp.ones((4, 4)))
    assert (use.kind, use.derived, use.contracted) == ("dot", False, (0,))


def test_refs_that_are_written_to_may_hold_anything():
    def model(p, x):
        weight, state = jax.ref.new_ref(p), jax.ref.new_ref(jnp.zeros((4, 4)))
        state[...] = x
        weight[...] += 1.0
        return state[...] @ p + x @ weight[...]

    found = uses(model, jnp.ones((4, 4)), jnp.ones((4, 4)))
    assert [(u.kind, u.primitive) for u in found] == [("opaque", "new_ref"), ("dot", "dot_general")]
    assert not couplings(lambda p, x: model(x @ p, x) @ p, jnp.ones((4, 4)), jnp.ones((4, 4))).groups


def test_an_output_is_a_use():
    (use,) = uses(lambda p, x: (p, x), jnp.ones(3), jnp.ones(3))
    assert (use.kind, use.path) == ("copy", "output:0")


def test_nnx_and_equinox():
    graph, state = nnx.split(nnx.eval_shape(lambda: nnx_mlp.MLP((4, 4, 1), widths=(8,), rngs=nnx.Rngs(0))))
    found = uses(lambda s, x: nnx.merge(graph, s)(x), state, jnp.ones((2, 4, 4, 1)))
    assert ("Dense_0/kernel", "dot", (0,), (1,)) in roles(found)
    module = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    params, static = eqx.partition(module, eqx.is_array)
    found = uses(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, jnp.ones((2, 4)))
    assert ("layers/0/weight", "dot", (1,), (0,)) in roles(found)


def test_paths_are_stable_between_traces():
    model, x = MobileNet(), shape(1, 8, 8, 3)
    first, second = (uses(model.apply, init(model, x), x) for _ in range(2))
    assert [u.path for u in first] == [u.path for u in second]


def test_errors_name_the_leaf():
    with pytest.raises(LeafError, match="'f' is a function"):
        uses(lambda p, x: x, {"f": of}, jnp.ones(2))
    with pytest.raises(TraceError, match="'a/b'"):
        uses(lambda p, x: x, {"a": {"b": np.ones(2)}, "a/b": np.ones(2)}, jnp.ones(2))


def test_grouped_and_transposed_convolutions():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.ConvTranspose(3, (2, 2), strides=(2, 2))(nn.Conv(4, (3, 3), feature_group_count=2)(x))

    model, x = Net(), normal(1, 4, 4, 2)
    found = uses(model.apply, init(model, x), x)
    assert [(u.kind, u.contracted, u.output) for u in found if u.leaf.endswith("kernel")] == [
        ("conv", (0, 1, 2), (3,)), ("conv", (0, 1, 2), (3,)),
    ]  # fmt: skip
