"""Choosing among all examples at once, or in each class by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.distillation.array_checks import as_numbers
from modelzip_jax.errors import DistillationError, NonFiniteError
from modelzip_jax.sampling import proportional_shares, sample_size

__all__ = ["Greedy", "choose_greedily", "class_members", "feature_rows"]

Greedy = Callable[[jax.Array, jax.Array, int], jax.Array]
"""`(features (rows, size), mark of each row (rows,), count) -> rows in the order of their choice (count,)`."""


def choose_greedily(
    greedy: Greedy,
    features: np.ndarray,
    marks: np.ndarray,
    absent: Any,
    size: float | int,
    labels: Any = None,
) -> np.ndarray:
    """Examples as a greedy rule chooses them: int32 indices in the order of choice, class after class with labels.

    A greedy choice begins with every smaller one. So each class is filled up to the rows of the largest and chosen
    from as often as the largest share says, by one compiled program, and keeps the beginning.

    Args:
      marks: what the rule must know of each row. absent: the mark of rows that are there to fill up.
      labels: integers `(n,)`: each class gets its share of `size`. None for one choice among all.
    """
    count = sample_size(size, len(features))
    members = [np.arange(len(features))] if labels is None else class_members(labels, len(features))
    sizes = np.array([len(rows) for rows in members])
    shares = proportional_shares(sizes, count)
    chosen = []
    for rows, share in zip(members, shares, strict=True):
        filled = np.resize(rows, sizes.max())
        mark = np.where(np.arange(len(filled)) < len(rows), marks[filled], absent).astype(marks.dtype)
        own = features if labels is None else features[filled]  # no copy of everything
        order = greedy(jnp.asarray(own), jnp.asarray(mark), int(shares.max()))
        chosen.append(rows[np.asarray(order)[:share]])
    return np.concatenate(chosen).astype(np.int32)


def class_members(labels: Any, examples: int) -> list[np.ndarray]:
    """The examples of each class that occurs, by ascending label.

    Raises:
      DistillationError: labels are not one integer of at least 0 an example.

    >>> class_members(np.array([7, 3, 7]), 3)
    [array([1]), array([0, 2])]
    """
    labels = np.asarray(as_numbers(labels, "labels"))
    if labels.shape != (examples,) or not np.issubdtype(labels.dtype, np.integer):
        raise DistillationError(
            f"labels must be integers ({examples},), one for each example, not {labels.dtype} {labels.shape}"
        )
    if labels.min() < 0:
        raise DistillationError(
            f"labels has {np.count_nonzero(labels < 0):,} below 0, which stands for examples without a label (such as "
            "hide_labels makes) and is no class: leave them out, or give them labels (pseudo_label)"
        )
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def feature_rows(features: Any) -> np.ndarray:
    """Features float32 `(n, size)`: whatever axes an example has become one.

    Raises:
      DistillationError: there are no examples or no features.
      NonFiniteError: a feature is NaN or infinite; the message names the example.
    """
    rows = np.asarray(as_numbers(features, "features"), np.float32)
    if rows.ndim < 2 or not rows.size:
        raise DistillationError(f"features need the shape (examples, ...), not {rows.shape}")
    rows = rows.reshape(len(rows), -1)
    finite = np.isfinite(rows.sum(axis=1, dtype=np.float64))
    if not finite.all():
        raise NonFiniteError(f"example {int(np.argmin(finite))} has features that are NaN or infinite")
    return rows
