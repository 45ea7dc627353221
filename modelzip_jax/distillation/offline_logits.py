"""Teacher logits kept offline: the k largest of each row, and the mass of the rest."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.errors import DistillationError

__all__ = ["TopK", "top_k_logits"]


class TopK(NamedTuple):
    """The k largest of `(..., classes)` logits. See `top_k_logits`.

    indices: int32 `(..., k)`, classes by descending logit. values: float32 `(..., k)`, their logits.
    log_rest: float32 `(...)`, the logsumexp of the logits left out; -inf if none are.
    """

    indices: jax.Array
    values: jax.Array
    log_rest: jax.Array


def top_k_logits(logits: jax.Array, k: int) -> TopK:
    """The k largest logits of each row, and what is left out as one number.

    Raises:
      DistillationError: k is not from 1 to the number of classes.

    >>> kept = top_k_logits(jnp.array([[0.0, 2.0, 1.0, 0.0]]), 2)
    >>> kept.indices, kept.values, kept.log_rest.round(4)
    (Array([[1, 2]], dtype=int32), Array([[2., 1.]], dtype=float32), Array([0.6931], dtype=float32))
    """
    if not 1 <= k <= logits.shape[-1]:
        raise DistillationError(
            f"top_k_logits: k must be from 1 to {logits.shape[-1]}, the classes, not {k!r}"
        )
    values, indices = jax.lax.top_k(logits.astype(jnp.float32), k)
    others = jnp.put_along_axis(logits.astype(jnp.float32), indices, -jnp.inf, -1, inplace=False)
    return TopK(indices.astype(jnp.int32), values, jax.nn.logsumexp(others, -1))
