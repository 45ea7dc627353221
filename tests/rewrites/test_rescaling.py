"""Scaled networks compute what they did, are easier to quantize, and what cannot be scaled is named."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax import trace, tree
from modelzip_jax.errors import LeafError, NonFiniteError, PatternError, TraceError, TransformError
from modelzip_jax.models.language_model import LanguageModel
from modelzip_jax.models.resnet import CifarResNet


class Mobile(nn.Module):
    """A depthwise layer, batch and no normalisation, leaky relu, pooling and a flattened image."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x)))
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3), feature_group_count=6)(x)))
        x = nn.max_pool(nn.leaky_relu(nn.Conv(5, (1, 1), use_bias=False)(x)), (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(nn.Dense(7)(x.reshape(len(x), -1))))


class Gated(nn.Module):
    """An RMS norm, grouped queries and a gate, in a scan over layers."""

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(lambda block, x, _: (block(x), None), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)  # fmt: skip  # noqa: E501
        return nn.Dense(3, name="head")(nn.RMSNorm(name="last")(scan(GatedBlock(name="blocks"), x, None)[0]))


class GatedBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.RMSNorm(name="attention_norm")(x)
        q = nn.DenseGeneral((4, 3), use_bias=False, name="query")(h)
        k, v = (nn.DenseGeneral((2, 3), use_bias=False, name=n)(h) for n in ("key", "value"))
        mixed = jax.nn.dot_product_attention(q, k, v)
        x = x + nn.DenseGeneral(x.shape[-1], axis=(-2, -1), use_bias=False, name="output")(mixed)
        h = nn.RMSNorm(name="mlp_norm")(x)
        up, gate = nn.Dense(10, name="up")(h), nn.Dense(10, name="gate")(h)
        return x + nn.Dense(x.shape[-1], name="down")(nn.silu(gate) * up)


MODELS = {
    "mobile": (Mobile(), (2, 6, 6, 2)),
    "resnet": (CifarResNet(blocks=1, stages=(4, 6)), (2, 8, 8, 3)),
    "gated": (Gated(), (2, 5, 8)),
    "language": (LanguageModel(vocab_size=11, num_layers=1, num_heads=2, embed_dim=8, scan=False), (2, 5)),
    "scanned": (
        LanguageModel(vocab_size=11, num_layers=2, num_heads=2, embed_dim=8, positions="rope"),
        (2, 5),
    ),
}


@functools.cache
def built(name):
    model, shape = MODELS[name]
    rng = np.random.default_rng(0)
    tokens = isinstance(model, LanguageModel)
    x = jnp.asarray(
        rng.integers(0, 11, shape) if tokens else rng.normal(size=shape), None if tokens else jnp.float32
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)

    def drawn(leaf, s):
        if leaf.endswith(("scale", "var")):  # Uneven, as trained ones are.
            return jnp.asarray(np.exp(rng.normal(size=s.shape)), s.dtype)
        channels = np.exp(rng.normal(size=s.shape[-1:]))
        return jnp.asarray(channels * rng.normal(size=s.shape) / np.prod(s.shape[:-1]) ** 0.5, s.dtype)

    return jax.jit(model.apply), tree.map_named(drawn, shapes), x


@functools.cache
def measured(name):
    apply, variables, x = built(name)
    return trace.statistics(apply, variables, [x], kinds=("range", "mean_abs", "gram"))


def unchanged(name, params):
    apply, variables, x = built(name)
    before, after = apply(variables, x), apply(params, x)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=2e-5 * np.abs(before).max())
    for (leaf, a), (_, b) in zip(tree.named_leaves(variables), tree.named_leaves(params), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), leaf


def spread(kernel, axis):
    """How far channel ranges are from each other: the standard deviation of their logarithms."""
    rest = tuple(i for i in range(kernel.ndim) if i != axis % kernel.ndim)
    return np.log(np.abs(np.asarray(kernel)).max(axis=rest)).std()


def error(name, params, transform=None):
    """The relative error of the output after quantizing kernels."""
    apply, variables, x = built(name)
    transform = transform or mz.only("**/kernel", mz.quantize(4, granularity="tensor"))
    before, after = apply(variables, x), apply(mz.unpack(mz.compress(params, transform)), x)
    return float(jnp.linalg.norm(after - before) / jnp.linalg.norm(before))


