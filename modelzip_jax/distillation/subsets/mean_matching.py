"""Herding: examples whose mean is the mean of all."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.distillation.subsets.class_by_class import choose_greedily, feature_rows

__all__ = ["herding"]


def herding(features: Any, size: float | int, labels: Any = None, *, normalize: bool = True) -> np.ndarray:
    """Chooses examples, one after another, whose features keep to the mean μ of all.

    Welling 2009 ("Herding dynamical weights to learn", ICML), without repeating an example:

        x_t = argmax_x <w_{t-1}, φ(x)>,    w_t = w_{t-1} + μ - φ(x_t),    w_0 = μ

    For features of one length that is the choice which makes |μ - mean(φ(x_1), ..., φ(x_t))| least in each step, as
    in iCaRL (Rebuffi et al. 2017, https://arxiv.org/abs/1611.07725, algorithm 4). The mean of t chosen examples
    approaches μ as fast as 1/t, that of random ones as 1/√t (Chen et al. 2010, https://arxiv.org/abs/1203.3472).

    Each choice reads the features once; in each of c classes by itself, they are read size/c times in all.

    Args:
      features: floats `(n, ...)`, such as a teacher's last hidden layer.
      size: a float in (0, 1] is a fraction of the examples, an int their number.
      labels: integers `(n,)`, at least 0; each class gets its share, chosen by its own mean. None for one mean of all.
      normalize: whether features are brought to length 1 first, as in iCaRL; else long ones are chosen first.

    Returns:
      Indices int32 `(size,)` in the order of choice (class after class, with labels): the beginning is a smaller
      subset.

    Raises:
      DataError: the size is neither a fraction nor a number of examples there are.
      DistillationError, NonFiniteError: features or labels of a wrong shape; NaN or infinite features.

    >>> herding(np.array([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [1.0, 0.0]]), 2)
    array([0, 3], dtype=int32)
    """
    rows = feature_rows(features)
    if normalize:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return choose_greedily(_herd, rows, np.ones(len(rows), bool), False, size, labels)


@functools.partial(jax.jit, static_argnums=2)
def _herd(features: jax.Array, present: jax.Array, count: int) -> jax.Array:
    mean = jnp.sum(features, axis=0, where=present[:, None]) / jnp.sum(present)

    def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        weights, free = carry
        products = jnp.matmul(features, weights, precision=jax.lax.Precision.HIGHEST)
        best = jnp.argmax(jnp.where(free, products, -jnp.inf)).astype(jnp.int32)
        return (weights + mean - features[best], free.at[best].set(False)), best

    return jax.lax.scan(step, (mean, present), length=count)[1]
