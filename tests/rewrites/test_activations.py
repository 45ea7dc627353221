import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import NonFiniteError, PatternError, TraceError, TransformError
from modelzip_jax.evaluation.recalibration import adapt_batch_norm

act = mz.activations
KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 8))


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(nn.relu(nn.Dense(8)(x)))  # batch = in = out features


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        x = nn.Conv(6, (3, 3), feature_group_count=6)(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        heads = nn.DenseGeneral((2, 4), name="split")(x)
        return x + nn.DenseGeneral(8, axis=(-2, -1), name="join")(jnp.tanh(heads)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers()(x, None)[0]


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(6)(x))
        return nn.Dense(3)(nn.relu(x))


MODELS = {
    "mlp": (Mlp(), X),
    "convolutions": (Convolutions(), jax.random.normal(KEY, (2, 8, 8, 3))),
    "scan": (Scanned(), X),
}
KINDS = {
    "row": act.dynamic(),
    "tensor": act.dynamic(per="tensor"),
    "zero points": act.dynamic(symmetric=False),
    "few with zero points": act.dynamic(5, symmetric=False),
    "static": act.static(),
    "static, zero points": act.static(6, range=mz.ranges.percentile(99.0), symmetric=False),
    "pact": act.pact(8),
    "learned": act.learned_step(4),
    "learned, zero points": act.learned_step(8, symmetric=False),
    "dorefa": act.dorefa(8),
    "binary": act.binary(),
    "ternary": act.ternary(),
}


def started(name):
    model, x = MODELS[name]
    return model.apply, model.init(jax.random.key(1), x), x


def quantized(*args, **options):
    """Compiled whole: operation by operation, most of the time would go to compiling each."""
    return jax.jit(mz.rewrites.quantize_activations(*args, **options))


@functools.partial(jax.jit, static_argnums=0)
def rounded(how, x, own):
    return how.rounded(x, own, (1,))


def product(w, x):
    return x @ w


def calibrated(how, apply, params, x):
    return act.calibrate(apply, how, params, [x]) if how.holds else None


# Numerics


@pytest.mark.parametrize("arithmetic", ["float", "integer"])
@pytest.mark.parametrize(("per", "axes"), [("row", 1), ("tensor", None)])
@pytest.mark.parametrize("bits", [2, 8])
def test_a_product_is_the_float64_one_of_rounded_operands(arithmetic, per, axes, bits):
    w = jax.random.normal(jax.random.key(2), (8, 5))
    model = quantized(product, act.dynamic(bits, per=per), weights=bits, arithmetic=arithmetic)
    high = 2 ** (bits - 1) - 1
    x64, w64 = np.float64(X), np.float64(w)
    s = np.abs(x64).max(axis=axes, keepdims=True) / high
    t = np.abs(w64).max(axis=0, keepdims=True) / high
    expected = (np.round(x64 / s) * s) @ (np.round(w64 / t) * t)
    np.testing.assert_allclose(model(w, X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("range", "low", "high"),
    [
        (mz.ranges.min_max(), -2.0, 6.0),
        (mz.ranges.moving_average(0.75), -1.25, 3.0),  # 0.75 of the first batch, 0.25 of the second
        (mz.ranges.fixed(-1.0, 3.0), -1.0, 3.0),
    ],
)
def test_static_steps_are_those_of_the_range(range, low, high):
    batches = [jnp.array([[-1.0, 2.0], [0.0, 1.0]]), jnp.array([[-2.0, 6.0]])]
    how = act.static(8, range=range, symmetric=False)
    scales = act.calibrate(product, how, jnp.eye(2), batches) if how.holds else None
    step = (high - low) / 255
    zero = np.round(-low / step)
    x = np.linspace(-3.0, 8.0, 40).reshape(20, 2)
    expected = (np.clip(np.round(x / step) + zero, 0, 255) - zero) * step
    found = quantized(product, how, scales, weights=None)(jnp.eye(2), jnp.float32(x))
    np.testing.assert_allclose(found, expected, atol=step / 1000)


def test_searched_ranges_of_activations_clip_outliers():
    x = jax.random.normal(KEY, (400, 4)).at[0, 0].set(40.0)
    largest = {}
    for range in (
        mz.ranges.min_max(),
        mz.ranges.least_squares(),
        mz.ranges.kl_divergence(),
        mz.ranges.percentile(99.0),
    ):
        scales = act.calibrate(product, act.static(4, range=range), jnp.ones((4, 1)), [x])
        largest[type(range).__name__] = float(scales[""]["step"]) * 7
    assert largest.pop("MinMax") == pytest.approx(40.0)
    assert all(2.0 < reach < 25.0 for reach in largest.values()), largest


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mlp", "row"),
        pytest.param("scan", "zero points", marks=pytest.mark.slow),
        pytest.param("convolutions", "static, zero points", marks=pytest.mark.slow),
    ],
)
def test_integers_are_the_floats_of_the_same_codes(name, kind):
    apply, params, x = started(name)
    how = KINDS[kind]
    scales = calibrated(how, apply, params, x)
    run = [quantized(apply, how, scales, weights=8, arithmetic=a) for a in ("integer", "float")]
    integer, floats, exact = run[0](params, x), run[1](params, x), apply(params, x)
    scale = float(jnp.abs(exact).max())
    # Later layers may round another way where a sum was on a tie.
    np.testing.assert_allclose(integer, floats, atol=2e-2 * scale)
    assert 1e-5 < float(jnp.linalg.norm(integer - exact) / jnp.linalg.norm(exact)) < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_computes_on_int8(kind):
    how, w, x = KINDS[kind], jax.random.normal(KEY, (8, 3)), jnp.abs(X) + 0.1
    scales = calibrated(how, product, w, x)
    integer = quantized(product, how, scales, weights=8, arithmetic="integer")
    floats = quantized(product, how, scales, weights=8, arithmetic="float")
    np.testing.assert_allclose(integer(w, x), floats(w, x), rtol=1e-5, atol=1e-5)
    text = str(jax.make_jaxpr(integer)(w, x))
    assert len(re.findall(r"i32\[8,3\] = dot_general", text)) == 1
    assert mz.recipe.from_plain(mz.recipe.to_plain(how)) == how


