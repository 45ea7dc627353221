"""`modelzip evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from modelzip_jax.cli.application import AsJson, Limit, app, path_of
from modelzip_jax.cli.sources import weights_at
from modelzip_jax.cli.tasks import task_of
from modelzip_jax.cli.terminal import out, phase, print_notes

if TYPE_CHECKING:
    from modelzip_jax.evaluation.estimate import Estimate

__all__ = ["evaluate"]


@app.command()
def evaluate(
    source: Annotated[
        Path, typer.Argument(parser=path_of, metavar="FILE", help="A .mz file or a checkpoint.")
    ],
    task: Annotated[
        str,
        typer.Option(help="module:function, from params to a dict of numbers, or of scores of each example."),
    ],
    against: Annotated[
        Path | None, typer.Option(help="Another .mz file or checkpoint to compare with.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The part of a checkpoint to take, as for compress.")
    ] = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Runs a task on the weights of a file, and on others to compare with."""
    from modelzip_jax.evaluation.task_scores import summary

    function = task_of(task)
    results: dict[str, dict[str, float | Estimate]] = {}
    notes: list[str] = []
    for path in [source] + ([against] if against else []):
        weights = weights_at(path, as_json, key if path.suffix != ".mz" else None, limit)
        notes += weights.notes
        with phase(f"evaluating {path.name}", as_json):
            found = function(weights.tree)
        results[str(path)] = {name: summary(score) for name, score in found.items()}
        del weights
    if as_json:
        print(json.dumps({path: _plain(scores) for path, scores in results.items()}))
        return
    out.print(_table(results))
    print_notes(notes)


def _plain(scores: dict[str, float | Estimate]) -> dict[str, float]:
    return {name: float(score) for name, score in scores.items()}


def _table(results: dict[str, dict[str, float | Estimate]]) -> Table:
    table = Table(box=None)
    table.add_column("")
    for path in results:
        table.add_column(path, justify="right", overflow="fold")
    for name in dict.fromkeys(name for scores in results.values() for name in scores):
        table.add_row(name, *(_cell(scores.get(name)) for scores in results.values()))
    return table


def _cell(score: float | Estimate | None) -> str:
    if score is None:
        return ""
    return f"{score:.4f}" if isinstance(score, float) else str(score)