@pytest.mark.parametrize("name", ["mobile", "resnet"])
def test_equalized_networks_compute_the_same_and_their_ranges_are_alike(name):
    apply, variables, x = built(name)
    equal = mz.rewrites.equalize(apply, variables, x)
    unchanged(name, equal.params)
    if name == "resnet":
        first, second = (equal.params["params"]["BasicBlock_0"][f"Conv_{i}"]["kernel"] for i in range(2))
        read = np.abs(second).max(axis=(0, 1, 3))
        np.testing.assert_allclose(np.abs(first).max(axis=(0, 1, 2)), read, rtol=1e-2)
    if name == "mobile":
        kernels, old = equal.params["params"], variables["params"]
        first, depthwise = kernels["Conv_0"]["kernel"], kernels["Conv_1"]["kernel"]
        # eq. 11: both ranges of each channel are equal; a depthwise channel is made and read by one slice.
        made, read = (np.abs(w).max(axis=(0, 1, 2)) for w in (first, depthwise))
        np.testing.assert_allclose(made, read, rtol=1e-2)
        np.testing.assert_allclose(read, np.abs(kernels["Conv_2"]["kernel"]).max(axis=(0, 1, 3)), rtol=1e-2)
        assert spread(first, -1) < 0.7 * spread(old["Conv_0"]["kernel"], -1)
        assert not equal.left
        assert error(name, equal.params) < 0.8 * error(name, variables)


def test_it_is_equation_11_in_float64():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = {"a": rng.normal(size=(5, 8)), "bias": rng.normal(size=8), "b": rng.normal(size=(8, 3))}
        model = lambda p, x: jax.nn.relu(x @ p["a"] + p["bias"]) @ p["b"]  # noqa: E731
        x = rng.normal(size=(4, 5))
        made = mz.rewrites.equalize(model, params, x).params
        np.testing.assert_allclose(model(made, x), model(params, x), rtol=1e-13)
    r1, r2 = np.abs(params["a"]).max(0), np.abs(params["b"]).max(1)
    s = np.sqrt(r1 * r2) / r2
    np.testing.assert_allclose(made["a"], params["a"] / s, rtol=1e-12)
    np.testing.assert_allclose(made["bias"], params["bias"] / s, rtol=1e-12)
    np.testing.assert_allclose(made["b"], params["b"] * s[:, None], rtol=1e-12)


@pytest.mark.parametrize("between", [jax.nn.gelu, jnp.tanh, lambda h: jnp.clip(h, 0, 6), lambda h: h - h.mean(-1, keepdims=True)])  # fmt: skip  # noqa: E501
def test_what_does_not_commute_with_scales_is_refused_by_name(between):
    params = {"a": jnp.ones((5, 8)), "b": jnp.ones((8, 3))}
    model = lambda p, x: between(x @ p["a"]) @ p["b"]  # noqa: E731
    with pytest.raises(TransformError, match=r"'a'.*'b'"):
        mz.rewrites.equalize(model, params, jnp.ones((1, 5)))


def test_dead_channels_and_uneven_residual_branches():
    rng = np.random.default_rng(1)
    params = {n: jnp.asarray(rng.normal(size=(6, 6)), jnp.float32) for n in ("in", "up", "down", "out")}
    params["up"] = params["up"].at[:, 2].set(0.0)

    def model(p, x):
        h = x @ p["in"]
        h = h + jax.nn.relu(h @ p["up"]) @ p["down"]
        return jnp.concatenate([jax.nn.relu(h[:, :2]), h[:, 2:]], -1) @ p["out"]

    x = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    equal = mz.rewrites.equalize(model, params, x)
    np.testing.assert_allclose(model(equal.params, x), model(params, x), rtol=1e-4, atol=1e-5)
    hidden = next(s for n, s in equal.scales.items() if n.startswith("up"))
    assert hidden[2] == 1.0
    assert {len(s) for s in equal.scales.values()} == {6}


@pytest.mark.parametrize("name", ["gated", "language"])
def test_smoothed_networks_compute_the_same(name):
    apply, variables, x = built(name)
    smoothed = mz.rewrites.smooth(apply, variables, measured(name), x)
    unchanged(name, smoothed.params)
    assert any(n.endswith("[1]") for n in smoothed.scales) == (name != "language")
    gelu = [n for n in smoothed.left if "mlp_out" in n or "down" in n]
    assert bool(gelu) == (name != "gated")  # A gate's other factor is linear.


