"""`modelzip sensitivity`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from modelzip_jax.cli.application import AsJson, Force, app
from modelzip_jax.cli.failures import named
from modelzip_jax.cli.recipe_trials import (
    IsLower,
    KeyOption,
    PageOption,
    RecipesOption,
    ScoreOption,
    TaskOption,
    TriedSource,
    begun_trials,
)
from modelzip_jax.cli.terminal import out, phase, print_notes

__all__ = ["sensitivity_command"]


@app.command("sensitivity")
def sensitivity_command(
    source: TriedSource,
    recipes: RecipesOption,
    task: TaskOption,
    score: ScoreOption = None,
    lower: IsLower = False,
    only: Annotated[
        list[str] | None, typer.Option(help="A path pattern of the layers to try; repeatable.")
    ] = None,
    key: KeyOption = None,
    output: PageOption = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Compresses each layer alone by each recipe, and shows by how much a task becomes worse."""
    from modelzip_jax.atomic import atomic_file
    from modelzip_jax.evaluation.layer_sensitivities import layer_sensitivity, task_drop
    from modelzip_jax.evaluation.pages.layer_sensitivity_page import sensitivity_page

    chosen, measure, contents, others = begun_trials(source, recipes, task, key, output, force, as_json)
    drop = task_drop(measure, score, lower=lower, variables=others or None)
    with phase("compressing layer by layer", as_json):
        found = layer_sensitivity(
            contents.tree,
            chosen,
            sensitivity=drop,
            only=tuple(only or ("**",)),
            unit=f"drop of {score or 'quality'}",
        )
    if output is not None:
        with phase("drawing", as_json), named(output), atomic_file(output) as file:
            file.write(sensitivity_page(found, f"Layers of {source.name}").encode())
    if as_json:
        print(json.dumps({"layers": [row._asdict() for row in found.rows], "notes": list(contents.notes)}))
        return
    table = Table("layer", "recipe", box=None)
    for heading in ("bytes dense", "in the file", found.unit):
        table.add_column(heading, justify="right")
    for row in sorted(found.rows, key=lambda row: -row.error):
        table.add_row(
            row.name, row.candidate, f"{row.dense_bytes:,}", f"{row.file_bytes:,}", f"{row.error:.4g}"
        )
    out.print(table)
    print_notes(contents.notes)
