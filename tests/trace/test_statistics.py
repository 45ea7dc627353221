"""Statistics equal those computed by hand from what the layers are called with."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from trace_models import MobileNet, ViT, fill, inputs_of_layers, moments, normal, variables

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import PatternError, TraceError
from modelzip_jax.models import language_model, lenet, nnx_mlp, resnet, vgg
from modelzip_jax.models.bert import SentenceEncoder, SentenceEncoderConfig

KINDS = ("mean", "mean_abs", "above_mean", "second_moment", "zeros", "range", "gram")

FEW = ("mean", "second_moment", "zeros")


def check(
    channels, rows, names=("mean", "mean_abs", "above_mean", "second_moment", "zeros", "minimum", "maximum")
):
    want = moments(rows)
    for name in names:
        got = np.asarray(getattr(channels, name))
        np.testing.assert_allclose(got.reshape(want[name].shape), want[name], rtol=1e-4, atol=1e-5)
    assert channels.count == len(rows)


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (3, 8)))
MODELS = {
    "lenet": (lenet.LeNet5(), normal(3, 28, 28, 1)),
    "vgg": (vgg.VGG(depths=(1, 1, 1, 1, 1), width=0.0625), normal(2, 32, 32, 3)),
    "resnet20": (resnet.CifarResNet(blocks=1), normal(2, 16, 16, 3)),
    "resnet50": (resnet.ResNet(depths=(1,), num_classes=5), normal(1, 32, 32, 3)),
    "mobilenet": (MobileNet(), normal(2, 8, 8, 3)),
    "vit": (ViT(), normal(2, 8, 8, 3)),
    "minilm": (SentenceEncoder(SentenceEncoderConfig(50, 8, 1, 2, 16, 16)), TOKENS, TOKENS > 3),
    "decoder": (
        language_model.LanguageModel(50, 1, 2, 8, scan=False, remat=True, max_length=8, tied=False), TOKENS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_every_layer_of_every_model(name):
    model, *inputs = MODELS[name]
    params = variables(model, *inputs)
    plain = model.clone(remat=False) if hasattr(model, "remat") else model
    seen = inputs_of_layers(plain, params, *inputs)
    stats = trace.statistics(model.apply, params, [tuple(inputs)], FEW, only="params/**/kernel")
    leaves = jax.tree_util.tree_leaves_with_path(stats, is_leaf=lambda x: isinstance(x, trace.Measured))
    found = {mz.tree.leaf_name(path): m[0].inputs for path, m in leaves if m}
    assert set(seen) == set(found)
    for layer, rows in seen.items():
        check(found[layer], rows, FEW)


def test_a_scan_has_statistics_for_each_layer():
    scanned = language_model.LanguageModel(50, 2, 2, 8, remat=True, max_length=8)
    plain = language_model.LanguageModel(50, 2, 2, 8, scan=False, max_length=8)
    params = variables(scanned, TOKENS)
    layers = params["params"]["blocks"]
    rest = {k: v for k, v in params["params"].items() if k != "blocks"}
    unstacked = {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], layers) for i in range(2)}
    seen = inputs_of_layers(plain, {"params": {**rest, **unstacked}}, TOKENS)
    paths = ("attention/query", "mlp_out")
    only = [f"**/{path}/kernel" for path in paths]
    stats = trace.statistics(scanned.apply, params, [TOKENS], KINDS, only=only)["params"]["blocks"]
    for path in paths:
        found = stats
        for part in (*path.split("/"), "kernel"):
            found = found[part]
        for i in range(2):
            layer = jax.tree.map(lambda x, i=i: x[i], found[0].inputs)
            check(layer, seen[f"params/block_{i}/{path}/kernel"])
            np.testing.assert_allclose(
                layer.gram, moments(seen[f"params/block_{i}/{path}/kernel"])["gram"], rtol=1e-4, atol=1e-5
            )


def test_square_everything():
    a, b, x = normal(4, 4), normal(4, 4, seed=2), normal(4, 4, seed=3)
    stats = trace.statistics(
        lambda p, x: p["b"] @ jax.nn.relu(x @ p["a"].T), {"a": a, "b": b}, [x], KINDS, trace.PLACES
    )
    check(stats["a"][0].inputs, x)
    check(stats["a"][0].outputs, x @ a.T)
    check(stats["a"][0].activations, np.maximum(x @ a.T, 0))
    check(stats["b"][0].inputs, np.maximum(x @ a.T, 0).T)
    check(stats["b"][0].outputs, (b @ np.maximum(x @ a.T, 0)).T)


def test_batches_of_several_sizes_are_one_set_of_rows():
    w, x = normal(5, 3), normal(17, 5, seed=2)
    batches = [x[:8], x[8:16], x[16:]]
    stats = trace.statistics(lambda p, x: x @ p, w, batches, KINDS, ("inputs", "outputs"))
    check(stats[0].inputs, x)
    np.testing.assert_allclose(stats[0].inputs.gram, moments(x)["gram"], rtol=1e-5, atol=1e-6)
    check(stats[0].outputs, x @ w)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_the_gram_matrix_of_a_convolution_is_of_its_patches(groups, padding):
    """E[y²] is the diagonal of Wᵀ G W: holds only if rows run as the kernel's axes do."""
    conv = nn.Conv(6, (3, 2), strides=(1, 2), padding=padding, use_bias=False, feature_group_count=groups)
    x = normal(2, 7, 6, 4)
    params = variables(conv, x)
    stats = trace.statistics(conv.apply, params, [x], KINDS, ("inputs", "outputs"))["params"]["kernel"][0]
    kernel = np.asarray(params["params"]["kernel"]).reshape(-1, groups, 6 // groups)
    gram = np.asarray(stats.inputs.gram).reshape(groups, *stats.inputs.gram.shape[-2:])
    want = np.einsum("igo,gij,jgo->go", kernel, gram, kernel).ravel()
    np.testing.assert_allclose(stats.outputs.second_moment, want, rtol=1e-5)


def test_channels_are_in_the_order_of_the_leaf():
    """An einsum that flips, transposes and splits its weight."""
    w, x = normal(6, 4), normal(5, 3, 2, seed=2)

    def model(p, x):
        return jnp.einsum("bji,oij->bo", x, p[::-1].T.reshape(4, 2, 3)[::-1])

    stats = trace.statistics(model, w, [x], KINDS, ("inputs", "outputs"))[0]
    rows = np.asarray(x).transpose(0, 2, 1).reshape(5, 6)[:, ::-1]
    check(stats.inputs, rows)
    np.testing.assert_allclose(stats.inputs.gram, moments(rows)["gram"], rtol=1e-5, atol=1e-6)
    check(stats.outputs, rows @ w)


def test_fused_leaves_have_their_own_outputs():
    p = {"q": normal(4, 3), "k": normal(4, 5, seed=2)}
    x = normal(6, 4, seed=3)
    stats = trace.statistics(
        lambda p, x: x @ jnp.concatenate([p["q"], p["k"]], 1), p, [x], KINDS, ("inputs", "outputs")
    )
    for name in "qk":
        check(stats[name][0].inputs, x)
        check(stats[name][0].outputs, x @ p[name])


def test_stacked_leaves_have_their_own_layers():
    p = {"a": normal(4, 4), "b": normal(4, 4, seed=2)}
    x = normal(6, 4, seed=3)

    def model(p, x):
        return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, jnp.stack([p["a"], p["b"]]))[0]

    stats = trace.statistics(model, p, [x], KINDS)
    check(jax.tree.map(lambda v: v[0], stats["a"][0].inputs), x)
    check(jax.tree.map(lambda v: v[0], stats["b"][0].inputs), np.tanh(x @ p["a"]))


