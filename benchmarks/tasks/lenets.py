"""LeNet-300-100 and LeNet-5 on MNIST and Fashion-MNIST, three networks of each.

Trained once, by `configs/`, on the first 55,000 training images; the last 5,000 are for validation.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.baselines import FASHION
from benchmarks.tasks import pictures_with_labels
from benchmarks.tasks.task import Task
from benchmarks.tasks.training import trained
from modelzip_jax import models
from modelzip_jax.training import frameworks
from modelzip_jax.tree import PyTree

__all__ = ["NAMES", "lenet5_by_patches", "load"]

_FIELDS: dict[tuple[str, str], dict[str, Any]] = {
    ("lenet_300_100", "mnist"): {},
    ("lenet_300_100", "fashion_mnist"): {"data.name": "fashion_mnist"},
    ("lenet5", "mnist"): {},
    ("lenet5", "fashion_mnist"): FASHION,
}
NAMES = tuple(f"{model}-{dataset}-{seed}" for model, dataset in _FIELDS for seed in range(3))


def load(name: str, quick: bool) -> Task:
    """The task of one of `NAMES`, "lenet5-mnist-0" being LeNet-5 trained on MNIST with seed 0."""
    model, dataset, seed = name.split("-")
    module = models.create(model)
    network = frameworks.from_linen(module)
    if model == "lenet5":
        network = frameworks.Network(
            network.init, lambda params, rest, x, *_: (lenet5_by_patches(params, x), rest)
        )
    fields = {"block": 50, **_FIELDS[model, dataset], "seed": int(seed)}
    found = trained(name, model, fields, network)

    def apply(params: PyTree, images: Any) -> Any:
        return module.apply({"params": params}, images)

    predict = jax.jit(lenet5_by_patches if model == "lenet5" else apply)
    return Task(
        name=name,
        params=found.params,
        apply=apply,
        likelihood="categorical",
        calibration=pictures_with_labels.calibration(dataset),
        scores=pictures_with_labels.scores(dataset, predict, quick),
        measures=pictures_with_labels.MEASURES,
        at_once=20 if model == "lenet5" else 100,
    )


def lenet5_by_patches(params: PyTree, images: jax.Array) -> jax.Array:
    """What `models.lenet.LeNet5` computes, logits (n, 10) of images (n, 28, 28, 1), as products of matrices.

    With the images along the last axis, patches are copies of whole runs of memory: on CPUs some thirty times as
    fast as XLA's convolutions, forwards and backwards.
    """
    x = images.transpose(3, 1, 2, 0)
    for layer in ("Conv_0", "Conv_1"):
        x = _pooled(_convolved(x, **params[layer]))
    channels, height, width, n = x.shape
    x = x.transpose(1, 2, 0, 3).reshape(height * width * channels, n)
    x = jax.nn.relu(params["Dense_0"]["kernel"].T @ x + params["Dense_0"]["bias"][:, None])
    return (params["Dense_1"]["kernel"].T @ x).T + params["Dense_1"]["bias"]


def _convolved(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """(channels, h, w, n) by a kernel (k, k, channels, features), unpadded, to (features, h - k + 1, ...)."""
    k, _, channels, features = kernel.shape
    height, width, n = (x.shape[1] - k + 1, x.shape[2] - k + 1, x.shape[3])
    shifts = [x[:, i : i + height, j : j + width] for i in range(k) for j in range(k)]
    patches = jnp.stack(shifts).reshape(k * k * channels, height * width * n)
    made = kernel.reshape(k * k * channels, features).T @ patches + bias[:, None]
    return made.reshape(features, height, width, n)


def _pooled(x: jax.Array) -> jax.Array:
    """The maximum of each 2×2 pixels of (channels, h, w, n)."""
    channels, height, width, n = x.shape
    return x.reshape(channels, height // 2, 2, width // 2, 2, n).max((2, 4))
