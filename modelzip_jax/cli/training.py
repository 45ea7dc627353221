"""`modelzip train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from modelzip_jax.cli.application import AsJson, app
from modelzip_jax.cli.failures import own_code
from modelzip_jax.cli.named_objects import recipe_of
from modelzip_jax.cli.terminal import out
from modelzip_jax.decimal_units import human_bytes
from modelzip_jax.errors import ConfigError, MissingExtraError

__all__ = ["train"]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="A file with get_config(), such as configs/digits_mlp.py.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="The run's folder; default runs/NAME. A run there goes on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trains what a config describes; --config.field=value changes one of its fields."""
    from modelzip_jax.training import config as configs
    from modelzip_jax.training import experiment

    with own_code(f"--config {config}", ConfigError, MissingExtraError):
        loaded = configs.load_config(config)
    chosen = configs.override(loaded, context.args)
    transform = recipe_of(chosen.recipe) if chosen.recipe else None
    folder = folder or Path("runs") / config.stem
    result = experiment.run(chosen, folder, transform, quiet=as_json)
    if as_json:
        print(json.dumps(result))
        return
    table = Table(title=str(folder / "model.mz"), box=None, title_justify="left")
    quality = next(name for name in result["test"] if name != "loss" and not name.endswith("_se"))
    for column in ("", "loss", quality):
        table.add_column(column, justify="right")
    for name in ("train", "validation", "test"):
        numbers = result[name]
        table.add_row(
            name, f"{numbers['loss']:.4f} ± {numbers['loss_se']:.4f}",
            f"{numbers[quality]:.2%} ± {numbers[f'{quality}_se']:.2%}",
        )  # fmt: skip
    out.print(table)
    out.print(
        f"{result['steps']:,} steps; {human_bytes(result['dense_bytes'])} of weights, "
        f"{human_bytes(result['file_bytes'])} in the file",
        soft_wrap=True,
    )
