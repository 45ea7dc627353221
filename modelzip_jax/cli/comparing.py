"""`modelzip compare`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from modelzip_jax.evaluation.recipe_comparison import ComparedRecipe

__all__ = ["compare_command"]


@app.command("compare")
def compare_command(
    source: TriedSource,
    recipes: RecipesOption,
    task: TaskOption,
    score: ScoreOption = None,
    lower: IsLower = False,
    key: KeyOption = None,
    output: PageOption = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Compresses a checkpoint by several recipes: bytes against quality, and which of them none other beats."""
    from modelzip_jax.atomic import atomic_file
    from modelzip_jax.evaluation.pages.recipe_page import comparison_page
    from modelzip_jax.evaluation.recipe_comparison import compare_recipes, pareto

    chosen, measure, contents, others = begun_trials(source, recipes, task, key, output, force, as_json)
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
