"""VGG-16 and VGG-19 with batch normalisation, for 32×32 images.

Simonyan and Zisserman 2015 (https://arxiv.org/abs/1409.1556), configurations D and E, with the changes
that the pruning literature makes for CIFAR (Liu et al. 2017, https://arxiv.org/abs/1708.06519; 2019,
https://arxiv.org/abs/1810.05270): batch normalisation instead of convolution biases, and one dense
layer on the averaged last features. 14,724,042 and 20,035,018 parameters with ten classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from modelzip_jax.errors import ModelError
from modelzip_jax.models.input_checks import check_images

__all__ = ["VGG", "vgg16", "vgg19"]


class VGG(nn.Module):
    """Five blocks of 3×3 convolutions, each ended by 2×2 max pooling, then one dense layer.

    Called with floats (n, height, width, channels), at least 32×32 pixels, it returns logits float32
    (n, num_classes). Variables: `params` and `batch_stats`; with `train=True`, apply it with
    `mutable=["batch_stats"]`. He initialisation (He et al. 2015, https://arxiv.org/abs/1502.01852).

    Attributes:
      depths: convolutions in each block of 64, 128, 256, 512, 512 channels; VGG-19's if left out.
      num_classes: logits.
      width: multiplies the channels, which are rounded to at least one; parameters go with its square.
      dtype: of the convolutions; batch statistics and logits are float32 whatever it is.
      param_dtype: of the parameters.
      channels: of each convolution, instead of those that `width` gives.

    Raises:
      ModelError: the inputs are integers, not of rank 4, or smaller than 32×32; too few channels.

    >>> model = VGG(depths=(1, 1, 1, 1, 1), width=0.25)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    >>> params["Conv_4"]["kernel"].shape
    (3, 3, 128, 128)
    """

    depths: Sequence[int] = (2, 2, 4, 4, 4)
    num_classes: int = 10
    width: float = 1.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    channels: Sequence[int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits float32 (n, num_classes) of images; `train` normalises by the batch's own statistics."""
        check_images(x, "VGG", smallest=32)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels = iter(self._channels())
        for depth in self.depths:
            for _ in range(depth):
                features = next(channels)
                init = nn.initializers.he_normal()
                x = nn.Conv(features, (3, 3), padding=1, use_bias=False, kernel_init=init, **dtypes)(x)
                x = nn.relu(nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, **dtypes)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(self.num_classes, **dtypes)(x.mean((1, 2))).astype(jnp.float32)

    def _channels(self) -> list[int]:
        if self.channels is None:
            widths = zip(self.depths, (64, 128, 256, 512, 512), strict=True)
            return [max(1, round(n * self.width)) for depth, n in widths for _ in range(depth)]
        if len(self.channels) != sum(self.depths):
            raise ModelError(f"{sum(self.depths)} convolutions need as many channels, not {self.channels}")
        return list(self.channels)


def vgg16(
    num_classes: int = 10, width: float = 1.0, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32,
    channels: Sequence[int] | None = None,
) -> VGG:  # fmt: skip
    """VGG-16 (13 convolutions and one dense layer): 14,724,042 parameters at full width, ten classes.

    >>> sum(vgg16().depths)
    13
    """
    return VGG((2, 2, 3, 3, 3), num_classes, width, dtype, param_dtype, channels)


def vgg19(
    num_classes: int = 10, width: float = 1.0, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32,
    channels: Sequence[int] | None = None,
) -> VGG:  # fmt: skip
    """VGG-19 (16 convolutions and one dense layer): 20,035,018 parameters at full width, ten classes.

    1,255,546 at `width=0.25`, 707,086 at `width=0.1875`.

    >>> sum(vgg19(width=0.25).depths)
    16
    """
    return VGG((2, 2, 4, 4, 4), num_classes, width, dtype, param_dtype, channels)
