"""Features are those that a model computes, whatever it is written in, and gradients flow through them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax import distillation, trace
from modelzip_jax.errors import PatternError, TraceError
from modelzip_jax.models import language_model, lenet, resnet

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


class Net(nn.Module):
    """A convolution, batch normalisation, a residual, and two dense layers; what they say is sown."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        self.sow("intermediates", "stem", x)
        x = x + nn.silu(nn.Conv(4, (3, 3), name="inner")(x))
        self.sow("intermediates", "block", x)
        x = nn.gelu(nn.Dense(6)(x.mean((1, 2))))
        self.sow("intermediates", "hidden", x)
        return nn.Dense(3, name="head")(x)


NET, IMAGES = Net(), normal(2, 6, 6, 3)
VARIABLES = NET.init(jax.random.key(0), IMAGES)


def test_linen_activations_are_those_that_are_sown():
    @jax.jit
    def run(variables):
        layers = ["params/Conv_0", "**/Dense_0", "**/head/kernel"]
        return distillation.features(NET.apply, variables, IMAGES, layers=layers)

    outputs, found = run(VARIABLES)
    want, sown = NET.apply(VARIABLES, IMAGES, mutable=["intermediates"])
    sown = sown["intermediates"]
    np.testing.assert_allclose(outputs, want, rtol=1e-5, atol=1e-6)
    assert len(found) == 3
    np.testing.assert_allclose(found["params/Conv_0"], sown["stem"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["**/Dense_0"], sown["hidden"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["**/head/kernel"], want, rtol=1e-5, atol=1e-6)


def test_places_of_a_layer():
    places = {"**/inner": "inputs", "**/Dense_0": "outputs", "**/head": "inputs"}
    _, found = distillation.features(NET.apply, VARIABLES, IMAGES, layers=places)
    _, sown = NET.apply(VARIABLES, IMAGES, mutable=["intermediates"])
    np.testing.assert_allclose(found["**/inner"], sown["intermediates"]["stem"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["**/head"], sown["intermediates"]["hidden"][0], rtol=1e-5, atol=1e-6)
    pooled = sown["intermediates"]["block"][0].mean((1, 2))
    want = pooled @ VARIABLES["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(found["**/Dense_0"], want, rtol=1e-4, atol=1e-5)


def test_inputs_are_what_a_layer_is_given_in_training_too():
    apply = functools.partial(NET.apply, train=True, mutable=["batch_stats", "intermediates"])
    places = {"**/inner": "inputs"}
    (outputs, changed), found = distillation.features(apply, VARIABLES, IMAGES, layers=places)
    assert outputs.shape == (2, 3)
    np.testing.assert_allclose(found["**/inner"], changed["intermediates"]["stem"][0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(changed["batch_stats"]["BatchNorm_0"]["mean"], 0.0)


def test_gradients_are_those_of_the_model():
    teacher = normal(2, 6, 6, 4)

    def by_name(params):
        variables = {**VARIABLES, "params": params}
        outputs, found = distillation.features(NET.apply, variables, IMAGES, layers=["params/Conv_0"])
        return outputs.sum() + distillation.hint(found["params/Conv_0"], teacher)

    def by_hand(params):
        outputs, sown = NET.apply({**VARIABLES, "params": params}, IMAGES, mutable=["intermediates"])
        return outputs.sum() + distillation.hint(sown["intermediates"]["stem"][0], teacher)

    found, want = (jax.jit(jax.grad(f))(VARIABLES["params"]) for f in (by_name, by_hand))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, want)


def test_nnx_and_plain_functions():
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    graphdef, state = nnx.split(model)
    x = normal(5, 3)
    names = [
        use.leaf for use in trace.uses(lambda s, x: nnx.merge(graphdef, s)(x), state, x) if use.kind == "dot"
    ]
    outputs, found = jax.jit(
        lambda s: distillation.features(lambda s, x: nnx.merge(graphdef, s)(x), s, x, layers=names[:1])
    )(state)
    np.testing.assert_allclose(outputs, model(x), rtol=1e-6)
    np.testing.assert_allclose(found[names[0]], nnx.relu(model.layers[0](x)), rtol=1e-6)


def test_the_derivative_of_a_function_that_has_its_own_is_kept():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))  # Straight through.

    def model(params, x):
        return jax.jit(rounded)(x @ params["a"]) @ params["b"]

    params, x = {"a": normal(3, 4), "b": normal(4, 2)}, normal(2, 3)

    def loss(params):
        outputs, found = distillation.features(model, params, x, layers=["a"])
        return jnp.sum(outputs) + jnp.sum(found["a"] ** 2)

    gradient = jax.grad(loss)(params)["a"]
    hidden = jnp.round(x @ params["a"])
    np.testing.assert_allclose(gradient, x.T @ (params["b"].sum(1) + 2 * hidden), rtol=1e-4, atol=1e-5)
    # The derivative of relu at 0 is 0, and that of the maximum inside it a half.
    zero = jax.grad(
        lambda p: distillation.features(lambda p, x: jax.nn.relu(x @ p), p, x, layers=[""])[1][""].sum()
    )
    np.testing.assert_array_equal(zero(jnp.zeros((3, 2))), 0.0)


def test_scanned_layers_have_an_axis_of_layers():
    tokens = jnp.asarray(RNG.integers(0, 20, (2, 6)))
    model = language_model.LanguageModel(20, 2, 2, 8, remat=True, max_length=6)
    variables = model.init(jax.random.key(0), tokens)
    layer = "**/mlp_out/kernel"
    outputs, found = distillation.features(model.apply, variables, tokens, layers=[layer])
    np.testing.assert_allclose(outputs, model.apply(variables, tokens), rtol=1e-4, atol=1e-5)
    assert found[layer].shape == (2, 2, 6, 8)
    gradient = jax.grad(
        lambda v: jnp.sum(distillation.features(model.apply, v, tokens, layers=[layer])[1][layer] ** 2)
    )(variables)
    assert jnp.any(gradient["params"]["blocks"]["mlp_out"]["kernel"][0] != 0)


@pytest.mark.parametrize(
    ("model", "layer", "shape"),
    [
        (lenet.LeNet5(), "**/Conv_0", (2, 24, 24, 20)),
        (resnet.CifarResNet(blocks=1), "params/Conv_0", (2, 8, 8, 16)),
    ],
)
def test_the_library_s_own_networks(model, layer, shape):
    x = normal(2, 28, 28, 1) if shape[1] == 24 else normal(2, 8, 8, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    outputs, found = jax.eval_shape(
        lambda v: distillation.features(model.apply, v, x, layers=[layer]), variables
    )
    assert outputs.shape == (2, 10)
    assert found[layer].shape == shape


def test_a_compressed_student_is_read_as_any_other():
    zipper = mz.only("**/kernel", mz.quantize(bits=4))
    params = VARIABLES["params"]
    unpacked = mz.unpack(mz.compress(params, zipper))
    _, found = distillation.features(
        NET.apply, {**VARIABLES, "params": unpacked}, IMAGES, layers=["**/Dense_0"]
    )
    _, plain = distillation.features(NET.apply, VARIABLES, IMAGES, layers=["**/Dense_0"])
    assert 0 < distillation.hint(found["**/Dense_0"], plain["**/Dense_0"]) < 0.1


def test_a_step_traces_once():
    traces = 0

    @jax.jit
    def step(variables, x):
        nonlocal traces
        traces += 1
        return distillation.features(NET.apply, variables, x, layers=["**/head"])[0]

    for seed in range(3):
        step(VARIABLES, IMAGES + seed)
    assert traces == 1


def tied(params, x):
    return jax.nn.relu(x @ params["w"]) @ params["w"].T + params["b"]


TIED = {"w": jnp.eye(3), "b": jnp.zeros(3)}


def test_uses_of_tied_weights_are_numbered():
    x = normal(2, 3)
    outputs, found = distillation.features(tied, TIED, x, layers=["w#0", "w#1"])
    np.testing.assert_allclose(found["w#0"], jax.nn.relu(x))
    np.testing.assert_allclose(found["w#1"], outputs)
    with pytest.raises(TraceError, match="2 times: name one of 'w#0', 'w#1'"):
        distillation.features(tied, TIED, x, layers=["w"])
    with pytest.raises(TraceError, match="2 times"):
        distillation.features(tied, TIED, x, layers=["w#2"])


def test_layers_that_cannot_be_meant():
    x = normal(2, 3)
    run = functools.partial(distillation.features, tied, TIED, x)
    with pytest.raises(PatternError, match="matches no leaf"):
        run(layers=["v"])
    with pytest.raises(TraceError, match="no dense layer or convolution"):
        run(layers=["b"])
    with pytest.raises(TraceError, match=r"one of .*'inputs'"):
        run(layers={"w#0": "middle"})
    for none in ([], "w"):
        with pytest.raises(TraceError, match="names of layers"):
            run(layers=none)
    with pytest.raises(TraceError, match=r"several layers, .*Conv_0"):
        distillation.features(NET.apply, VARIABLES, IMAGES, layers=["**/kernel"])


def test_layers_that_cannot_be_read():
    def looped(params, x):
        return jax.lax.while_loop(lambda s: jnp.sum(s) < 10, lambda s: s @ params, x)

    with pytest.raises(TraceError, match="while"):
        distillation.features(looped, jnp.eye(3), jnp.ones((2, 3)), layers=[""])

    @jax.custom_vjp
    def whole(w, x):
        return jnp.sum(x @ w)

    whole.defvjp(lambda w, x: (whole(w, x), x), lambda x, g: (x.T @ jnp.ones((2, 3)) * g, None))
    for place in trace.PLACES:
        with pytest.raises(TraceError, match="derivative of its own"):
            distillation.features(whole, jnp.eye(3), jnp.ones((2, 3)), layers={"": place})
