"""Small multilayer perceptrons as plain params, for what is trained beside a student and thrown away after."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.finite_numbers import check_count
from modelzip_jax.errors import DistillationError
from modelzip_jax.tree import PyTree

__all__ = ["init_perceptron", "perceptron"]


def init_perceptron(key: jax.Array, inputs: int, widths: Sequence[int], outputs: int) -> PyTree:
    """Params of dense layers with ReLU between them, float32: `{"Dense_0": {"kernel", "bias"}, ...}`.

    Kernels have He's initialisation (He et al. 2015, https://arxiv.org/abs/1502.01852), the last one LeCun's.

    Args:
      inputs: features that go in. widths: hidden units of each layer. outputs: features that come out.

    Raises:
      DistillationError: a size is no integer of at least 1.

    >>> jax.tree.map(jnp.shape, init_perceptron(jax.random.key(0), 8, [16], 1))["Dense_1"]
    {'bias': (1,), 'kernel': (16, 1)}
    """
    sizes = [check_count(n, "a layer's size") for n in (inputs, *widths, outputs)]
    keys = jax.random.split(key, len(sizes) - 1)
    he, lecun = jax.nn.initializers.he_normal(), jax.nn.initializers.lecun_normal()
    return {
        f"Dense_{i}": {
            "bias": jnp.zeros(b, jnp.float32),
            "kernel": (lecun if i == len(keys) - 1 else he)(keys[i], (a, b), jnp.float32),
        }
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }


def perceptron(params: PyTree, x: jax.Array) -> jax.Array:
    """Outputs float32 (batch, outputs) of floats (batch, ...), which are flattened.

    Raises:
      DistillationError: the flattened inputs are not of the size that the params were made for.

    >>> params = init_perceptron(jax.random.key(0), 8, [16], 3)
    >>> perceptron(params, jnp.ones((5, 2, 4), jnp.bfloat16)).shape
    (5, 3)
    """
    x = x.astype(jnp.float32).reshape(x.shape[0], -1)
    expected = params["Dense_0"]["kernel"].shape[0]
    if x.shape[1] != expected:
        raise DistillationError(f"features of {x.shape[1]} numbers reach a perceptron made for {expected}")
    for i in range(len(params)):
        layer = params[f"Dense_{i}"]
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"] + layer["bias"]
    return x