def test_experts_are_kept_apart():
    w, x = normal(3, 4, 5), normal(3, 6, 4, seed=2)
    stats = trace.statistics(lambda p, x: jnp.einsum("emi,eio->emo", x, p), w, [x], KINDS)[0]
    assert stats.use.batch == (0,)
    for e in range(3):
        check(jax.tree.map(lambda v, e=e: v[e] if v.ndim else v, stats.inputs), x[e])
        np.testing.assert_allclose(stats.inputs.gram[e], moments(x[e])["gram"], rtol=1e-5, atol=1e-6)


def test_iterations_that_share_a_weight_are_pooled():
    p = {"i": normal(3, 4), "h": normal(4, 4, seed=2)}
    x = normal(5, 2, 3, seed=3)

    def model(p, x):
        return lax.scan(lambda h, x: (jnp.tanh(x @ p["i"] + h @ p["h"]),) * 2, jnp.zeros((2, 4)), x)[1]

    stats = trace.statistics(model, p, [x], (*KINDS, "percentiles"))
    check(stats["i"][0].inputs, x.reshape(-1, 3))
    states = np.concatenate([np.zeros((1, 2, 4)), model(p, x)[:-1]])
    check(stats["h"][0].inputs, states.reshape(-1, 4))


def test_scans_within_scans():
    """Layers outside, time inside; and layers within layers."""
    w, x = normal(2, 4, 4), normal(3, 5, 4, seed=2)

    def stacked_recurrent(p, x):
        def layer(x, w):
            return lax.scan(lambda c, x: (jnp.tanh(c @ w + x),) * 2, jnp.zeros((5, 4)), x)[1], None

        return lax.scan(layer, x, p)[0]

    stats = trace.statistics(stacked_recurrent, w, [x], KINDS)[0]
    assert (stats.use.layers, stats.use.trips) == ((0,), 6)
    states = x
    for i in range(2):
        carried = [jnp.zeros((5, 4))]
        for t in range(3):
            carried.append(jnp.tanh(carried[-1] @ w[i] + states[t]))
        check(jax.tree.map(lambda v, i=i: v[i], stats.inputs), np.concatenate(carried[:3]))
        states = jnp.stack(carried[1:])
    nested = normal(2, 3, 4, 4)

    def model(p, x):
        step = lambda c, w: (jnp.tanh(c @ w), None)  # noqa: E731
        return lax.scan(lambda c, w: (lax.scan(step, c, w)[0], None), x, p)[0]

    stats = trace.statistics(model, nested, [x[0]], KINDS)[0]
    assert stats.use.layers == (0, 1)
    check(jax.tree.map(lambda v: v[0, 1], stats.inputs), np.tanh(x[0] @ nested[0, 0]))


