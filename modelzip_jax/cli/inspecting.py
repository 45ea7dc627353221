"""`modelzip inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from modelzip_jax.cli.application import AsJson, Limit, app, path_of
from modelzip_jax.cli.failures import named
from modelzip_jax.cli.sources import check_compressed
from modelzip_jax.cli.terminal import phase

__all__ = ["inspect"]


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(parser=path_of, metavar="FILE", help="A .mz file.")],
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Shows what a .mz file holds, tensor by tensor."""
    import modelzip_jax as mz

    check_compressed(source)
    with phase(f"reading {source.name}", as_json, source.stat().st_size) as tell, named(source):
        found = mz.inspect(source, progress=tell, limit=limit)
    if as_json:
        print(json.dumps(found.plain(), default=_as_text))
        return
    print(source)
    print(found)


def _as_text(value: Any) -> str:
    """Bytes among the metadata, which JSON cannot hold."""
    return value.hex() if isinstance(value, bytes) else str(value)