def test_zero_points_meet_padding():
    w, x = jax.random.normal(KEY, (3, 3, 2, 4)), jax.random.uniform(KEY, (2, 5, 5, 2), minval=-0.1)

    def conv(w, x):
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "SAME", rhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    for per in ("row", "tensor"):
        how = act.dynamic(8, per=per, symmetric=False)
        integer, floats = (quantized(conv, how, arithmetic=a)(w, x) for a in ("integer", "float"))
        np.testing.assert_allclose(integer, floats, rtol=1e-5, atol=1e-5)


def test_few_values():
    x = np.float64(X)
    mean = np.abs(x).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(rounded(act.binary(), X, {}), mean * np.sign(x), rtol=1e-6)
    np.testing.assert_array_equal(rounded(act.binary(per=None), X, {}), np.sign(x))
    beyond = np.abs(x) > 0.7 * mean
    scale = (np.abs(x) * beyond).sum(axis=1, keepdims=True) / beyond.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(rounded(act.ternary(), X, {}), scale * np.sign(x) * beyond, rtol=1e-5)
    np.testing.assert_allclose(
        rounded(act.dorefa(3), X, {}), np.round(7 * np.clip(x, 0, 1)) / 7, rtol=1e-6, atol=1e-7
    )


# Gradients


def test_gradients_of_pact_are_those_of_the_paper():
    x, g = jnp.array([[-1.0, 0.0, 0.7, 1.5, 2.0]]), jnp.array([[1.0, 2.0, 3.0, 5.0, 7.0]])

    def loss(alpha, x):
        return jnp.sum(g * rounded(act.pact(2), x, {"clip": alpha}))

    by_alpha, by_x = jax.jit(jax.grad(loss, (0, 1)))(jnp.float32(1.5), x)
    assert by_alpha == 5.0 + 7.0  # eq. 3: 1 where x >= α
    np.testing.assert_array_equal(by_x, [[0.0, 2.0, 3.0, 0.0, 0.0]])


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_learned_steps_are_lsqs(symmetric):
    how, step, zero = act.learned_step(3, symmetric=symmetric), 0.3, 0.0 if symmetric else 2.0
    low, high = (-4, 3) if symmetric else (0, 7)
    x, g = np.float64(2.0 * X), np.float64(jax.random.normal(jax.random.key(3), X.shape))

    def loss(own, x):
        return jnp.sum(jnp.float32(g) * rounded(how, x, own))

    own = {"step": jnp.float32(step)} | ({} if symmetric else {"zero": jnp.float32(zero)})
    found, by_x = jax.jit(jax.grad(loss, (0, 1)))(own, jnp.float32(x))
    v = x / step + zero
    q, inside = np.round(np.clip(v, low, high)), (v > low) & (v < high)
    scale = 1 / np.sqrt(8 * high)  # A row has 8 activations.
    np.testing.assert_allclose(
        found["step"], scale * np.sum(g * np.where(inside, q - v, q - zero)), rtol=1e-4
    )
    np.testing.assert_array_equal(by_x, np.float32(g * inside))
    if not symmetric:
        np.testing.assert_allclose(found["zero"], scale * np.sum(-g * step * ~inside), rtol=1e-4)