def test_each_layer_gets_the_exponent_of_least_error():
    apply, variables, x = built("scanned")
    transform = mz.only("**/kernel", mz.quantize(3))
    aware = mz.rewrites.activation_aware(apply, variables, measured("scanned"), transform, x, points=3)
    unchanged("scanned", aware.params)
    norms = [aware.exponents[f"params/blocks/mlp_norm/bias[{i}]"] for i in range(2)]
    assert set(norms) <= {0.0, 1 / 3, 2 / 3}
    assert any(norms)
    # By hand: the layers' outputs, for each point of the grid.
    (seen,) = measured("scanned")["params"]["blocks"]["mlp_in"]["kernel"]
    w = np.asarray(variables["params"]["blocks"]["mlp_in"]["kernel"], np.float64)
    lost = []
    for alpha in (0.0, 1 / 3, 2 / 3):
        s = np.asarray(seen.inputs.mean_abs, np.float64)[:, :, None] ** alpha
        s /= np.sqrt(s.max(axis=1, keepdims=True) * s.min(axis=1, keepdims=True))
        rounded = mz.unpack(mz.compress({"w": jnp.float32(w * s)}, mz.quantize(3)))["w"]
        off = np.asarray(rounded, np.float64) / s - w
        lost.append(np.einsum("lio,lij,ljo->l", off, np.asarray(seen.inputs.gram, np.float64), off))
    np.testing.assert_array_equal(np.argmin(lost, axis=0) / 3, norms)


def test_smoothing_is_equation_4():
    apply, variables, x = built("language")
    stats = trace.statistics(apply, variables, [x], kinds=("range",))
    smoothed = mz.rewrites.smooth(apply, variables, stats, x, alpha=0.75)
    old, new = variables["params"]["block_0"], smoothed.params["params"]["block_0"]
    seen = tree.map_named(lambda n, m: m, stats["params"]["block_0"]["attention"]["query"])["kernel"][
        0
    ].inputs
    largest = np.maximum(np.abs(seen.minimum), np.abs(seen.maximum))
    kernels = [np.asarray(old["attention"][n]["kernel"]) for n in ("query", "key", "value")]
    s = largest**0.75 / np.abs(kernels).max(axis=(0, 2)) ** 0.25
    np.testing.assert_allclose(new["attention_norm"]["scale"], old["attention_norm"]["scale"] / s, rtol=1e-4)
    np.testing.assert_allclose(new["attention_norm"]["bias"], old["attention_norm"]["bias"] / s, rtol=1e-4)
    # Keys were made for queries alone: what they read is scaled, what they make is not.
    np.testing.assert_allclose(new["attention"]["key"]["kernel"], kernels[1] * s[:, None], rtol=1e-4)


@functools.cache
def outliers():
    """A norm and two layers that read it, on channels of which some are large."""
    rng = np.random.default_rng(0)
    scale = np.where(np.arange(64) % 16 == 3, 60.0, 1.0)
    params = {"scale": scale, "a": rng.normal(size=(64, 32)), "b": rng.normal(size=(64, 32))}
    params = jax.tree.map(jnp.float32, params)

    def model(p, x):
        h = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * p["scale"]
        return jnp.stack([h @ p["a"], h @ p["b"]])

    x = jnp.asarray(rng.normal(size=(256, 64)), jnp.float32)
    return (
        jax.jit(model),
        params,
        x,
        trace.statistics(model, params, [x], kinds=("range", "mean_abs", "gram")),
    )


def test_activation_aware_scales_lower_the_error_of_quantized_weights():
    model, params, x, stats = outliers()
    transform = mz.only(["a", "b"], mz.quantize(4, granularity="group", group_size=64, axis=-1))
    aware = mz.rewrites.activation_aware(model, params, stats, transform, x)
    fresh = jnp.asarray(np.random.default_rng(9).normal(size=x.shape), jnp.float32)

    def lost(p):
        return float(
            jnp.linalg.norm(model(mz.unpack(mz.compress(p, transform)), fresh) - model(params, fresh))
        )

    assert 0.0 < aware.exponents["scale"] < 1.0
    assert lost(aware.params) < 0.6 * lost(params)


def test_smoothing_lowers_the_error_of_quantized_activations():
    model, params, x, stats = outliers()
    smoothed = mz.rewrites.smooth(model, params, stats, x)
    coarse = mz.rewrites.quantize_activations(model, mz.activations.dynamic(4, per="row"), weights=4)

    def lost(p):
        return float(jnp.linalg.norm(coarse(p, x) - model(params, x)))

    assert lost(smoothed.params) < 0.7 * lost(params)


def test_a_state_of_nnx_stays_one():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up, self.norm = (
                nnx.Linear(5, 8, rngs=rngs),
                nnx.BatchNorm(8, use_running_average=True, rngs=rngs),
            )
            self.down = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.norm(self.up(x))))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (4, 5))
    apply = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    stats = trace.statistics(apply, state, [x], kinds=("range",))
    for made in (mz.rewrites.equalize(apply, state, x), mz.rewrites.smooth(apply, state, stats, x)):
        assert jax.tree.structure(made.params) == jax.tree.structure(state)
        assert not np.array_equal(made.params["down"]["kernel"][...], state["down"]["kernel"][...])
        np.testing.assert_allclose(apply(made.params, x), apply(state, x), rtol=1e-5, atol=1e-6)


