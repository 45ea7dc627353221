"""Residual networks (He et al. 2016, https://arxiv.org/abs/1512.03385): ResNet-20 for CIFAR, ResNet-50.

269,722 parameters with ten classes and parameter-free shortcuts, and 25,557,032 with a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from modelzip_jax.errors import ModelError
from modelzip_jax.models.input_checks import check_images

__all__ = ["BasicBlock", "Bottleneck", "CifarResNet", "ResNet", "pad_shortcut", "resnet20", "resnet50"]


def pad_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """The parameter-free shortcut (He et al. 2016, option A): subsample, then append zero channels.

    >>> pad_shortcut(jnp.ones((1, 4, 4, 2)), features=6, stride=2).shape
    (1, 2, 2, 6)
    """
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, (n, h, w, c) to (n, h/stride, w/stride, features).

    Where the shape changes, the shortcut is `pad_shortcut` (`shortcut="pad"`, option A of the paper) or
    a strided 1×1 convolution with batch normalisation (`shortcut="projection"`, option B). `inner`: channels
    between the two convolutions, `features` by default.

    >>> block, x = BasicBlock(features=8, stride=2), jnp.ones((1, 4, 4, 4))
    >>> sorted(jax.eval_shape(block.init, jax.random.key(0), x)["params"])
    ['BatchNorm_0', 'BatchNorm_1', 'Conv_0', 'Conv_1']
    """

    features: int
    stride: int = 1
    shortcut: str = "pad"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    inner: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (n, h, w, c) to (n, h/stride, w/stride, features)."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        inner = self.features if self.inner is None else self.inner
        y = nn.relu(_norm(train, **dtypes)(_conv(inner, 3, self.stride, **dtypes)(x)))
        y = _norm(train, **dtypes)(_conv(self.features, 3, **dtypes)(y))
        if x.shape != y.shape:
            if self.shortcut == "projection":
                x = _norm(train, **dtypes)(_conv(self.features, 1, self.stride, **dtypes)(x))
            else:
                x = pad_shortcut(x, self.features, self.stride)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut, to 4 × `features` channels.

    The stride is in the 3×3 convolution ("v1.5", Goyal et al. 2017, https://arxiv.org/abs/1706.02677),
    the last scale starts at zero (ibid. §5.1), and a 1×1 convolution projects the shortcut where the
    shape changes.

    >>> block, x = Bottleneck(features=2, stride=2), jnp.ones((1, 4, 4, 4))
    >>> jax.eval_shape(block.init_with_output, jax.random.key(0), x)[0].shape
    (1, 2, 2, 8)
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (n, h, w, c) to (n, h/stride, w/stride, 4 × features)."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = nn.relu(_norm(train, **dtypes)(_conv(self.features, 1, **dtypes)(x)))
        y = nn.relu(_norm(train, **dtypes)(_conv(self.features, 3, self.stride, **dtypes)(y)))
        y = _conv(4 * self.features, 1, **dtypes)(y)
        y = _norm(train, scale_init=nn.initializers.zeros, **dtypes)(y)
        if x.shape != y.shape:
            x = _norm(train, **dtypes)(_conv(4 * self.features, 1, self.stride, **dtypes)(x))
        return nn.relu(x + y)


class CifarResNet(nn.Module):
    """The ResNet for small images of He et al. 2016, §4.2, with 6 × `blocks` + 2 layers.

    Called with floats (n, height, width, channels), it returns logits float32 (n, num_classes).
    Variables: `params` and `batch_stats`; with `train=True`, apply it with `mutable=["batch_stats"]`.

    Attributes:
      blocks: residual blocks in each of the stages of 16, 32 and 64 channels.
      num_classes: logits.
      shortcut: "pad" (no parameters, as in the paper) or "projection", where the shape changes.
      dtype: of the convolutions; batch statistics and logits are float32 whatever it is.
      param_dtype: of the parameters.
      stages: channels of each stage.
      inner: channels between the two convolutions of each block, instead of its stage's.

    Raises:
      ModelError: an unknown shortcut; inputs that are integers, not of rank 4, or under 4×4 pixels.

    >>> model, x = CifarResNet(blocks=1), jnp.zeros((1, 32, 32, 3))
    >>> sorted(jax.eval_shape(model.init, jax.random.key(0), x)["params"])
    ['BasicBlock_0', 'BasicBlock_1', 'BasicBlock_2', 'BatchNorm_0', 'Conv_0', 'Dense_0']
    """

    blocks: int = 3
    num_classes: int = 10
    shortcut: str = "pad"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    stages: Sequence[int] = (16, 32, 64)
    inner: Sequence[int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits float32 (n, num_classes) of images; `train` normalises by the batch's own statistics."""
        check_images(x, "CifarResNet", smallest=4)
        check_shortcut(self.shortcut)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.relu(_norm(train, **dtypes)(_conv(self.stages[0], 3, **dtypes)(x)))
        inner = iter(self.inner or [n for n in self.stages for _ in range(self.blocks)])
        for stage, features in enumerate(self.stages):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                x = BasicBlock(features, stride, shortcut=self.shortcut, inner=next(inner), **dtypes)(
                    x, train
                )
        return nn.Dense(self.num_classes, **dtypes)(x.mean((1, 2))).astype(jnp.float32)


class ResNet(nn.Module):
    """The bottleneck ResNet of He et al. 2016, Table 1, in its "v1.5" variant (see `Bottleneck`).

    Called with floats (n, height, width, channels), at least 32×32 pixels (224×224 in the paper), it
    returns logits float32 (n, num_classes). Strided layers pad symmetrically.

    Attributes:
      depths: blocks in each of the stages of 256, 512, 1024 and 2048 output channels.
      num_classes: logits.
      dtype: of the convolutions; batch statistics and logits are float32 whatever it is.
      param_dtype: of the parameters.

    Raises:
      ModelError: the inputs are integers, not of rank 4, or smaller than 32×32.

    >>> model, x = ResNet(depths=(1, 1, 1, 1), num_classes=5), jnp.zeros((1, 64, 64, 3))
    >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
    (1, 5)
    """

    depths: Sequence[int] = (3, 4, 6, 3)
    num_classes: int = 1000
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits float32 (n, num_classes) of images; `train` normalises by the batch's own statistics."""
        check_images(x, "ResNet", smallest=32)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.relu(_norm(train, **dtypes)(_conv(64, 7, 2, **dtypes)(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                x = Bottleneck(64 * 2**stage, stride, **dtypes)(x, train)
        return nn.Dense(self.num_classes, **dtypes)(x.mean((1, 2))).astype(jnp.float32)


def resnet20(
    num_classes: int = 10, shortcut: str = "pad", dtype: Any = jnp.float32, param_dtype: Any = jnp.float32
) -> CifarResNet:
    """ResNet-20 for CIFAR: 269,722 parameters with ten classes (272,474 with projection shortcuts).

    >>> resnet20().blocks
    3
    """
    return CifarResNet(3, num_classes, shortcut, dtype, param_dtype)


def resnet50(num_classes: int = 1000, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32) -> ResNet:
    """ResNet-50 v1.5 for ImageNet: 25,557,032 parameters with a thousand classes.

    >>> resnet50().depths
    (3, 4, 6, 3)
    """
    return ResNet((3, 4, 6, 3), num_classes, dtype, param_dtype)


def check_shortcut(shortcut: str) -> None:
    """Refuses any but the two shortcuts of `BasicBlock`.

    Raises:
      ModelError: it is another.

    >>> check_shortcut("pad")
    """
    if shortcut not in ("pad", "projection"):
        raise ModelError(f"shortcut must be 'pad' or 'projection', not {shortcut!r}")


def _conv(features: int, size: int, stride: int = 1, **dtypes: Any) -> nn.Conv:
    # Padding in numbers: "SAME" would shift strided layers by a pixel against the published networks.
    return nn.Conv(
        features, (size, size), stride, padding=size // 2, use_bias=False,
        kernel_init=nn.initializers.he_normal(), **dtypes,
    )  # fmt: skip


def _norm(train: bool, **options: Any) -> nn.BatchNorm:
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, **options)
