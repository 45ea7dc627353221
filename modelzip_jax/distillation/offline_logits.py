"""The form of a teacher's logits of which only the largest are kept."""

from __future__ import annotations

from typing import NamedTuple

import jax

__all__ = ["TopK"]


class TopK(NamedTuple):
    """The k largest of each row of logits.

    indices: int32 `(..., k)`, their classes, sorted by value, descending. values: float32 `(..., k)`, the logits.
    log_rest: float32 `(...)`, the logsumexp of the logits left out; -inf where none is.

    >>> import jax.numpy as jnp
    >>> TopK(jnp.array([[2]]), jnp.array([[1.5]]), jnp.array([0.0])).values.shape
    (1, 1)
    """

    indices: jax.Array
    values: jax.Array
    log_rest: jax.Array