def test_a_clip_or_step_below_zero_comes_back():
    for how, name in ((act.pact(2), "clip"), (act.learned_step(2), "step")):
        slope = jax.grad(lambda n, how=how, name=name: -rounded(how, jnp.ones((1, 4)), {name: n}).sum())
        assert slope(jnp.float32(-1.0)) < 0  # It would grow.
        assert np.all(np.isfinite(rounded(how, X, {name: jnp.float32(-1.0)})))


def test_gradients_of_few_values_stop_beyond_one():
    x = jnp.array([[0.5, -2.0, 1.0]])
    for how, expected in (
        (act.binary(per=None), [1.0, 0.0, 1.0]),
        (act.binary(), [3.5 / 3, 0.0, 3.5 / 3]),
        (act.ternary(), [1.5, 0.0, 1.5]),
        (act.dorefa(2), [1.0, 0.0, 1.0]),
    ):
        slope = jax.jit(jax.grad(lambda x, how=how: rounded(how, x, {}).sum()))(x)
        np.testing.assert_allclose(slope, [expected], rtol=1e-6)


def test_clipped_activations_have_no_gradient():
    how = act.static()
    scales = act.calibrate(product, how, jnp.ones((1, 1)), [jnp.ones((1, 1))])
    slope = jax.grad(lambda x: quantized(product, how, scales)(jnp.ones((1, 1)), x).sum())
    assert slope(jnp.full((1, 1), 0.4))[0, 0] == pytest.approx(1.0)
    assert slope(jnp.full((1, 1), 1.5))[0, 0] == 0.0


@pytest.mark.parametrize("name", ["mlp", pytest.param("scan", marks=pytest.mark.slow)])
def test_gradients_of_the_model_are_straight_through(name):
    apply, params, x = started(name)
    models = [quantized(apply, act.dynamic(), arithmetic=a) for a in ("integer", "float")]
    *grads, exact = (
        jax.jit(jax.grad(lambda p, f=f: jnp.sum(f(p, x) ** 2)))(params) for f in (*models, apply)
    )
    for integer, floats, plain in zip(*map(jax.tree.leaves, (*grads, exact)), strict=True):
        scale = float(jnp.abs(plain).max())
        np.testing.assert_allclose(integer, floats, atol=0.02 * scale)
        np.testing.assert_allclose(floats, plain, atol=0.1 * scale)


# Inside a model


