"""Running a function over a data set in batches of one size, so that it compiles once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from modelzip_jax.errors import EvaluationError

__all__ = ["predictions"]


def predictions(predict: Callable[[Any], Any], inputs: Any, batch_size: int) -> Iterator[tuple[slice, Any]]:
    """Rows and the outputs of `predict` for them, batch by batch, in order.

    Every batch has `batch_size` rows: the last is filled up with copies of the last example, whose
    outputs are dropped. Give a jitted function; one that is not runs op by op.

    Args:
      predict: from a batch of inputs to arrays whose first axis is the batch's.
      inputs: an array, or a pytree of arrays, of one length n on their first axis.
      batch_size: rows in each batch, at least 1.

    Yields:
      `slice` of the rows and the outputs as NumPy arrays (a pytree if `predict` gives one).

    Raises:
      EvaluationError: no inputs, arrays of several lengths, or a `predict` that returns another number
        of rows.

    >>> [(rows.stop, y.tolist()) for rows, y in predictions(lambda x: 2 * x, np.arange(3), batch_size=2)]
    [(2, [0, 2]), (3, [4])]
    """
    inputs = jax.tree.map(np.asarray, inputs)
    count = _length(inputs)
    if batch_size < 1:
        raise EvaluationError(f"batch_size must be at least 1, not {batch_size}")
    for start in range(0, count, batch_size):
        rows = slice(start, min(start + batch_size, count))
        # Copies of an example, not zeros: what a model never sees in use might not be finite.
        index = np.minimum(np.arange(start, start + batch_size), count - 1)
        outputs = jax.tree.map(np.asarray, predict(jax.tree.map(lambda x: x[index], inputs)))  # noqa: B023
        if _length(outputs) != batch_size:
            raise EvaluationError(f"predict returned {_length(outputs)} rows for a batch of {batch_size}")
        yield rows, jax.tree.map(lambda y: y[: rows.stop - rows.start], outputs)  # noqa: B023


def _length(tree: Any) -> int:
    lengths = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(tree)}
    if len(lengths) != 1 or not min(lengths):
        raise EvaluationError(f"expected arrays of one length above 0, got lengths {sorted(lengths)}")
    return lengths.pop()