def test_an_activation_made_inside_a_loop_is_pooled():
    w, x = normal(4, 4), normal(5, 4, seed=2)

    def model(p, x):
        y = x @ p
        return lax.scan(lambda c, s: (c + jnp.tanh(s * y).sum(), None), 0.0, jnp.ones(3))[0]

    stats = trace.statistics(model, w, [x], KINDS, trace.PLACES)[0]
    check(stats.outputs, x @ w)
    assert stats.activations.mean.shape == (4,)


def test_while_and_cond_count_what_ran():
    p = {"w": normal(4, 4), "a": normal(4, 4, seed=2), "b": normal(4, 4, seed=3)}

    def model(p, x):
        y, _ = lax.while_loop(lambda c: c[1] < 3, lambda c: (jnp.tanh(c[0] @ p["w"]), c[1] + 1), (x, 0))
        return lax.cond(y[0, 0] > 2, lambda y: y @ p["a"], lambda y: y @ p["b"], y)

    x = normal(5, 4, seed=4)
    stats = trace.statistics(model, p, [x], KINDS)
    states = [np.asarray(x)]
    for _ in range(3):
        states.append(np.tanh(states[-1] @ p["w"]))
    check(stats["w"][0].inputs, np.concatenate(states[:3]))
    check(stats["b"][0].inputs, states[3])
    assert stats["a"][0].inputs.count == 0
    with pytest.raises(TraceError, match="percentiles"):
        trace.statistics(model, p, [x], ("percentiles",))


def test_percentiles_of_a_sample():
    w, x = jnp.ones((2, 1)), np.random.default_rng(0).normal(size=(20, 400, 2)).astype("f4")
    stats = trace.statistics(lambda p, x: x @ p, w, list(x), ("percentiles",), percentiles=(5.0, 50.0))
    got = stats[0].inputs
    assert got.percentiles.shape == (2, 2)
    np.testing.assert_allclose(
        got.percentiles, np.percentile(x[::2].reshape(-1, 2), (5, 50), axis=0), atol=1e-6
    )
    assert got.sample is None


def test_tied_weights_have_statistics_of_each_use():
    embedding = normal(50, 8)
    params = {"e": embedding, "b": jnp.zeros(50)}
    stats = trace.statistics(
        lambda p, t: jax.nn.relu(p["e"][t] @ p["e"].T) @ p["e"] + p["b"][:8], params, [TOKENS], KINDS
    )
    assert [m.use.contracted for m in stats["e"]] == [(1,), (0,)]
    check(stats["e"][0].inputs, embedding[TOKENS].reshape(-1, 8))
    assert stats["b"] == ()


def test_nnx_and_equinox():
    graph, state = nnx.split(nnx.eval_shape(lambda: nnx_mlp.MLP((2, 2, 1), widths=(8,), rngs=nnx.Rngs(0))))
    state = fill(state)
    x = normal(5, 2, 2, 1)
    stats = trace.statistics(lambda s, x: nnx.merge(graph, s)(x), state, [x])
    check(stats["Dense_0"]["kernel"][0].inputs, x.reshape(5, 4), FEW[1:])
    module = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    params, static = eqx.partition(module, eqx.is_array)
    x = normal(5, 4)
    stats = trace.statistics(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, [x])
    check(stats.layers[0].weight[0].inputs, x, FEW[1:])
    hidden = jax.nn.relu(x @ module.layers[0].weight.T + module.layers[0].bias)
    check(stats.layers[1].weight[0].inputs, hidden, FEW[1:])


