"""Parameter counts from the literature, shapes, dtypes, gradients and batch statistics."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import fill

from modelzip_jax import models
from modelzip_jax.errors import ModelError
from modelzip_jax.models.lenet import LeNet5
from modelzip_jax.models.mlp import MLP
from modelzip_jax.models.resnet import BasicBlock, Bottleneck, CifarResNet, pad_shortcut
from modelzip_jax.models.vgg import VGG

MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)

# Counts as published: Han et al. 2016 (LeNets), Liu et al. 2019 (VGG-19), He et al. 2016 §4.2 ("0.27M"),
# torchvision (ResNet-50); VGG-16 and the projection ResNet-20 are counted by hand.
COUNTS = [
    ("lenet_300_100", {}, MNIST, 266_610),
    ("lenet5", {}, MNIST, 431_080),
    ("mlp", {"widths": (32,)}, (8, 8, 1), 64 * 32 + 32 + 330),
    ("vgg16", {}, CIFAR, 14_724_042),
    ("vgg19", {}, CIFAR, 20_035_018),
    ("vgg19", {"width": 0.25}, CIFAR, 1_255_546),
    ("vgg19", {"width": 0.1875}, CIFAR, 707_086),
    ("resnet20", {}, CIFAR, 269_722),
    ("resnet20", {"shortcut": "projection"}, CIFAR, 272_474),
    ("resnet50", {}, IMAGENET, 25_557_032),
    ("center_detector", {}, (64, 64, 1), 9 * (16 + 16 * 48 + 48 * 96 + 2 * 96 * 96) + 2 * 352 + 97 * 15),
]

SMALL = [
    (MLP((16,)), (4, 4, 1)),
    (LeNet5(), (16, 16, 1)),
    (VGG((1, 0, 0, 1, 0), width=1 / 32), CIFAR),
    (CifarResNet(blocks=1), (8, 8, 3)),
]


def shapes(model, input_shape):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *input_shape)))


def filled(index):
    model, input_shape = SMALL[index]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, *input_shape)), jnp.float32)
    return model, fill(model, x), x


@pytest.mark.parametrize(("name", "options", "input_shape", "count"), COUNTS)
def test_parameter_counts_are_the_published_ones(name, options, input_shape, count):
    params = shapes(models.create(name, **options), input_shape)["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("index", range(len(SMALL)))
def test_forward_and_gradients_are_finite_and_trace_once(index):
    model, variables, x = filled(index)
    traces = []

    @jax.jit
    def step(params, rest, x):
        traces.append(1)

        def loss(params):
            logits, updated = model.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])
            return -jax.nn.log_softmax(logits)[:, 0].mean(), (logits, updated)

        return jax.value_and_grad(loss, has_aux=True)(params)

    rest = {k: v for k, v in variables.items() if k != "params"}
    (_, (logits, updated)), grads = step(variables["params"], rest, x)
    step(variables["params"], dict(updated), 2 * x)
    assert len(traces) == 1
    assert logits.shape == (4, 10)
    assert logits.dtype == jnp.float32
    chex.assert_tree_all_finite((logits, grads))
    assert all(np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "bfloat16"])
@pytest.mark.parametrize("name", ["mlp", "lenet5", "vgg19", "resnet20", "resnet50"])
def test_half_precision_keeps_logits_and_statistics_in_float32(name, dtype):
    model, x = models.create(name, dtype=dtype, param_dtype=dtype), jnp.zeros((2, 32, 32, 3))
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables.get("batch_stats"))} <= {jnp.dtype("float32")}


def test_batch_statistics_move_in_train_mode_only():
    model, variables, x = filled(3)

    @jax.jit
    def both(variables, x):
        return [model.apply(variables, x, train=t, mutable=["batch_stats"])[1] for t in (False, True)]

    evaluated, trained = both(variables, x)
    chex.assert_trees_all_equal(evaluated["batch_stats"], variables["batch_stats"])
    before, after = (jax.tree.leaves(v["batch_stats"]) for v in (variables, trained))
    assert all(np.any(a != b) for a, b in zip(after, before, strict=True))


def test_batch_norm_has_momentum_0_9_and_epsilon_1e_5():
    model, x = VGG((1, 0, 0, 0, 0), width=1 / 64), jnp.full((2, 32, 32, 1), 0.003).at[1].set(-0.003)
    variables = fill(model, x)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    variables["params"]["Conv_0"]["kernel"] = kernel  # the identity, so that the block is norm and ReLU
    logits, trained = jax.jit(lambda v, x: model.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
    p, s = variables["params"], variables["batch_stats"]["BatchNorm_0"]
    images = np.asarray(x, np.float64)
    mean, var = images.mean(), images.var()
    np.testing.assert_allclose(
        trained["batch_stats"]["BatchNorm_0"]["mean"], 0.9 * s["mean"] + 0.1 * mean, 1e-6
    )
    np.testing.assert_allclose(trained["batch_stats"]["BatchNorm_0"]["var"], 0.9 * s["var"] + 0.1 * var, 1e-6)
    y = (images[:, 0, 0] - mean) / (var + 1e-5) ** 0.5
    y = np.maximum(y * p["BatchNorm_0"]["scale"] + p["BatchNorm_0"]["bias"], 0)
    np.testing.assert_allclose(
        logits, y @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], rtol=1e-5, atol=1e-6
    )


def test_lenet5_is_the_caffe_network():
    """Against a float64 computation with explicit windows: no ReLU after the convolutions."""
    model, variables, x = filled(1)
    p, h = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"]), np.asarray(x, np.float64)
    for name in ("Conv_0", "Conv_1"):
        windows = np.lib.stride_tricks.sliding_window_view(h, (5, 5), (1, 2))
        h = np.einsum("nhwcij,ijco->nhwo", windows, p[name]["kernel"]) + p[name]["bias"]
        n, rows, columns, c = h.shape
        h = h.reshape(n, rows // 2, 2, columns // 2, 2, c).max((2, 4))
    h = np.maximum(h.reshape(len(h), -1) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], 0)
    expected = h @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


def test_pad_shortcut_subsamples_and_appends_zeros():
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    y = pad_shortcut(x, 5, 2)
    np.testing.assert_array_equal(y[..., :2], x[:, ::2, ::2])
    assert y.shape == (1, 2, 2, 5)
    assert not np.any(y[..., 2:])


@pytest.mark.parametrize("block", [BasicBlock(4), Bottleneck(1)])
def test_a_block_of_zero_kernels_is_its_shortcut(block):
    x = jnp.arange(128.0).reshape(2, 4, 4, 4)
    variables = jax.tree.map(jnp.zeros_like, fill(block, x))
    np.testing.assert_array_equal(jax.jit(block.apply)(variables, x), x)


def test_initial_kernels_have_the_variance_of_their_papers():
    """He et al. 2015 before a ReLU, 2/fan-in; LeCun's before the logits, 1/fan-in."""
    params = jax.jit(MLP((400,), 300).init)(jax.random.key(0), jnp.zeros((1, 200)))["params"]
    assert np.std(params["Dense_0"]["kernel"]) == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert np.std(params["Dense_1"]["kernel"]) == pytest.approx((1 / 400) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("name", "x"),
    [
        ("lenet5", jnp.zeros((1, 8, 8, 1))),
        ("vgg19", jnp.zeros((1, 28, 28, 1))),
        ("resnet20", jnp.zeros((32, 32, 3))),
        ("resnet50", jnp.zeros((1, 64, 64, 3), jnp.uint8)),
        ("mlp", jnp.zeros((1, 64), jnp.uint8)),
    ],
)
def test_unusable_inputs_are_refused(name, x):
    model = models.create(name)
    with pytest.raises(ModelError, match=r"takes (images|floats)"):
        jax.eval_shape(model.init, jax.random.key(0), x)


def test_unknown_shortcut_is_refused():
    with pytest.raises(ModelError, match="'pad' or 'projection', not 'conv'"):
        shapes(CifarResNet(shortcut="conv"), CIFAR)
