"""The multilayer perceptron in Flax NNX: leaf paths, shapes and numbers of `modelzip_jax.models.mlp`."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from modelzip_jax.models.input_checks import check_float_input

__all__ = ["MLP", "lenet_300_100"]


class MLP(nnx.Module):
    """Dense layers with ReLU between them, on flattened inputs.

    Attributes carry the names that Linen gives (`Dense_0`, `Dense_1`, ...), so that a path pattern, a
    recipe or a compressed file of one framework fits the other. Initialised as the Linen `MLP`.

    Args:
      input_shape: of one input, without the batch.
      widths: hidden units of each layer, from the input on; none make it a linear classifier.
      num_classes: logits.
      dtype: of the matrix products; the logits are float32 whatever it is.
      param_dtype: of the parameters.
      rngs: where the initial weights come from.

    Raises:
      ModelError: the inputs are integers.

    >>> model = MLP((8, 8, 1), widths=(32,), rngs=nnx.Rngs(0))
    >>> model.Dense_0.kernel.shape, model(jnp.zeros((2, 8, 8, 1))).shape
    ((64, 32), (2, 10))
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        widths: Sequence[int] = (300, 100),
        num_classes: int = 10,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        *,
        rngs: nnx.Rngs,
    ):
        dense = functools.partial(nnx.Linear, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.depth = len(widths)
        sizes = (math.prod(input_shape), *widths)
        for i, (fan_in, width) in enumerate(zip(sizes, widths, strict=False)):
            setattr(self, f"Dense_{i}", dense(fan_in, width, kernel_init=nnx.initializers.he_normal()))
        setattr(self, f"Dense_{self.depth}", dense(sizes[-1], num_classes))

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits float32 (n, num_classes) of floats (n, ...); `train` changes nothing."""
        del train
        check_float_input(x, "MLP")
        x = x.reshape(x.shape[0], -1)
        for i in range(self.depth):
            x = nnx.relu(getattr(self, f"Dense_{i}")(x))
        return getattr(self, f"Dense_{self.depth}")(x).astype(jnp.float32)


def lenet_300_100(
    input_shape: Sequence[int] = (28, 28, 1),
    num_classes: int = 10,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    *,
    rngs: nnx.Rngs,
) -> MLP:
    """LeNet-300-100: an `MLP` of 300 and 100 hidden units, 266,610 parameters on 28×28 images.

    >>> lenet_300_100(rngs=nnx.Rngs(0)).depth
    2
    """
    return MLP(input_shape, (300, 100), num_classes, dtype, param_dtype, rngs=rngs)
