"""The two LeNets of the compression literature, as in Deep Compression (Han et al. 2016).

LeNet-300-100 and LeNet-5 (LeCun et al. 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf), the
latter in Caffe's variant, which Han et al. 2015 (https://arxiv.org/abs/1506.02626) and 2016
(https://arxiv.org/abs/1510.00149) prune and quantize: 266,610 and 431,080 parameters on MNIST.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from modelzip_jax.models.input_checks import check_images
from modelzip_jax.models.mlp import MLP

__all__ = ["LeNet5", "lenet_300_100"]


def lenet_300_100(num_classes: int = 10, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32) -> MLP:
    """LeNet-300-100: an `MLP` of 300 and 100 hidden units, 266,610 parameters on 28×28 images.

    >>> lenet_300_100().widths
    (300, 100)
    """
    return MLP((300, 100), num_classes, dtype, param_dtype)


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's variant: two unpadded convolutions, max pooling, two dense layers.

    Called with floats (n, height, width, channels), at least 16×16 pixels, it returns logits float32
    (n, num_classes). As in Caffe's `lenet_train_test.prototxt`, only the dense layer of 500 units has
    a nonlinearity besides pooling, and weights are uniform with variance 1/fan-in ("xavier" there).

    Attributes:
      num_classes: logits.
      dtype: of the convolutions and products; the logits are float32 whatever it is.
      param_dtype: of the parameters.
      widths: channels of the convolutions, and units of the first dense layer.

    Raises:
      ModelError: the inputs are integers, not of rank 4, or smaller than 16×16.

    >>> params = jax.eval_shape(LeNet5().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    >>> params["Conv_1"]["kernel"].shape, params["Dense_0"]["kernel"].shape
    ((5, 5, 20, 50), (800, 500))
    """

    num_classes: int = 10
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    widths: Sequence[int] = (20, 50, 500)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits float32 (n, num_classes) of images (n, height, width, channels)."""
        del train
        check_images(x, "LeNet5", smallest=16)
        init = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init["kernel_init"] = nn.initializers.lecun_uniform()
        conv = functools.partial(nn.Conv, kernel_size=(5, 5), padding="VALID", **init)
        for features in self.widths[:2]:
            x = nn.max_pool(conv(features)(x), (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(self.widths[2], **init)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes, **init)(x).astype(jnp.float32)
