"""ResNet-20 in Flax NNX: leaf paths, shapes and numbers of `modelzip_jax.models.resnet.CifarResNet`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from modelzip_jax.models.input_checks import check_images
from modelzip_jax.models.resnet import check_shortcut, pad_shortcut

__all__ = ["BasicBlock", "CifarResNet", "resnet20"]


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions beside a shortcut, (n, h, w, in_features) to (n, h/stride, w/stride, features).

    See `modelzip_jax.models.resnet.BasicBlock`.

    >>> nnx.eval_shape(lambda x: BasicBlock(4, 8, stride=2, rngs=nnx.Rngs(0))(x), jnp.ones((1, 4, 4, 4))).shape
    (1, 2, 2, 8)
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int = 1,
        shortcut: str = "pad",
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        *,
        rngs: nnx.Rngs,
    ):
        init = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.features, self.stride = features, stride
        self.projects = shortcut == "projection" and (in_features, stride) != (features, 1)
        self.Conv_0, self.BatchNorm_0 = (
            _conv(in_features, features, 3, stride, **init),
            _norm(features, **init),
        )
        self.Conv_1, self.BatchNorm_1 = _conv(features, features, 3, **init), _norm(features, **init)
        if self.projects:
            self.Conv_2 = _conv(in_features, features, 1, stride, **init)
            self.BatchNorm_2 = _norm(features, **init)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (n, h, w, in_features) to (n, h/stride, w/stride, features)."""
        frozen = not train
        y = nnx.relu(self.BatchNorm_0(self.Conv_0(x), use_running_average=frozen))
        y = self.BatchNorm_1(self.Conv_1(y), use_running_average=frozen)
        if self.projects:
            x = self.BatchNorm_2(self.Conv_2(x), use_running_average=frozen)
        elif x.shape != y.shape:
            x = pad_shortcut(x, self.features, self.stride)
        return nnx.relu(x + y)


class CifarResNet(nnx.Module):
    """The ResNet for small images of He et al. 2016, §4.2, with 6 × `blocks` + 2 layers.

    Attributes carry the names that Linen gives (`BasicBlock_0/Conv_0`, ...), so that a path pattern, a
    recipe or a compressed file of one framework fits the other. Called as `model(x, train=True)` it
    updates its batch statistics in place.

    Args:
      input_shape: (height, width, channels) of one image; only the channels count.
      blocks: residual blocks in each of the stages of 16, 32 and 64 channels.
      num_classes: logits.
      shortcut: "pad" (no parameters, as in the paper) or "projection", where the shape changes.
      dtype: of the convolutions; batch statistics and logits are float32 whatever it is.
      param_dtype: of the parameters.
      rngs: where the initial weights come from.

    Raises:
      ModelError: an unknown shortcut; inputs that are integers, not of rank 4, or under 4×4 pixels.

    >>> model = nnx.eval_shape(lambda: CifarResNet((32, 32, 3), blocks=1, rngs=nnx.Rngs(0)))
    >>> model.BasicBlock_1.Conv_0.kernel.shape
    (3, 3, 16, 32)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        blocks: int = 3,
        num_classes: int = 10,
        shortcut: str = "pad",
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        *,
        rngs: nnx.Rngs,
    ):
        check_shortcut(shortcut)
        init = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.blocks = 3 * blocks
        self.Conv_0, self.BatchNorm_0 = _conv(input_shape[-1], 16, 3, **init), _norm(16, **init)
        channels = 16
        for i in range(self.blocks):
            features, stride = 16 * 2 ** (i // blocks), 2 if i and i % blocks == 0 else 1
            setattr(self, f"BasicBlock_{i}", BasicBlock(channels, features, stride, shortcut, **init))
            channels = features
        self.Dense_0 = nnx.Linear(channels, num_classes, **init)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits float32 (n, num_classes) of images; `train` normalises by the batch's own statistics."""
        check_images(x, "CifarResNet", smallest=4)
        x = nnx.relu(self.BatchNorm_0(self.Conv_0(x), use_running_average=not train))
        for i in range(self.blocks):
            x = getattr(self, f"BasicBlock_{i}")(x, train)
        return self.Dense_0(x.mean((1, 2))).astype(jnp.float32)


def resnet20(
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    shortcut: str = "pad",
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    *,
    rngs: nnx.Rngs,
) -> CifarResNet:
    """ResNet-20 for CIFAR: 269,722 parameters with ten classes (272,474 with projection shortcuts).

    >>> nnx.eval_shape(lambda: resnet20(rngs=nnx.Rngs(0))).blocks
    9
    """
    return CifarResNet(input_shape, 3, num_classes, shortcut, dtype, param_dtype, rngs=rngs)


def _conv(in_features: int, features: int, size: int, stride: int = 1, **init: Any) -> nnx.Conv:
    return nnx.Conv(
        in_features, features, (size, size), stride, padding=size // 2, use_bias=False,
        kernel_init=nnx.initializers.he_normal(), **init,
    )  # fmt: skip


def _norm(features: int, **init: Any) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, **init)
