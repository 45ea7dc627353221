"""A part of a data set, with the classes in proportion."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modelzip_jax.sampling import proportional_shares, sample_size
from modelzip_jax.training.data.batches import epoch_order

__all__ = ["subset"]


def subset(arrays: Mapping[str, np.ndarray], size: float | int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws examples without replacement, each class in its share, in their old order.

    arrays: by name, with the same number of examples; `"labels"` `(n,)` are the classes. Labels of text
      `(n, length)` are no classes, and windows are drawn alike.
    size: a float in (0, 1] is a fraction, an int a number of examples. Classes differ from their share
      by less than one example.
    seed: of the draw. A larger subset of one seed need not hold the smaller one.

    Raises:
      DataError: the size is not a fraction in (0, 1] nor a number of examples there are.

    >>> arrays = {"inputs": np.arange(8), "labels": np.array([0, 0, 0, 0, 0, 0, 1, 1])}
    >>> subset(arrays, 0.5)["labels"].tolist(), subset(arrays, 4)["labels"].tolist()
    ([0, 0, 0, 1], [0, 0, 0, 1])
    """
    labels = np.asarray(arrays["labels"])
    count = sample_size(size, len(labels))
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)
    shuffled = epoch_order(seed, 0, len(classes))
    order = shuffled[np.argsort(classes[shuffled], kind="stable")]
    sizes = np.unique(classes, return_counts=True)[1]
    taken = proportional_shares(sizes, count)
    starts = np.cumsum(sizes) - sizes
    chosen = np.sort(np.concatenate([order[a : a + k] for a, k in zip(starts, taken, strict=True)]))
    return {name: array[chosen] for name, array in arrays.items()}