def test_half_precision_is_accumulated_in_float32():
    x = jnp.full((4096, 2), 0.1, jnp.bfloat16)
    stats = trace.statistics(lambda p, x: x @ p, jnp.ones((2, 2), jnp.bfloat16), [x], KINDS)
    assert stats[0].inputs.mean.dtype == jnp.float32
    np.testing.assert_allclose(stats[0].inputs.mean, float(x[0, 0]), rtol=1e-6)


def test_statistics_travel_as_stats_of_a_transform():
    model, x = lenet.LeNet5(), normal(2, 28, 28, 1)
    params = variables(model, x)["params"]
    stats = trace.statistics(lambda p, x: model.apply({"params": p}, x), params, [x])
    mz.compress(params, mz.only("**/kernel", mz.quantize(4)), stats=stats)


def test_errors():
    w, x = jnp.ones((2, 2)), jnp.ones((2, 2))
    with pytest.raises(TraceError, match="at least one batch"):
        trace.statistics(lambda p, x: x @ p, w, [])
    with pytest.raises(TraceError, match=r"batch 1 holds no example.*\(0, 2\)"):
        trace.statistics(lambda p, x: x @ p, w, [x, x[:0]])
    with pytest.raises(TraceError, match=r"batch 1, of shapes \(\(2, 1\),\): TypeError: dot_general"):
        trace.statistics(lambda p, x: x @ p, w, [x, x[:, :1]])
    with pytest.raises(TraceError, match=r"batch 0, of shapes \(\(2, 2\), \(2,\)\).*without labels"):
        trace.statistics(lambda p, x: x @ p, w, [(x, jnp.ones(2))])
    with pytest.raises(TraceError, match="'median'"):
        trace.statistics(lambda p, x: x @ p, w, [x], ("median",))
    with pytest.raises(PatternError, match="nothing"):
        trace.statistics(lambda p, x: x @ p["w"], {"w": w}, [x], only="nothing")


def test_activation_sparsity():
    model, x = MobileNet(), normal(2, 8, 8, 3)
    found = trace.activation_sparsity(model.apply, variables(model, x), [x, x])
    layers = {layer.name: layer for layer in found.layers}
    first = layers["params/Conv_0/kernel"]
    assert first.total.shape == (8,)
    assert 0 < first.zeros.mean() < 1
    assert first.count == 2 * 2 * 64
    assert layers["params/Dense_0/kernel"].zeros.max() == 0
    assert 0 < found.zeros < 1
    assert found.total == pytest.approx(sum(layer.total.sum() for layer in found.layers))
    table = found.table()
    assert table.row_count == len(found.layers) + 1
    scanned = language_model.LanguageModel(50, 2, 2, 8, max_length=8)
    found = trace.activation_sparsity(scanned.apply, variables(scanned, TOKENS), [TOKENS], only="**/mlp_in/*")
    assert [layer.name for layer in found.layers] == [f"params/blocks/mlp_in/kernel[{i}]" for i in range(2)]


def test_the_figure_of_activation_sparsity():
    model, x = lenet.LeNet5(), normal(2, 28, 28, 1)
    found = trace.activation_sparsity(model.apply, variables(model, x), [x])
    pytest.importorskip("matplotlib")
    assert len(found.figure().axes) == 2


def test_gelu_and_swish_belong_to_their_layer():
    w = {"a": normal(4, 8), "b": normal(8, 2, seed=2)}
    for f in (
        jax.nn.gelu,
        jax.nn.silu,
        lambda x: jax.nn.gelu(x, approximate=False),
        jax.nn.softplus,
        jnp.tanh,
    ):
        x = normal(5, 4, seed=3)
        stats = trace.statistics(
            lambda p, x, f=f: f(x @ p["a"] + 1.0) @ p["b"], w, [x], FEW, ("activations",)
        )
        check(stats["a"][0].activations, f(x @ w["a"] + 1.0), FEW)


@pytest.mark.parametrize("shape", [(64, 16, 16, 1), (128, 8, 8, 1), (32, 32, 32, 1)])
def test_samples_do_not_fall_in_step_with_columns(shape):
    """Rows at equal distances were all of one column of the images, which may be blank."""
    x = np.ones(shape, np.float32)
    x[:, :, 0] = 0.0
    found = trace.statistics(lambda p, x: x @ p, jnp.ones((1, 2)), [x], kinds=("percentiles",))
    assert found[0].inputs.percentiles[-1, 0] == 1.0
    how = mz.activations.static(8, range="mse")
    steps = mz.activations.calibrate(lambda p, x: x @ p["w"], how, {"w": jnp.ones((1, 2))}, [x])
    np.testing.assert_allclose(steps["w"]["step"], 1 / 127, rtol=0.3)
