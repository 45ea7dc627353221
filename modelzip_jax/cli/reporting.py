"""`modelzip report`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from modelzip_jax.cli.application import AsJson, Force, Limit, app, path_of
from modelzip_jax.cli.failures import named
from modelzip_jax.cli.sources import check_compressed, refuse_existing, weights_at
from modelzip_jax.cli.tasks import task_of
from modelzip_jax.cli.terminal import out, phase, print_notes
from modelzip_jax.decimal_units import human_bytes

__all__ = ["report"]


@app.command()
def report(
    source: Annotated[Path, typer.Argument(parser=path_of, metavar="FILE", help="A .mz file.")],
    against: Annotated[
        Path | None, typer.Option(help="The checkpoint that it was made of: for errors and histograms.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The part of that checkpoint to take, as for compress.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="module:function that measures quality, as for evaluate.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page to write; if left out, FILE with .html.")
    ] = None,
    limit: Limit = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Writes a page about a .mz file: where the bytes go, layer by layer. It needs no network to be read."""
    import modelzip_jax as mz
    from modelzip_jax.atomic import atomic_file
    from modelzip_jax.errors import TransformError
    from modelzip_jax.evaluation.compression_findings import findings
    from modelzip_jax.evaluation.pages.drawing import check_installed
    from modelzip_jax.evaluation.pages.page_building import page

    check_installed()
    check_compressed(source)
    target = source.with_suffix(".html") if output is None else output
    refuse_existing(target, force)
    if key is not None and against is None:
        raise TransformError("--key names a part of the checkpoint --against, which is not given")
    measure = None if task is None else task_of(task)
    started = time.perf_counter()
    with phase(f"reading {source.name}", as_json, 2 * source.stat().st_size) as tell, named(source):
        found = mz.inspect(source, progress=tell, limit=limit)
        model = mz.load(source, progress=tell, limit=limit)
    other = None if against is None else weights_at(against, as_json, key, limit)
    with phase("measuring", as_json):
        numbers = findings(model, found, against=None if other is None else other.tree, task=measure)
    with phase("drawing", as_json), named(target), atomic_file(target) as file:
        file.write(page(numbers, source.name).encode())
    seconds, size = time.perf_counter() - started, target.stat().st_size
    notes = [] if other is None else list(other.notes)
    if as_json:
        print(json.dumps({"out": str(target), "bytes": size, "seconds": seconds, "notes": notes}))
        return
    out.print(f"{target}: a page of {human_bytes(size)}", soft_wrap=True)
    print_notes(notes)
