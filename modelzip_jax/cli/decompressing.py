"""`modelzip decompress`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from modelzip_jax.cli.application import AsJson, Force, Limit, app, path_of
from modelzip_jax.cli.failures import named
from modelzip_jax.cli.sources import check_compressed, refuse_existing, weights_at
from modelzip_jax.cli.terminal import out, phase, print_notes

__all__ = ["decompress"]


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(parser=path_of, metavar="IN", help="A .mz file.")],
    target: Annotated[
        Path,
        typer.Argument(
            parser=path_of,
            metavar="OUT",
            help="A .safetensors, .npz or .msgpack file, or a new Orbax directory.",
        ),
    ],
    limit: Limit = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Writes the weights of a .mz file as an ordinary checkpoint."""
    import jax

    from modelzip_jax import checkpoints
    from modelzip_jax.tree import nbytes

    refuse_existing(target, force)
    checkpoints.check_writable(target)
    check_compressed(source)
    started = time.perf_counter()
    weights = weights_at(source, as_json, limit=limit)
    order, metadata = _of_checkpoint(weights.metadata)
    tells = target.suffix.lower() in (".safetensors", ".npz")
    size, count = (nbytes(weights.tree), len(jax.tree.leaves(weights.tree))) if tells else (0, 0)
    with phase(f"writing {target.name}", as_json, size, count) as tell, named(target):
        checkpoints.write(target, weights.tree, order=order, metadata=metadata, progress=tell)
    lost = metadata and target.suffix.lower() != ".safetensors"
    notes = (
        [f"the metadata ({', '.join(metadata)}) have no place in {target.name}"] if lost and metadata else []
    )
    if as_json:
        seconds = time.perf_counter() - started
        print(json.dumps({"out": str(target), "seconds": seconds, "notes": notes}))
        return
    out.print(f"{target} written", soft_wrap=True)
    print_notes(notes)


def _of_checkpoint(metadata: Any) -> tuple[list[int] | None, dict[str, str] | None]:
    """The order of the tensors and the strings that `compress` kept; what somebody else wrote there is passed over."""
    told = (metadata or {}).get("checkpoint")
    told = told if isinstance(told, dict) else {}
    order, strings = told.get("order"), told.get("metadata")
    is_order = isinstance(order, list) and all(type(index) is int for index in order)
    are_strings = isinstance(strings, dict) and all(isinstance(text, str) for text in strings.values())
    return order if is_order else None, strings if are_strings else None
