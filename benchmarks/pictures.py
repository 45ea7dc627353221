"""CIFAR-10's pictures as inputs of ImageNet networks: to calibrate them, and to see how their outputs change.

No labels fit, so the float network's logits are the reference: `agreement` gives for each picture the cosine and
whether the likeliest class is the same. The pictures are prepared once, outside of the repository, by
`python scripts/offline_datasets.py cifar10`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.training import data

__all__ = ["Agreement", "agreement", "batches", "enlarge", "evaluator", "logits"]

SIZE = 224


class Agreement(NamedTuple):
    """Of two networks' logits, picture by picture, `(n,)` each.

    cosine: of the centred logits, since what is added to all of them changes no probability. top: 1.0 where the
    likeliest class is the same.
    """

    cosine: np.ndarray
    top: np.ndarray


def batches(part: str, count: int, batch_size: int = 32) -> list[jax.Array]:
    """`count` pictures at even distances, in batches float32 (n, 224, 224, 3).

    part: "calibration", of the training pictures; "validation", of those that training leaves out; "test".
    """
    every = levels({"calibration": "train"}.get(part, part))
    chosen = every[np.arange(count) * len(every) // count]
    return [enlarge(chosen[i : i + batch_size]) for i in range(0, count, batch_size)]


@functools.cache
def levels(split: str) -> np.ndarray:
    """All pictures of a split, uint8 (n, 32, 32, 3); read once."""
    return data.load_split("cifar10", split)["inputs"]


@jax.jit
def enlarge(levels: jax.Array) -> jax.Array:
    """Levels 0 to 255, (n, 32, 32, 3), as EfficientNet-Lite's inputs: (levels - 127) / 128, bilinear, 224×224."""
    x = (jnp.asarray(levels, jnp.float32) - 127.0) / 128.0
    return jax.image.resize(x, (len(x), SIZE, SIZE, x.shape[-1]), "bilinear")


def evaluator(model: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
    """`model.apply`, jitted, with its depthwise convolutions as sums of shifted products.

    The same numbers but for rounding, some four times as fast as XLA's grouped convolutions on CPUs. The
    weights are then no operand of a convolution, so `modelzip_jax.trace` is given `model.apply`.
    """

    def replaced(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        if not isinstance(layer, nn.Conv) or layer.feature_group_count == 1:
            return method(*args, **kwargs)
        return _depthwise(args[0], layer.get_variable("params", "kernel"), layer.strides)

    def apply_fn(variables: Any, x: jax.Array) -> jax.Array:
        with nn.intercept_methods(replaced):
            return model.apply(variables, x)  # type: ignore[return-value]

    return jax.jit(apply_fn)


def _depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Images (n, h, w, c), kernel (k, k, 1, c), padded as TensorFlow does."""
    k, sizes = kernel.shape[0], [-(-n // stride) for n in x.shape[1:3]]
    totals = [max((m - 1) * stride + k - n, 0) for m, n in zip(sizes, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *((t // 2, t - t // 2) for t in totals), (0, 0)))
    ends = [(m - 1) * stride + 1 for m in sizes]
    shifts = [(i, j) for i in range(k) for j in range(k)]
    return sum(  # type: ignore[return-value]
        x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] * kernel[i, j, 0] for i, j in shifts
    )


def logits(
    apply_fn: Callable[[Any, jax.Array], jax.Array], params: Any, batches: list[jax.Array]
) -> np.ndarray:
    """Outputs of a jitted network on all batches, float32 (n, classes)."""
    return np.concatenate([np.asarray(apply_fn(params, batch)) for batch in batches])


def agreement(reference: np.ndarray, other: np.ndarray) -> Agreement:
    """How two networks agree, by their logits, (n, classes) each.

    >>> agreement(np.array([[1.0, 2.0]]), np.array([[6.0, 8.0]]))
    Agreement(cosine=array([1.]), top=array([1.]))
    """
    a, b = (np.asarray(x, np.float64) - np.mean(x, -1, keepdims=True) for x in (reference, other))
    cosine = np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return Agreement(cosine, (a.argmax(-1) == b.argmax(-1)).astype(np.float64))