def test_what_is_in_the_way_is_named():
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    x = jnp.ones((1, 3))
    model = lambda p, x: jnp.tanh(x @ p["a"])[:, ::-1].T.T @ p["b"]  # noqa: E731
    with pytest.raises(
        TransformError, match=r"'a'.*input of the model.*through tanh.*'b'.*with.*tanh.*:tanh"
    ):
        mz.rewrites.equalize(model, params, x)
    conv = lambda p, x: jax.lax.conv(jnp.exp(jax.lax.conv(x, p["a"], (1,), "SAME")), p["b"], (1,), "SAME")  # noqa: E731
    kernels = {"a": jnp.ones((4, 3, 3)), "b": jnp.ones((2, 4, 3))}
    with pytest.raises(TransformError, match=r"'b': axes \(1,\) of it[^,]*with what goes through exp"):
        mz.rewrites.equalize(conv, kernels, jnp.ones((1, 3, 8)))


def test_half_precision_keeps_its_type():
    params = {
        "up": jnp.ones((3, 4), jnp.bfloat16) * jnp.array([1, 4, 2, 16], jnp.bfloat16),
        "down": jnp.ones((4, 2)),
    }
    model = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]  # noqa: E731
    made = mz.rewrites.equalize(model, params, jnp.ones((1, 3))).params
    assert made["up"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(made["up"])[0], [1, 2, 2**0.5, 4], rtol=4e-3)


def test_wrong_inputs_are_named():
    model, params, x, stats = outliers()
    rewrites = mz.rewrites
    packed = mz.compress(params, mz.quantize(4))
    for call in (
        lambda p: rewrites.equalize(model, p, x),
        lambda p: rewrites.rotate(model, p, x),
        lambda p: rewrites.smooth(model, p, stats, x),
        lambda p: rewrites.activation_aware(model, p, stats, mz.quantize(4), x),
        lambda p: rewrites.drop_blocks(p, {"a": "a/**"}, ["a"]),
        lambda p: rewrites.merge_neurons(p, "a", "b", 1),
        lambda p: rewrites.silence(p, {}),
        lambda p: rewrites.permute(p, []),
        lambda p: rewrites.unit_scores(p, [], params),
    ):
        for held in (packed, packed.params):
            with pytest.raises(LeafError, match="floats, and 'a' is packed"):
                call(held)
    with pytest.raises(TransformError, match="takes a transform"):
        rewrites.activation_aware(model, params, stats, x)
    feedback = mz.quantize(4, rounding=mz.rounding.error_feedback())
    with pytest.raises(TransformError, match="rounds to nearest"):
        rewrites.activation_aware(model, params, stats, feedback, x)
    with pytest.raises(TraceError, match=r"inputs given, of shapes \(\)"):
        rewrites.equalize(model, params)
    with pytest.raises(TransformError, match="alpha"):
        rewrites.smooth(model, params, stats, x, alpha=1.5)
    with pytest.raises(TransformError, match="points"):
        rewrites.activation_aware(model, params, stats, mz.quantize(4), x, points=0)
    with pytest.raises(TransformError, match="tolerance"):
        rewrites.equalize(model, params, x, tolerance=0.0)
    with pytest.raises(PatternError, match="kernal"):
        rewrites.smooth(model, params, stats, x, only="kernal")
    with pytest.raises(TraceError, match="'range'"):
        rewrites.smooth(model, params, trace.statistics(model, params, [x], kinds=("mean",)), x)
    partial = trace.statistics(model, params, [x], kinds=("mean_abs",))
    with pytest.raises(TraceError, match="'gram'"):
        rewrites.activation_aware(model, params, partial, mz.quantize(4), x)
    with pytest.raises(NonFiniteError, match="'a'"):
        rewrites.smooth(model, {**params, "a": params["a"].at[0, 0].set(jnp.nan)}, stats, x)
    apply, variables, tokens = built("language")
    with pytest.raises(TransformError, match=r"'params/block_0/mlp_out/kernel'.*integer_pow"):
        rewrites.smooth(apply, variables, measured("language"), tokens, only="**/mlp_out/kernel")
    narrow = lambda p, x: (x * p["s"])[:, :2] @ p["a"][:2] + (x * p["s"])[:, 2:] @ p["a"][2:]  # noqa: E731
    parts = {"s": jnp.ones(4), "a": jnp.ones((4, 3))}
    seen = trace.statistics(narrow, parts, [jnp.ones((1, 4))], kinds=("range",))
    with pytest.raises(TransformError, match=r"'a'.*used in part"):
        rewrites.smooth(narrow, parts, seen, jnp.ones((1, 4)))
    others = trace.statistics(
        lambda p, x: x * p["s"] @ p["a"],
        {"s": jnp.ones(5), "a": jnp.ones((5, 3))},
        [jnp.ones((1, 5))],
        kinds=("range",),
    )
    with pytest.raises(LeafError, match="'a'"):
        rewrites.smooth(lambda p, x: x * p["s"] @ p["a"], parts, others, jnp.ones((1, 4)))


