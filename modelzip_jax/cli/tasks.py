"""Tasks of the user's, which `--task` names: from params to named scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelzip_jax.cli.failures import own_code
from modelzip_jax.cli.named_objects import named_object
from modelzip_jax.errors import RecipeError

if TYPE_CHECKING:
    from modelzip_jax.evaluation.task_scores import TaskScore

__all__ = ["task_of"]


def task_of(text: str) -> Callable[[Any], dict[str, TaskScore]]:
    """The function that `module:function` names; what it raises is the user's own error.

    Raises:
      RecipeError: there is no such function.
      EvaluationError: from what is returned, if the function gives something else than a dict of scores.
    """
    from modelzip_jax.evaluation.task_scores import named_scores

    function = named_object(text, "--task")
    if not callable(function):
        raise RecipeError(
            f"--task {text} is of type {type(function).__name__}, expected a function of the params"
        )

    def task(params: Any) -> dict[str, TaskScore]:
        with own_code(f"--task {text}"):
            found = function(params)
        return named_scores(found, f"--task {text}")

    return task
