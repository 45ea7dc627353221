"""`modelzip example`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelzip_jax.cli.application import AsJson, app
from modelzip_jax.cli.failures import own_code
from modelzip_jax.cli.terminal import err, out
from modelzip_jax.errors import ConfigError, MissingExtraError
from modelzip_jax.naming import require_known

if TYPE_CHECKING:
    from modelzip_jax.examples.stage_records import ExampleStage

__all__ = ["example"]

EXAMPLES = ("vgg19",)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def example(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which example; there is vgg19.")],
    size: Annotated[
        str,
        typer.Option(help='"full", "quarter" or "tiny"; if left out, full on an accelerator, else quarter.'),
    ] = "",
    config: Annotated[
        Path | None, typer.Option(help="A file with get_config(), such as configs/vgg19_budget.py, instead of a size.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="The run's folder; default runs/NAME. A run there goes on.")
    ] = None,
    until: Annotated[str, typer.Option(help="The last stage to run, such as quantized.")] = "",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Runs a worked example, stage by stage; --config.field=value changes one of its fields."""
    require_known("example", name, EXAMPLES)
    from modelzip_jax.evaluation.pages.drawing import check_installed
    from modelzip_jax.examples.example_table import shown_table
    from modelzip_jax.examples.stage_records import claim_settings, run_stages
    from modelzip_jax.examples.vgg19_sizes import vgg19_settings
    from modelzip_jax.examples.vgg19_stages import Vgg19Example
    from modelzip_jax.training import config as configs

    check_installed()
    if config is not None and size:
        raise ConfigError("--size and --config both say what the example is told: leave one of them out")
    if config is None:
        loaded = vgg19_settings(size)
    else:
        with own_code(f"--config {config}", ConfigError, MissingExtraError):
            loaded = configs.load_config(config)
        if "compress" not in loaded:
            raise ConfigError(
                f"{config} has no `compress`: begin with vgg19_settings(), as configs/vgg19_budget.py does"
            )
    chosen = configs.override(loaded, context.args)
    folder = folder or Path("runs") / name
    own = Vgg19Example(chosen, folder, quiet=as_json)
    settings = chosen.to_dict()
    claim_settings(folder, settings)

    def tell(stage: ExampleStage, seconds: float | None) -> None:
        if not as_json:
            done = "" if seconds is None else f": {seconds:.0f} s" if seconds else ": was done before"
            err.print(
                f"{stage.name}: {stage.says}" if seconds is None else f"{stage.name}{done}", highlight=False
            )

    taken = run_stages(own.stages(), folder, settings, until, tell)
    path = folder / "table" / "table.json"
    if "table" not in taken:
        print(
            json.dumps({"out": str(folder), "seconds": taken}) if as_json else f"{folder}: done until {until}"
        )
        return
    found = json.loads(path.read_text())
    if as_json:
        print(json.dumps({"out": str(folder), "seconds": taken, **found}))
        return
    out.print(shown_table(found))
    out.print(f"{path.with_name('report.html')}: what is in the last file", soft_wrap=True)