def test_layers_of_a_scan_have_numbers_of_their_own():
    apply, params, x = started("scan")
    how = act.static()
    scales = act.calibrate(apply, how, params, [x])
    steps = [own["step"] for own in scales.values()]
    assert [s.shape for s in steps] == [(3,), (3,)]
    assert np.unique(steps[0]).size == 3
    static = quantized(apply, how, scales)
    exact = apply(params, x)
    assert float(jnp.linalg.norm(static(params, x) - exact) / jnp.linalg.norm(exact)) < 0.03
    assert float(jnp.linalg.norm(static(params, 100 * x) - apply(params, 100 * x))) > 10


def test_iterations_that_share_a_leaf_share_its_numbers():
    def repeated(w, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, length=3)[0]

    how, w = act.static(symmetric=False), jax.random.normal(KEY, (8, 8))
    scales = act.calibrate(repeated, how, w, [X])
    assert scales[""]["step"].shape == ()
    np.testing.assert_allclose(quantized(repeated, how, scales)(w, X), repeated(w, X), atol=0.15)


@pytest.mark.parametrize("name", [pytest.param("mlp", marks=pytest.mark.slow), "scan"])
def test_stored_codes_go_into_the_product_as_they_are(name):
    apply, params, x = started(name)
    layers = 0 if name == "scan" else None
    packed = mz.compress(params, mz.only("**/kernel", mz.quantize(3, axis=-1, layers=layers)))
    model = quantized(apply, act.dynamic_range(), arithmetic="float")
    # Only activations are still to be rounded: the weights that are unpacked are the weights that count.
    held = quantized(apply, act.dynamic(), weights=None)(mz.unpack(packed), x)
    np.testing.assert_allclose(model(packed.params, x), held, rtol=1e-5, atol=1e-5)
    again = quantized(apply, act.dynamic(), arithmetic="float")(mz.unpack(packed), x)
    assert float(jnp.abs(again - held).max()) > 1e-4  # Eight bits of the largest weight have other steps.
    integer = quantized(apply, act.dynamic_range())(packed.params, x)
    np.testing.assert_allclose(integer, held, rtol=1e-3, atol=2e-2)


def test_dynamic_range_takes_what_is_stored_and_refuses_what_does_not_fit():
    w = {"a": X, "b": jnp.eye(8)}

    def two(p, x):
        return x @ p["a"] @ p["b"]

    masked = mz.compress(w, mz.only("a", mz.chain(mz.prune(sparsity=0.5), mz.quantize(8, axis=-1)))).params
    model = quantized(two, act.dynamic_range())
    text = str(jax.make_jaxpr(model)(masked, X))
    assert text.count("i32[8,8] = dot_general") == 1
    assert text.count("f32[8,8] = dot_general") == 1
    for transform, message in (
        (mz.quantize(8, symmetric=False), "zero points"),
        (mz.quantize(8, granularity="group", group_size=4), "groups"),
        (mz.quantize(8, axis=0), "axis=1"),
    ):
        with pytest.raises(TransformError, match=message):
            model(mz.compress(w, mz.only("a", transform)).params, X)
    with pytest.raises(TraceError, match="is packed"):
        model(w, X)


