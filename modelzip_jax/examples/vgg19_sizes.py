"""What the VGG19 example is told: three sizes of one and the same example."""

from __future__ import annotations

from typing import Any

import jax

from modelzip_jax.naming import require_known
from modelzip_jax.training.config import base

__all__ = ["FULL_PARAMETERS", "SIZES", "vgg19_settings"]

SIZES = ("full", "quarter", "tiny")
FULL_PARAMETERS = 20_035_018
"""Of VGG19 with ten classes and three colours."""


def vgg19_settings(size: str = "") -> Any:
    """The config of the example: a training config for the float network, and `compress` for all that follows.

    `compress` has the fields

    calibration: training images that activations and biases are measured on.
    order: of the convolutions that are visited: "sparsest" or "densest" (by activations), "first" or "last" (by place).
    parameters: most parameters once filters have left, of a network of 20,035,018; others in proportion.
    fewest, round_to: filters that a convolution keeps; it keeps a multiple of `round_to`.
    limit: layers under this share of non-zero activations become sparse; 0 is the share of the network as a whole.
    sparsity: of these.
    reach: weights stay within [-reach, reach]. bits: of each.
    average, averaged: decay of the moving average, and the layers whose weights are averaged.
    recovering, thinning, tuning: epochs (or steps, if not 0) and peak rate of each of the three trainings: after
    filters have left, while weights become sparse, and from the quantized file.

    Args:
      size: "full" (20 million parameters, CIFAR-10), "quarter" (of the width, on Fashion-MNIST) or "tiny" (a
        sixteenth, on digits: for tests). If empty, full where JAX has an accelerator, else quarter.

    Raises:
      ConfigError: another size.

    >>> vgg19_settings("quarter").model.options.width, vgg19_settings("full").data.name
    (0.25, 'cifar10')
    """
    size = size or ("quarter" if jax.default_backend() == "cpu" else "full")
    config = base()
    config.model.name = "vgg19"
    config.optimizer.name = "sgd"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule.peak = 0.05
    config.compress = {
        "calibration": 1024, "order": "sparsest", "parameters": 1_000_000, "fewest": 12, "round_to": 4, "limit": 0.0,
        "sparsity": 0.3, "reach": 0.5, "bits": 8, "average": 0.99, "averaged": ("Conv_*/kernel",),
        "recovering": {"epochs": 6.0, "steps": 0, "peak": 0.05},
        "thinning": {"epochs": 3.0, "steps": 0, "peak": 0.02},
        "tuning": {"epochs": 2.0, "steps": 0, "peak": 0.01},
    }  # fmt: skip
    {"full": _full, "quarter": _quarter, "tiny": _tiny}[require_known("size", size, SIZES)](config)
    return config


def _full(config: Any) -> None:
    config.model.options = {"width": 1.0}
    config.data.name = "cifar10"
    config.data.augment = "crop+flip"
    config.epochs = 160.0
    config.block = 50
    config.optimizer.schedule.warmup = 400
    config.compress.recovering.epochs = 60.0
    config.compress.thinning.epochs = 30.0
    config.compress.tuning.epochs = 10.0


def _quarter(config: Any) -> None:
    config.model.options = {"width": 0.25}
    config.data.name = "fashion_mnist"
    config.data.options = {"image_size": 32}
    config.data.batch_size = 64
    config.epochs = 4.0
    config.optimizer.schedule.warmup = 200


def _tiny(config: Any) -> None:
    config.model.options = {"width": 0.0625}
    config.data.name = "digits"
    config.data.options = {"image_size": 32}
    config.data.batch_size = 32
    config.data.subset = 0.2
    config.steps = 12
    config.save_every = 6
    config.evaluate_every = 12
    config.compress.update(
        {
            "calibration": 64,
            "parameters": 8_000_000,
            "fewest": 2,
            "round_to": 1,
            "limit": 0.95,
            "average": 0.9,
        }
    )
    for part in ("recovering", "thinning", "tuning"):
        config.compress[part].steps = 6
