"""`modelzip sensitivity`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from modelzip_jax.cli.application import AsJson, Force, app, path_of
from modelzip_jax.cli.failures import named
from modelzip_jax.cli.named_objects import recipe_of
from modelzip_jax.cli.sources import refuse_existing
from modelzip_jax.cli.tasks import task_of
from modelzip_jax.cli.terminal import out, phase, print_notes
from modelzip_jax.errors import CheckpointError, RecipeError

__all__ = ["sensitivity_command"]


@app.command("sensitivity")
def sensitivity_command(
    source: Annotated[
        Path, typer.Argument(parser=path_of, metavar="IN", help="A checkpoint, as for compress.")
    ],
    recipes: Annotated[str, typer.Option(help="Recipes, with commas between: module:name or .json files.")],
    task: Annotated[str, typer.Option(help="module:function that measures quality, as for evaluate.")],
    score: Annotated[
        str | None, typer.Option(help="The number of the task that counts; its first if left out.")
    ] = None,
    lower: Annotated[bool, typer.Option("--lower", help="Less of it is better, as of a loss.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="A path pattern of the layers to try; repeatable.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The part of a checkpoint to take, as for compress.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A page to write, with a figure and the table.")
    ] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Compresses each layer alone by each recipe, and shows by how much a task becomes worse."""
    from modelzip_jax import checkpoints
    from modelzip_jax.atomic import atomic_file
    from modelzip_jax.checkpoints.recognition import absence
    from modelzip_jax.evaluation.layer_sensitivities import layer_sensitivity, task_drop
    from modelzip_jax.evaluation.pages.drawing import check_installed
    from modelzip_jax.evaluation.pages.layer_sensitivity_page import sensitivity_page

    if not source.exists():
        raise CheckpointError(f"{source} cannot be read: {absence(source)}")
    if output is not None:
        check_installed()
        refuse_existing(output, force)
    names = [name.strip() for name in recipes.split(",") if name.strip()]
    if not names:
        raise RecipeError("--recipes names no recipe")
    chosen = {name: recipe_of(name) for name in names}
    measure = task_of(task)
    with phase(f"reading {source.name}", as_json), named(source):
        contents, others = checkpoints.read_weights(source, key)
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