def test_training_of_weights_clips_and_statistics_together():
    """One jitted step trains 2-bit weights by mz.wrap and PACT's α beside them; batch norm sees rounded activations."""
    model, how = Normalized(), act.pact(2)
    x = jax.random.normal(KEY, (64, 8))
    labels = jnp.argmax(x[:, :3], axis=1)
    variables = model.init(jax.random.key(1), x)

    only = "params/Dense_1/kernel"
    scales = act.calibrate(model.apply, how, variables, [x], only=only)
    assert list(scales) == [only]
    tx = mz.wrap(optax.adam(0.02), mz.only("weights/*/kernel", mz.quantize(2, learned=True)))
    params, opt_state = mz.start(tx, {"weights": variables["params"], "scales": scales})

    def forward(params, batch_stats, train):
        def run(variables, x):
            return model.apply(variables, x, train=train, mutable=["batch_stats"])

        model_now = mz.rewrites.quantize_activations(run, how, params["scales"], only=only)
        return model_now({"params": params["weights"], "batch_stats": batch_stats}, x)

    def loss(params, batch_stats):
        logits, new = forward(params, batch_stats, True)
        l2 = 1e-3 * sum(own["clip"] ** 2 for own in params["scales"].values())
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + l2, new["batch_stats"]

    @jax.jit
    def step(params, opt_state, batch_stats):
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, batch_stats)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, stats, value

    stats, values = variables["batch_stats"], []
    for _ in range(40):
        params, opt_state, stats, value = step(params, opt_state, stats)
        values.append(float(value))
    assert values[-1] < 0.6 * values[0]
    assert params["scales"][only]["clip"] != scales[only]["clip"]
    assert np.unique(params["weights"]["Dense_0"]["kernel"][:, 0]).size <= 4


def test_batch_statistics_are_those_of_rounded_activations():
    model, how, x = Normalized(), act.binary(), jax.random.normal(KEY, (32, 8)) + 0.3
    variables = model.init(jax.random.key(1), x)
    evaluated = quantized(model.apply, how)

    def bound(variables, x, train=False, mutable=False):
        return quantized(lambda v, x: model.apply(v, x, train=train, mutable=mutable), how)(variables, x)

    _, new = bound(variables, x, train=True, mutable=["batch_stats"])
    dense = variables["params"]["Dense_0"]
    held = np.float64(rounded(how, x, {})) @ np.float64(dense["kernel"]) + dense["bias"]
    mean = new["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * held.mean(axis=0), rtol=1e-4, atol=1e-6)
    adapted = adapt_batch_norm(bound, variables, x[None])
    np.testing.assert_allclose(
        adapted["batch_stats"]["BatchNorm_0"]["mean"], held.mean(axis=0), rtol=1e-4, atol=1e-6
    )
    assert evaluated(adapted, x).shape == (32, 3)


def test_only_what_is_asked_for_and_no_derived_weights():
    params = {"w": jnp.eye(8), "a": 0.1 * jnp.ones((8, 2)), "b": jnp.ones((2, 8)), "last": jnp.eye(8)}

    def lora(p, x):
        return x @ (p["w"] + p["a"] @ p["b"]) @ p["last"]

    text = str(jax.make_jaxpr(quantized(lora, act.dynamic()))(params, X))
    assert text.count("i32[8,8] = dot_general") == 1
    with pytest.raises(TraceError, match="no product"):
        quantized(lora, act.dynamic(), only="w")(params, X)
    with pytest.raises(PatternError, match="kernel"):
        quantized(lora, act.dynamic(), only="kernel")(params, X)


def test_zeros_half_precision_and_vmap():
    for symmetric in (True, False):
        model = quantized(product, act.dynamic(symmetric=symmetric))
        np.testing.assert_array_equal(model(jnp.eye(8), jnp.zeros((8, 8))), 0.0)
        np.testing.assert_array_equal(model(jnp.zeros((8, 8)), X), 0.0)
        half = model(jnp.eye(8, dtype=jnp.bfloat16), X.astype(jnp.bfloat16))
        assert half.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(half, np.float32), X, atol=0.03)
    apply, params, x = started("mlp")
    two = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    model = quantized(apply, act.dynamic(symmetric=False))
    both = jax.jit(jax.vmap(model, in_axes=(0, None)))(two, x)
    np.testing.assert_allclose(both[0], model(params, x), rtol=1e-5, atol=1e-6)


