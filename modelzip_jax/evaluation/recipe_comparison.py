"""Recipes side by side: bytes of the file against quality, and which of them none other beats in both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import EvaluationError
from modelzip_jax.evaluation.task_scores import ScoreChange, TaskScore, named_scores, score_changes
from modelzip_jax.packing import compress, unpack
from modelzip_jax.search import Search
from modelzip_jax.transform import Transform
from modelzip_jax.tree import PyTree

__all__ = ["ComparedRecipe", "compare_recipes", "pareto"]


@dataclasses.dataclass(frozen=True)
class ComparedRecipe:
    """One recipe: bytes of the file that it makes, and what a task found, against the model before compression."""

    name: str
    file_bytes: int
    scores: tuple[ScoreChange, ...]

    def value(self, score: str) -> float:
        """Of the compressed model.

        Raises:
          EvaluationError: the task gave no such number.
        """
        found = {change.name: float(change.after) for change in self.scores}
        if score not in found:
            raise EvaluationError(f"the task gives no {score!r}; it gives {', '.join(found)}")
        return found[score]


def compare_recipes(
    params: PyTree,
    recipes: Mapping[str, Transform | Search],
    task: Callable[[PyTree], Any],
    *,
    variables: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[ComparedRecipe, ...]:
    """Compresses the same weights by each recipe, and runs the task on each.

    Args:
      params: trained weights. recipes: by name, what `mz.compress` takes.
      task: from params, or `{"params": …, **variables}` where there are variables, to a dict of numbers, estimates,
        or arrays with a score for each example.
      variables: what travels along, such as batch statistics; its bytes count, too.
      progress: called with the name of each recipe before it is tried.

    Raises:
      EvaluationError: there are no recipes, or the task returned something else.

    >>> import modelzip_jax as mz
    >>> params = {"w": np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)}
    >>> error = lambda p: {"error": float(((p["w"] - params["w"]) ** 2).mean())}
    >>> small, large = compare_recipes(params, {"2 bits": mz.quantize(2), "8 bits": mz.quantize(8)}, error)
    >>> small.file_bytes < large.file_bytes, small.value("error") > large.value("error")
    (True, True)
    """
    if not recipes:
        raise EvaluationError("there are no recipes to compare")
    more = dict(variables or {})

    def measured(tree: PyTree) -> dict[str, TaskScore]:
        return named_scores(task({"params": tree, **more} if more else tree))

    before = measured(params)
    found = []
    for name, recipe in recipes.items():
        if progress is not None:
            progress(name)
        packed = compress(params, recipe, variables=variables)
        found.append(
            ComparedRecipe(name, file_sizes(packed).total, score_changes(measured(unpack(packed)), before))
        )
    return tuple(found)


def pareto(costs: Sequence[float], values: Sequence[float], *, lower_is_better: bool = False) -> np.ndarray:
    """Which points no other beats: none has as little cost and as good a value, and one of them better.

    Args:
      costs: such as bytes, the fewer the better. values: such as accuracy, one for each; NaN is never on the front.
      lower_is_better: of the values, such as of a loss.

    Returns:
      bool `(n,)`. Of equal points all are on the front, or none.

    Raises:
      EvaluationError: other numbers of costs than of values.

    >>> pareto([1, 2, 3, 4], [0.5, 0.9, 0.8, 0.95])
    array([ True,  True, False,  True])
    """
    cost, value = np.asarray(costs, np.float64), np.asarray(values, np.float64)
    if cost.shape != value.shape or cost.ndim != 1:
        raise EvaluationError(f"{cost.shape} costs and {value.shape} values; expected as many of both")
    value = -value if lower_is_better else value
    no_worse = (cost[:, None] <= cost) & (value[:, None] >= value)
    better = (cost[:, None] < cost) | (value[:, None] > value)
    return ~(no_worse & better).any(axis=0) & ~np.isnan(value)