def convolution(x, w, groups=1):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=groups
    )


def drawn(**shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}


def test_patterns_of_no_kernel_and_of_one_side_are_named():
    params = drawn(up=(3, 8), bias=(8,), down=(8, 2))
    model, x = lambda p, x: jax.nn.relu(x @ p["up"] + p["bias"]) @ p["down"], np.ones((1, 3), "f4")
    stats = trace.statistics(model, params, [x], kinds=("range", "mean_abs", "gram"))
    rewrites = mz.rewrites
    for call in (
        lambda **k: rewrites.equalize(model, params, x, **k),
        lambda **k: rewrites.smooth(model, params, stats, x, **k),
        lambda **k: rewrites.activation_aware(model, params, stats, mz.quantize(4), x, **k),
    ):
        for only in ("bias", ["**", "bias"]):
            with pytest.raises(TransformError, match=r"'bias' names no kernel.*up, down"):
                call(only=only)
    for one, does, other in (("down", "makes", "up"), ("up", "reads", "down")):
        with pytest.raises(
            TransformError, match=f"'{one}': what {does} its channels, '{other}', is not in only="
        ):
            rewrites.equalize(model, params, x, only=one)


def test_depthwise_kernels_sum_over_no_channels():
    params, x = drawn(up=(1, 1, 2, 4), depthwise=(3, 3, 1, 4), down=(4, 3)), np.ones((1, 5, 5, 2), "f4")

    def model(p, x):
        x = jax.nn.relu(convolution(x, p["up"]))
        return jax.nn.relu(convolution(x, p["depthwise"], 4)).mean((1, 2)) @ p["down"]

    stats = trace.statistics(model, params, [x], kinds=("range",))
    with pytest.raises(TransformError, match="'depthwise': a depthwise kernel sums over no channels"):
        mz.rewrites.smooth(model, params, stats, x, only="depthwise")
    assert "sums over no channels" in mz.rewrites.smooth(model, params, stats, x).left["depthwise"]


def test_kernels_whose_inputs_no_statistics_describe_are_left_and_the_rest_is_scaled():
    params = drawn(**{"in": (1, 1, 4, 4), "grouped": (1, 1, 2, 8), "up": (8, 16), "down": (16, 4)})
    x = np.random.default_rng(1).normal(size=(16, 4, 4, 4)).astype("f4")
    twice = drawn(scale=(6,), tied=(6, 6), last=(6, 3))

    def model(p, x):
        x = jax.nn.relu(convolution(x, p["in"]))
        return jax.nn.relu(convolution(x, p["grouped"], 2).mean((1, 2)) @ p["up"]) @ p["down"]

    def tied(p, x):
        x = jnp.tanh(x) * p["scale"]
        return jax.nn.relu(jax.nn.relu(x @ p["tied"]) @ p["tied"]) @ p["last"]

    for apply, p, data, name in (
        (model, params, x, "grouped"),
        (tied, twice, x.reshape(-1, 64)[:, :6], "tied"),
    ):
        stats = trace.statistics(apply, p, [data], kinds=("range", "gram", "mean_abs"))
        smooth = functools.partial(mz.rewrites.smooth, apply, p, stats, data)
        aware = functools.partial(
            mz.rewrites.activation_aware, apply, p, stats, mz.quantize(4), data, points=3
        )
        # Of a tied kernel the largest inputs are those of both uses.
        for call in (smooth, aware) if name == "grouped" else (aware,):
            made = call()
            assert re.search("grouped convolution|2 products", made.left[name])
            assert made.scales
            before = apply(p, data)
            np.testing.assert_allclose(
                apply(made.params, data), before, rtol=1e-4, atol=1e-4 * np.abs(before).max()
            )
            with pytest.raises(TransformError, match=f"'{name}': .*(grouped convolution|2 products)"):
                call(only=name)
