"""Choosing examples by a score of each."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelzip_jax.distillation.array_checks import as_numbers
from modelzip_jax.distillation.finite_numbers import check_number
from modelzip_jax.distillation.subsets.class_by_class import class_members
from modelzip_jax.errors import DistillationError, NonFiniteError
from modelzip_jax.sampling import proportional_shares, sample_size

__all__ = ["hardest"]


def hardest(scores: Any, size: float | int, labels: Any = None, *, skip: float = 0.0) -> np.ndarray:
    """The examples with the highest scores, the highest first; of equal ones those that come first.

    Paul et al. 2021 (https://arxiv.org/abs/2107.07075): where labels are noisy, the very highest scores are mostly
    wrong labels, and where few examples are kept, they are outliers: leaving some of them out helps (`skip`).

    Args:
      scores: numbers `(n,)`, such as `el2n` or `forgetting_scores`; infinite ones may be among them.
      size: a float in (0, 1] is a fraction of the examples, an int their number.
      labels: integers `(n,)`, at least 0; each class gets its share. None for the highest of all.
      skip: the fraction of the examples, in [0, 1), that is passed over at the top (in each class, with labels).

    Returns:
      Indices int32 `(size,)`, class after class with labels.

    Raises:
      DataError: the size is neither a fraction nor a number of examples there are.
      DistillationError, NonFiniteError: scores or labels of a wrong shape; NaN; `skip` leaves less than the size.

    >>> hardest(np.array([0.1, 0.9, 0.5, 0.7]), 2), hardest(np.array([0.1, 0.9, 0.5, 0.7]), 2, skip=0.25)
    (array([1, 3], dtype=int32), array([3, 2], dtype=int32))
    >>> hardest(np.array([0.1, 0.9, 0.5, 0.7]), 2, labels=np.array([0, 1, 0, 1]))
    array([2, 1], dtype=int32)
    """
    scores = np.asarray(as_numbers(scores, "hardest: scores"))
    if scores.ndim != 1 or not len(scores):
        raise DistillationError(f"scores are one number for each example, (n,), not {scores.shape}")
    if np.isnan(scores).any():
        raise NonFiniteError(f"the score of example {int(np.argmax(np.isnan(scores)))} is NaN")
    count = sample_size(size, len(scores))
    skip = check_number(skip, "hardest: skip", least=0, below=1)
    members = [np.arange(len(scores))] if labels is None else class_members(labels, len(scores))
    shares = proportional_shares(np.array([len(rows) for rows in members]), count)
    chosen = []
    for rows, share in zip(members, shares, strict=True):
        first = int(skip * len(rows))
        if first + share > len(rows):
            raise DistillationError(
                f"skip={skip} leaves {len(rows) - first} of {len(rows)} examples, not {share}"
            )
        order = np.argsort(-scores[rows], kind="stable")
        chosen.append(rows[order[first : first + share]])
    return np.concatenate(chosen).astype(np.int32)
