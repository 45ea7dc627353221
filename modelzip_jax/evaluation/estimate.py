"""A measured number with its standard error: what every task here returns."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from modelzip_jax.errors import EvaluationError

__all__ = ["Estimate", "mean", "proportion"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over independent observations; `float()` gives the value.

    The difference of two estimates is one of the difference, for samples that are independent of each
    other. Two models on one test set are not: take `mean` of their differences example by example.

    Attributes:
      value: the mean, in the unit of the observations.
      standard_error: its standard deviation over repetitions with new observations; NaN for one observation.
      count: observations.

    >>> print(proportion(90, 100) - proportion(80, 100))
    0.1000 ± 0.0500
    """

    value: float
    standard_error: float
    count: int

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.standard_error:.4f}"

    def __sub__(self, other: Estimate) -> Estimate:
        error = math.hypot(self.standard_error, other.standard_error)
        return Estimate(self.value - other.value, error, min(self.count, other.count))


def mean(values: ArrayLike) -> Estimate:
    """The mean of the observations, with standard error s/√n, s² having n − 1 in its denominator.

    Raises:
      EvaluationError: there are no observations.

    >>> mean([1.0, 2.0, 3.0, 6.0])
    Estimate(value=3.0, standard_error=1.0801234497346435, count=4)
    """
    values = np.asarray(values, np.float64)
    n = _counted(values.size)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(float(values.mean()), error, n)


def proportion(hits: int, count: int) -> Estimate:
    """The share p of hits, with standard error √(p(1 − p)/n).

    Raises:
      EvaluationError: `count` is zero.

    >>> proportion(90, 100)
    Estimate(value=0.9, standard_error=0.03, count=100)
    """
    p = int(hits) / _counted(count)
    return Estimate(p, math.sqrt(p * (1 - p) / count), count)


def _counted(count: int) -> int:
    if count < 1:
        raise EvaluationError("there are no examples to measure")
    return count
