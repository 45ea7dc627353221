"""Networks that can be reordered: their weights, and functions that couple their channels as they do.

The functions compute with every tensor of the files, on small inputs. EfficientNet-Lite0's strides are left out,
since channels are coupled without them; it thus computes something else than the published network.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import modelzip_jax as mz
from benchmarks.networks import NETWORKS
from modelzip_jax import models
from modelzip_jax.models.bert import SentenceEncoder
from modelzip_jax.models.sentence_encoder import from_safetensors

__all__ = ["PRETRAINED", "Coupled", "lenet"]

Arrays = dict[str, Any]


class Coupled(NamedTuple):
    """params, apply, inputs: `apply(params, *inputs)` runs the network."""

    params: Any
    apply: Callable[..., Any]
    inputs: tuple[Any, ...]


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def lenet(path: Path) -> Coupled:
    """LeNet-300-100 from a trained model's file."""
    model = models.create("lenet_300_100")
    params = jax.tree.map(np.asarray, mz.unpack(mz.load(path)))
    return Coupled(params, lambda p, x: model.apply({"params": p}, x), (_normal(8, 28, 28, 1),))


def minilm() -> Coupled:
    """MiniLM-L6-v2; its pooler, which embeddings do not use, is left out."""
    from safetensors.numpy import load_file

    params = from_safetensors(load_file(NETWORKS["MiniLM-L6"].path()))
    model = SentenceEncoder()
    ids = np.random.default_rng(0).integers(0, 30522, (4, 16))
    return Coupled(params, lambda p, *x: model.apply({"params": p}, *x), (ids, np.ones_like(ids)))


def _convolution(x: jax.Array, kernel: jax.Array, layout: str) -> jax.Array:
    inner = kernel.shape[layout.index("I")]
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", layout, "NHWC"),
        feature_group_count=x.shape[-1] // inner,
    )  # fmt: skip


def _vgg(p: Arrays, x: jax.Array) -> jax.Array:
    """HED (Xie & Tu 2015): VGG16 with an edge map of each block, here without upsampling them."""

    def layer(x: jax.Array, name: str) -> jax.Array:
        return _convolution(x, p[f"{name}/vars/0"], "HWIO") + p[f"{name}/vars/1"]

    sides = []
    for block in range(1, 6):
        for name in ("conv2d", "conv2d_1", "conv2d_2")[: 2 if block < 3 else 3]:
            x = jax.nn.relu(layer(x, f"block{block}/layers/{name}"))
        sides.append(layer(x, f"dsn{block}").mean((1, 2), keepdims=True))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return layer(jnp.concatenate(sides, -1), "fuse")


def _efficientnet(p: Arrays, x: jax.Array) -> jax.Array:
    """EfficientNet-Lite0: inverted bottlenecks (Tan & Le 2019), ReLU6, no squeeze-and-excitation, no strides."""

    def norm(x: jax.Array, name: str) -> jax.Array:
        scale = p[f"{name}.weight"] * lax.rsqrt(p[f"{name}.running_var"] + 1e-3)
        return (x - p[f"{name}.running_mean"]) * scale + p[f"{name}.bias"]

    def step(x: jax.Array, name: str, normalized: str) -> jax.Array:
        return norm(_convolution(x, p[f"{name}.weight"], "OIHW"), normalized)

    x = jax.nn.relu6(step(x, "_conv_stem", "_bn0"))
    for number in range(1 + max(int(m[1]) for name in p if (m := re.match(r"_blocks\.(\d+)\.", name)))):
        block, y = f"_blocks.{number}.", x
        if f"{block}_expand_conv.weight" in p:
            y = jax.nn.relu6(step(y, f"{block}_expand_conv", f"{block}_bn0"))
        y = jax.nn.relu6(step(y, f"{block}_depthwise_conv", f"{block}_bn1"))
        y = step(y, f"{block}_project_conv", f"{block}_bn2")
        x = x + y if x.shape == y.shape else y
    x = jax.nn.relu6(step(x, "_conv_head", "_bn1"))
    return x.mean((1, 2)) @ p["_fc.weight"].T + p["_fc.bias"]


def _from_file(name: str, apply: Callable[..., Any], *shape: int) -> Coupled:
    return Coupled(NETWORKS[name].load(), apply, (_normal(*shape),))


PRETRAINED: dict[str, Callable[[], Coupled]] = {
    "MiniLM-L6": minilm,
    "EfficientNet-Lite0": functools.partial(_from_file, "EfficientNet-Lite0", _efficientnet, 1, 4, 4, 3),
    "HED/VGG16": functools.partial(_from_file, "HED/VGG16", _vgg, 1, 32, 32, 3),
}
