"""`modelzip compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from modelzip_jax.cli.application import AsJson, Force, app, path_of
from modelzip_jax.cli.failures import named
from modelzip_jax.cli.named_objects import recipe_of
from modelzip_jax.cli.sources import refuse_existing
from modelzip_jax.cli.tasks import task_of
from modelzip_jax.cli.terminal import out, phase, print_notes
from modelzip_jax.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from modelzip_jax.evaluation.recipe_comparison import ComparedRecipe

__all__ = ["compare_command"]


@app.command("compare")
def compare_command(
    source: Annotated[
        Path, typer.Argument(parser=path_of, metavar="IN", help="A checkpoint, as for compress.")
    ],
    recipes: Annotated[str, typer.Option(help="Recipes, with commas between: module:name or .json files.")],
    task: Annotated[str, typer.Option(help="module:function that measures quality, as for evaluate.")],
    score: Annotated[
        str | None, typer.Option(help="The number of the task that counts; its first if left out.")
    ] = None,
    lower: Annotated[bool, typer.Option("--lower", help="Less of it is better, as of a loss.")] = False,
    key: Annotated[
        str | None, typer.Option(help="The part of a checkpoint to take, as for compress.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A page to write, with a figure and the table.")
    ] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Compresses a checkpoint by several recipes: bytes against quality, and which of them none other beats."""
    from modelzip_jax import checkpoints
    from modelzip_jax.atomic import atomic_file
    from modelzip_jax.checkpoints.recognition import absence
    from modelzip_jax.evaluation.pages.drawing import check_installed
    from modelzip_jax.evaluation.pages.recipe_page import comparison_page
    from modelzip_jax.evaluation.recipe_comparison import compare_recipes, pareto

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
    with phase(f"comparing {len(chosen)} recipes", as_json):
        compared = compare_recipes(contents.tree, chosen, measure, variables=others or None)
    counts = score or compared[0].scores[0].name
    front = pareto(
        [one.file_bytes for one in compared], [one.value(counts) for one in compared], lower_is_better=lower
    ).tolist()
    if output is not None:
        with phase("drawing", as_json), named(output), atomic_file(output) as file:
            file.write(comparison_page(compared, front, counts, f"Recipes for {source.name}").encode())
    if as_json:
        rows = [
            {"recipe": one.name, "file_bytes": one.file_bytes, "on_front": best,
             "scores": {change.name: float(change.after) for change in one.scores}}
            for one, best in zip(compared, front, strict=True)
        ]  # fmt: skip
        before = {c.name: float(c.before) for c in compared[0].scores if c.before is not None}
        print(json.dumps({"recipes": rows, "before": before, "notes": list(contents.notes)}))
        return
    out.print(_table(compared, front))
    print_notes(contents.notes)


def _table(compared: tuple[ComparedRecipe, ...], front: list[bool]) -> Table:
    table = Table("recipe", box=None)
    for heading in ("bytes", *(change.name for change in compared[0].scores), "on the front"):
        table.add_column(heading, justify="right")
    for one, best in zip(compared, front, strict=True):
        cells = [str(c.after) if not isinstance(c.after, float) else f"{c.after:.4f}" for c in one.scores]
        table.add_row(one.name, f"{one.file_bytes:,}", *cells, "yes" if best else "")
    return table
