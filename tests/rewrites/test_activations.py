import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax import trace
from modelzip_jax.errors import PatternError, TraceError, TransformError
from modelzip_jax.rewrites.integer_products import quantize_activations

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


MODELS = {
    "mlp": (Mlp(), X),
    "convolutions": (Convolutions(), jax.random.normal(KEY, (2, 8, 8, 3))),
    "scan": (Scanned(), X),
}


def started(name):
    model, x = MODELS[name]
    return model.apply, model.init(jax.random.key(1), x), x


def reference(x, w, bits, axes):
    """Float64: rows of x and columns of w on their grids, and their product."""
    high = 2 ** (bits - 1) - 1
    x, w = np.float64(x), np.float64(w)
    s = np.abs(x).max(axis=axes, keepdims=True) / high
    t = np.abs(w).max(axis=0, keepdims=True) / high
    return (np.round(x / s) * s) @ (np.round(w / t) * t)


@pytest.mark.parametrize("arithmetic", ["fake", "integer"])
@pytest.mark.parametrize(("ranges", "axes"), [("row", 1), ("tensor", None)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_one_product_is_the_float64_one_on_rounded_operands(arithmetic, ranges, axes, bits):
    w = jax.random.normal(jax.random.key(2), (8, 5))
    model = quantize_activations(lambda p, x: x @ p, bits=bits, arithmetic=arithmetic, ranges=ranges)
    np.testing.assert_allclose(model(w, X), reference(X, w, bits, axes), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ranges", ["row", "tensor"])
def test_integer_and_fake_arithmetic_agree(name, ranges):
    apply, params, x = started(name)
    exact = apply(params, x)
    integer, fake = (
        jax.jit(quantize_activations(apply, arithmetic=a, ranges=ranges))(params, x)
        for a in ("integer", "fake")
    )
    np.testing.assert_allclose(integer, fake, rtol=2e-2, atol=2e-2 * float(jnp.abs(exact).max()))
    error = float(jnp.linalg.norm(integer - exact) / jnp.linalg.norm(exact))
    assert 1e-5 < error < 0.03


def test_static_ranges_inside_a_scan_are_each_layers_own():
    apply, params, x = started("scan")
    stats = trace.statistics(apply, params, [x], kinds=("range",))
    static = jax.jit(quantize_activations(apply, ranges="static", stats=stats))
    exact = apply(params, x)
    assert float(jnp.linalg.norm(static(params, x) - exact) / jnp.linalg.norm(exact)) < 0.03
    clipped = static(params, 100 * x) - apply(params, 100 * x)
    assert float(jnp.linalg.norm(clipped)) > 10


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "convolutions" else n for n in MODELS]
)
def test_gradients_are_straight_through(name):
    apply, params, x = started(name)
    grads = [
        jax.grad(lambda p, a=a: jnp.sum(quantize_activations(apply, arithmetic=a)(p, x) ** 2))(params)
        for a in ("integer", "fake")
    ]
    exact = jax.grad(lambda p: jnp.sum(apply(p, x) ** 2))(params)
    for integer, fake, plain in zip(*map(jax.tree.leaves, (*grads, exact)), strict=True):
        scale = float(jnp.abs(plain).max())
        np.testing.assert_allclose(integer, fake, atol=0.02 * scale)
        np.testing.assert_allclose(fake, plain, atol=0.1 * scale)


def test_clipped_activations_have_no_gradient():
    stats = trace.statistics(lambda p, x: x @ p, jnp.ones((1, 1)), [jnp.ones((1, 1))], kinds=("range",))
    model = quantize_activations(lambda p, x: x @ p, ranges="static", stats=stats)
    slope = jax.grad(lambda x: model(jnp.ones((1, 1)), x).sum())
    assert slope(jnp.full((1, 1), 0.4))[0, 0] == pytest.approx(1.0)
    assert slope(jnp.full((1, 1), 1.5))[0, 0] == 0.0


def test_packed_weights_keep_their_codes():
    apply, params, x = started("mlp")
    packed = mz.compress(params, mz.only("**/kernel", mz.quantize(bits=8)))
    whole = quantize_activations(apply)(mz.unpack(packed), x)
    np.testing.assert_array_equal(jax.jit(quantize_activations(apply))(packed.params, x), whole)
    # Rounding the weights once more changes nothing: only activations are still to be rounded.
    floats = quantize_activations(apply, arithmetic="fake")(mz.unpack(packed), x)
    np.testing.assert_allclose(whole, floats, rtol=1e-5, atol=1e-5)


def test_integer_products_are_in_the_program():
    apply, params, x = started("mlp")
    text = jax.jit(quantize_activations(apply)).lower(params, x).as_text()
    assert len(re.findall(r"dot_general.*xi8>.*xi8>\) -> tensor<8x8xi32>", text)) == 2


def test_only_what_is_asked_for_and_no_derived_weights():
    params = {"w": jnp.eye(8), "a": 0.1 * jnp.ones((8, 2)), "b": jnp.ones((2, 8)), "last": jnp.eye(8)}

    def lora(p, x):
        return x @ (p["w"] + p["a"] @ p["b"]) @ p["last"]

    text = jax.jit(quantize_activations(lora)).lower(params, X).as_text()
    assert len(re.findall(r"dot_general.*i32>", text)) == 1
    with pytest.raises(TraceError, match="no product"):
        quantize_activations(lora, only="w")(params, X)
    with pytest.raises(PatternError, match="kernel"):
        quantize_activations(lora, only="kernel")(params, X)


def test_zeros_and_empty_batches():
    model = quantize_activations(lambda p, x: x @ p)
    np.testing.assert_array_equal(model(jnp.ones((3, 2)), jnp.zeros((4, 3))), 0.0)
    np.testing.assert_array_equal(model(jnp.zeros((3, 2)), jnp.ones((4, 3))), 0.0)


def test_vmap_over_models():
    apply, params, x = started("mlp")
    two = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    model = quantize_activations(apply)
    both = jax.vmap(model, in_axes=(0, None))(two, x)
    np.testing.assert_allclose(both[0], model(params, x), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "2 to 8"),
        ({"bits": 8.0}, "2 to 8"),
        ({"arithmetic": "integers"}, "did you mean 'integer'"),
        ({"ranges": "rows"}, "did you mean 'row'"),
        ({"ranges": "static"}, "stats go together"),
        ({"stats": {}}, "stats go together"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(TransformError, match=message):
        quantize_activations(lambda p, x: x @ p, **options)
