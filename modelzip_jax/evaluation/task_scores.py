"""What a task finds before and after compression, with standard errors where it gives scores of each example."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from modelzip_jax.errors import EvaluationError
from modelzip_jax.evaluation.estimate import Estimate, mean

__all__ = ["ScoreChange", "named_scores", "score_changes", "summary"]

TaskScore = float | Estimate | np.ndarray
"""A number, one with its standard error, or float64 `(n,)`: a score for each example."""


@dataclasses.dataclass(frozen=True)
class ScoreChange:
    """One number of a task: of the compressed model, of the one that it was made of, and their difference.

    before, change: None without that model. change: after minus before. paired: whether both gave a score for each of
    the same examples, so that the standard error is that of the differences, example by example.
    """

    name: str
    after: float | Estimate
    before: float | Estimate | None = None
    change: float | Estimate | None = None
    paired: bool = False


def named_scores(found: Any, what: str = "the task") -> dict[str, TaskScore]:
    """What a task returned: a dict of numbers, estimates, or arrays of one axis with a score for each example.

    Raises:
      EvaluationError: anything else.

    >>> named_scores({"accuracy": np.array([True, False]), "bytes": 12})
    {'accuracy': array([1., 0.]), 'bytes': 12.0}
    """
    if not isinstance(found, Mapping):
        raise EvaluationError(f"{what} returned a {type(found).__name__}, expected a dict of numbers")
    return {str(name): _score(value, name, what) for name, value in found.items()}


def _score(value: Any, name: Any, what: str) -> TaskScore:
    if isinstance(value, Estimate):
        return value
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise EvaluationError(
            f"{what} returned for {name!r} a {type(value).__name__}, not a number"
        ) from error
    if array.ndim > 1 or not array.size:
        raise EvaluationError(
            f"{what} returned for {name!r} an array of shape {array.shape}, expected a number or a score for each "
            "example"
        )
    return float(array.reshape(())) if array.ndim == 0 else array


def summary(score: TaskScore) -> float | Estimate:
    """A number as it is; of scores their mean, with its standard error.

    >>> print(summary(np.array([1.0, 0.0])))
    0.5000 ± 0.5000
    """
    return mean(score) if isinstance(score, np.ndarray) else score


def score_changes(
    after: Mapping[str, TaskScore], before: Mapping[str, TaskScore] | None = None
) -> tuple[ScoreChange, ...]:
    """A row for each number, in the order of `after`; those of `before` alone are left out.

    >>> (row,) = score_changes({"hit": np.array([1.0, 0, 1])}, {"hit": np.array([1.0, 1, 1])})
    >>> print(row.change, row.paired)
    -0.3333 ± 0.3333 True
    """
    return tuple(_change(name, score, (before or {}).get(name)) for name, score in after.items())


def _change(name: str, after: TaskScore, before: TaskScore | None) -> ScoreChange:
    if before is None:
        return ScoreChange(name, summary(after))
    if isinstance(after, np.ndarray) and isinstance(before, np.ndarray) and after.shape == before.shape:
        return ScoreChange(name, mean(after), mean(before), mean(after - before), paired=True)
    one, other = summary(after), summary(before)
    if isinstance(one, Estimate) and isinstance(other, Estimate):
        return ScoreChange(name, one, other, one - other)
    return ScoreChange(name, one, other, float(one) - float(other))
