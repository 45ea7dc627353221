"""EL2N: how far a network, early in training, is from an example's label."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.array_checks import as_numbers, check_indices, nan_where_outside
from modelzip_jax.errors import DistillationError

__all__ = ["el2n"]


def el2n(logits: jax.Array, labels: Any) -> jax.Array:
    """Error L2-norm of each example: E |softmax(z) - y|₂, y the one-hot label, the mean over networks.

    Paul et al. 2021 (https://arxiv.org/abs/2107.07075, definition 2.3), where about ten networks, each trained for a
    few epochs, are averaged: near the end of training all errors are near 0, and one network's are noisy. Between 0
    and √2. Jittable.

    Args:
      logits: floats `(n, classes)`, or `(..., n, classes)` for several networks or times.
      labels: integers `(n,)`.

    Returns:
      float32 `(n,)`. `hardest` chooses by it. NaN where a traced label is out of range.

    Raises:
      DistillationError: logits or labels of other shapes or dtypes; labels out of range.

    >>> el2n(jnp.array([[9.0, 0.0], [0.0, 0.0], [99.0, 0.0]]), jnp.array([0, 1, 1])).round(3).tolist()
    [0.0, 0.7070000171661377, 1.4140000343322754]
    """
    logits, given = as_numbers(logits, "el2n: logits"), as_numbers(labels, "el2n: labels")
    labels = jnp.asarray(given)
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise DistillationError(
            f"el2n needs float logits (..., n, classes), not {logits.dtype} {logits.shape}"
        )
    if labels.shape != logits.shape[-2:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise DistillationError(
            f"el2n needs integer labels {logits.shape[-2:-1]} for logits {logits.shape}, not {labels.dtype} "
            f"{labels.shape}"
        )
    classes = logits.shape[-1]
    check_indices(given, classes, "el2n: labels")
    errors = jax.nn.softmax(logits.astype(jnp.float32), axis=-1) - jax.nn.one_hot(labels, classes)
    norms = jnp.linalg.norm(errors, axis=-1)
    return nan_where_outside(jnp.mean(norms.reshape(-1, len(labels)), axis=0), labels, classes)
