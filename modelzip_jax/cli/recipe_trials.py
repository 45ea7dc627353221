"""What `compare` and `sensitivity` have in common: a checkpoint, recipes to try on it, and a task that judges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from modelzip_jax.cli.application import path_of
from modelzip_jax.cli.failures import named
from modelzip_jax.cli.named_objects import recipe_of
from modelzip_jax.cli.sources import refuse_existing
from modelzip_jax.cli.tasks import task_of
from modelzip_jax.cli.terminal import phase
from modelzip_jax.errors import CheckpointError, RecipeError

__all__ = [
    "IsLower",
    "KeyOption",
    "PageOption",
    "RecipesOption",
    "ScoreOption",
    "TaskOption",
    "Trials",
    "TriedSource",
    "begun_trials",
]

TriedSource = Annotated[
    Path, typer.Argument(parser=path_of, metavar="IN", help="A checkpoint, as for compress.")
]
RecipesOption = Annotated[str, typer.Option(help="Recipes, with commas between: module:name or .json files.")]
TaskOption = Annotated[str, typer.Option(help="module:function that measures quality, as for evaluate.")]
ScoreOption = Annotated[
    str | None, typer.Option(help="The number of the task that counts; its first if left out.")
]
IsLower = Annotated[bool, typer.Option("--lower", help="Less of it is better, as of a loss.")]
KeyOption = Annotated[str | None, typer.Option(help="The part of a checkpoint to take, as for compress.")]
PageOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="A page to write, with a figure and the table.")
]


class Trials(NamedTuple):
    """recipes: by what the user calls them. measure: the task. contents, others: see `checkpoints.read_weights`."""

    recipes: Mapping[str, Any]
    measure: Any
    contents: Any
    others: Any


def begun_trials(
    source: Path, recipes: str, task: str, key: str | None, page: Path | None, force: bool, quiet: bool
) -> Trials:
    """Reads what is to be tried; what can be refused is, before the checkpoint is read."""
    from modelzip_jax import checkpoints
    from modelzip_jax.checkpoints.recognition import absence
    from modelzip_jax.evaluation.pages.drawing import check_installed

    if not source.exists():
        raise CheckpointError(f"{source} cannot be read: {absence(source)}")
    if page is not None:
        check_installed()
        refuse_existing(page, force)
    names = [name.strip() for name in recipes.split(",") if name.strip()]
    if not names:
        raise RecipeError("--recipes names no recipe")
    chosen = {name: recipe_of(name) for name in names}
    measure = task_of(task)
    with phase(f"reading {source.name}", quiet), named(source):
        contents, others = checkpoints.read_weights(source, key)
    return Trials(chosen, measure, contents, others)
