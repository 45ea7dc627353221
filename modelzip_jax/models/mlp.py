"""A multilayer perceptron in Flax Linen."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from modelzip_jax.models.input_checks import check_float_input

__all__ = ["MLP"]


class MLP(nn.Module):
    """Dense layers with ReLU between them, on flattened inputs.

    Called with floats (n, ...), it returns logits float32 (n, num_classes). Kernels are
    `Dense_0/kernel`, `Dense_1/kernel`, ...: He initialisation before a ReLU (He et al. 2015,
    https://arxiv.org/abs/1502.01852), LeCun's before the logits.

    Attributes:
      widths: hidden units of each layer, from the input on; none make it a linear classifier.
      num_classes: logits.
      dtype: of the matrix products; the logits are float32 whatever it is.
      param_dtype: of the parameters.

    Raises:
      ModelError: the inputs are integers.

    >>> model = MLP(widths=(32,), num_classes=10)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    >>> jax.tree.map(jnp.shape, params)["Dense_0"]
    {'bias': (32,), 'kernel': (64, 32)}
    """

    widths: Sequence[int] = (300, 100)
    num_classes: int = 10
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits float32 (n, num_classes) of floats (n, ...); `train` changes nothing."""
        del train
        check_float_input(x, "MLP")
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.relu(dense(width, kernel_init=nn.initializers.he_normal())(x))
        return dense(self.num_classes)(x).astype(jnp.float32)