def test_a_quantizer_of_ones_own():
    @dataclasses.dataclass(frozen=True)
    class Shifts(act.ActivationQuantizer):
        def coded(self, x, own, axes):
            step = 2.0 ** jnp.ceil(jnp.log2(jnp.max(jnp.abs(x), axis=axes, keepdims=True) / 127.0))
            return act.Coded(jnp.round(x / step), step)

    found = quantized(product, Shifts())(jnp.eye(8), X)
    np.testing.assert_allclose(found, X, atol=0.02)

    @dataclasses.dataclass(frozen=True)
    class Each(act.ActivationQuantizer):
        def coded(self, x, own, axes):
            return act.Coded(jnp.sign(x), jnp.abs(x))

    with pytest.raises(TransformError, match="summed over"):
        quantized(product, Each())(jnp.eye(8), X)
    with pytest.raises(TransformError, match="defines no coded"):
        quantized(product, act.ActivationQuantizer())(jnp.eye(8), X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: act.dynamic(1), "2 to 8"),
        (lambda: act.static(8.0), "2 to 8"),
        (lambda: act.dorefa(9), "1 to 8"),
        (lambda: act.pact(True), "1 to 8"),
        (lambda: act.dynamic(symmetric="no"), "symmetric must be True or False, not 'no'"),
        (lambda: act.dynamic_range(symmetric="no"), "symmetric must be"),
        (lambda: act.static(symmetric=0), "symmetric must be"),
        (lambda: act.learned_step(4, symmetric=None), "symmetric must be"),
        (lambda: act.calibrate(product, {"w": X}, act.static(), [X]), r"^arguments swapped: [^\n]*$"),
        (lambda: act.calibrate(product, {"w": X}, X, [X]), r"^[^\n]*, not a dict$"),
        (lambda: quantized(product, act.dynamic_range())(mz.compress(X, mz.quantize(8)), X), "packed.params"),
        (lambda: act.dynamic(per="rows"), "did you mean 'row'"),
        (lambda: act.static(range="kl"), "'max', 'mse'.*percentile"),
        (lambda: act.learned_step(4, range=3), "percentile"),
        (lambda: act.pact(4, clip=0.0), "positive"),
        (lambda: act.ternary(threshold=-1.0), "at least 0"),
        (lambda: mz.dorefa(1), "binary"),
        (lambda: quantized(product, act.dynamic), "call it"),
        (lambda: quantized(product, 8), "mz.activations.dynamic"),
        (lambda: quantized(product, lambda: 8), "such as mz.activations.dynamic"),
        (lambda: mz.rewrites.quantize_activations(act.dynamic(), product), "the model first"),
        (lambda: act.calibrate(act.static(), product, X, [X]), "the model first"),
        (lambda: quantized(product, act.dynamic(), arithmetic="integers"), "did you mean 'integer'"),
        (lambda: quantized(product, act.dynamic(), weights=1), "2 to 8"),
        (lambda: quantized(product, act.pact(4), {}, arithmetic="integer"), "weights=8"),
        (lambda: quantized(product, act.static()), "calibrate"),
        (lambda: quantized(product, act.dynamic(), {}), "leave scales out"),
        (lambda: act.calibrate(product, act.dynamic(), X, [X]), "without calibration"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(TransformError, match=message):
        make()


def test_numbers_of_numpy_are_taken():
    four, no = np.int64(4), np.False_
    assert mz.recipe.to_plain(mz.dorefa(four)) == mz.recipe.to_plain(mz.dorefa(4))
    for given, plain in (
        (act.dynamic(four, symmetric=no), act.dynamic(4, symmetric=False)),
        (act.static(four, symmetric=no), act.static(4, symmetric=False)),
        (act.learned_step(four, symmetric=no), act.learned_step(4, symmetric=False)),
        (act.pact(four), act.pact(4)),
        (act.dorefa(four), act.dorefa(4)),
    ):
        assert mz.recipe.to_plain(given) == mz.recipe.to_plain(plain)
    found, same = (quantized(product, act.dynamic(), weights=bits)(X, X) for bits in (four, 4))
    np.testing.assert_array_equal(found, same)


def test_bad_data():
    how = act.static()
    with pytest.raises(TraceError, match="at least one batch"):
        act.calibrate(product, how, X, [])
    with pytest.raises(NonFiniteError, match="in batch 1, which holds NaN or infinity itself"):
        act.calibrate(product, how, X, [X, X.at[0, 0].set(jnp.nan)])
    with pytest.raises(NonFiniteError, match="in batch 0, which is finite"):
        act.calibrate(lambda w, x: x / 0.0 @ w, how, X, [jnp.abs(X)])
    for learned in (how, act.learned_step(4)):
        with pytest.raises(TraceError, match="batch 0 holds no example"):
            act.calibrate(product, learned, X, [X[:0]])
    with pytest.raises(TraceError, match="batch 0, of shapes"):
        act.calibrate(product, how, X, [X[:, :1]])
    with pytest.raises(TraceError, match="scales lack 'w'"):
        quantized(lambda p, x: x @ p["w"], how, {"v": {}})({"w": X}, X)
    apply, params, x = started("scan")
    scales = {name: {"step": jnp.ones(())} for name in act.calibrate(apply, how, params, [x])}
    with pytest.raises(TraceError, match="layers"):
        quantized(apply, how, scales)(params, x)


def test_scales_are_those_of_the_quantizer_they_were_made_for(tmp_path):
    given = {
        how: act.calibrate(product, how, X, [X.T]) for how in (act.static(), act.static(symmetric=False))
    }
    (steps, zeros), rewrite = given.values(), mz.rewrites.quantize_activations
    for how, scales, message in [
        (act.static(4), steps, "are steps of 8 bits, and StaticSteps.bits=4.* takes steps of 4 bits"),
        (act.learned_step(4), jax.tree.map(jnp.copy, steps), "steps of 8 bits"),
        (act.static(symmetric=False), steps, "have 'step', and .* takes 'step', 'zero'"),
        (act.static(), zeros, "have 'step', 'zero', and .* takes 'step'"),
        (act.pact(8), steps, "takes 'clip'"),
        (act.static(), jax.tree.map(jnp.zeros_like, steps), "'step' of '' is 0, .* positive"),
        (act.static(), jax.tree.map(jnp.negative, steps), "positive"),
        (act.static(), {"": 0.5}, "numbers by name"),
        (act.static(), {"": {"step": "fine"}}, "is a str, not a number"),
        (act.static(), [0.5], "numbers by product"),
    ]:
        with pytest.raises(TransformError, match=message):
            rewrite(product, how, scales)(X, X.T)
    with pytest.raises(NonFiniteError, match="'step' of ''"):
        rewrite(product, act.static(), jax.tree.map(lambda x: x * jnp.nan, steps))(X, X.T)
    # Of as many bits they may begin what is trained, and what is read from a file is a plain dict.
    expected = rewrite(product, act.static(), steps)(X, X.T)
    mz.save(tmp_path / "scales.mz", mz.compress(steps, mz.identity()))
    read = mz.unpack(mz.load(tmp_path / "scales.mz"))
    for how, scales in [(act.static(), read), (act.learned_step(8), steps)]:
        same = rewrite(product, how, scales, weights=8)(X, X.T)
        np.testing.assert_allclose(same, expected, rtol=1e-5, atol=1e-5)
    assert type(read[""]) is dict


# DoReFa's weights


def test_dorefas_weights_are_eq_9():
    w = 0.3 * jax.random.normal(KEY, (6, 4))
    curved = np.tanh(np.float64(w))
    expected = 2 * np.round(7 * (curved / (2 * np.abs(curved).max()) + 0.5)) / 7 - 1
    np.testing.assert_allclose(mz.decoded({"w": w}, mz.dorefa(3))["w"], expected, atol=1e-6)
    mz.testing.check_laws(mz.dorefa(2), {"w": w, "zeros": jnp.zeros((6, 4))}, steps=2)


def test_dorefas_stacked_layers_each_reach_one():
    w = jnp.stack([X, 3.0 * X])
    found = mz.decoded({"w": w}, mz.dorefa(4, layers=0))["w"]
    np.testing.assert_array_equal(jnp.abs(found).max(axis=(1, 2)), 1.0)
