"""`modelzip evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from modelzip_jax.cli.application import AsJson, app, path_of
from modelzip_jax.cli.failures import own_code
from modelzip_jax.cli.named_objects import named_object
from modelzip_jax.cli.sources import weights_at
from modelzip_jax.cli.terminal import out, phase, print_notes
from modelzip_jax.errors import RecipeError

__all__ = ["evaluate"]


@app.command()
def evaluate(
    source: Annotated[
        Path, typer.Argument(parser=path_of, metavar="FILE", help="A .mz file or a checkpoint.")
    ],
    task: Annotated[str, typer.Option(help="module:function, from params to a dict of named numbers.")],
    against: Annotated[
        Path | None, typer.Option(help="Another .mz file or checkpoint to compare with.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The part of a checkpoint to take, as for compress.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Runs a task on the weights of a file, and on others to compare with."""
    function = named_object(task, "--task")
    if not callable(function):
        raise RecipeError(
            f"--task {task} is of type {type(function).__name__}, expected a function of the params"
        )
    results: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    for path in [source] + ([against] if against else []):
        weights = weights_at(path, as_json, key if path.suffix != ".mz" else None)
        notes += weights.notes
        with phase(f"evaluating {path.name}", as_json):
            results[str(path)] = _scores(function, weights.tree, f"--task {task}")
        del weights
    if as_json:
        print(json.dumps(results))
        return
    out.print(_table(results))
    print_notes(notes)


def _scores(function: Callable[..., Any], params: Any, what: str) -> dict[str, float]:
    with own_code(what):
        scores = function(params)
    if not isinstance(scores, dict):
        raise RecipeError(f"{what} returned a {type(scores).__name__}, expected a dict of numbers")
    found = {}
    for name, value in scores.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"{what} returned for {name!r} a {type(value).__name__}, not a number"
            ) from error
    return found


def _table(results: dict[str, dict[str, float]]) -> Table:
    table = Table(box=None)
    table.add_column("")
    for path in results:
        table.add_column(path, justify="right", overflow="fold")
    for name in dict.fromkeys(name for scores in results.values() for name in scores):
        table.add_row(name, *(f"{scores[name]:.4f}" if name in scores else "" for scores in results.values()))
    return table
