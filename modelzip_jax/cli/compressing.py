"""`modelzip compress`."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from modelzip_jax.cli.application import AsJson, Force, app, path_of
from modelzip_jax.cli.encoding_options import ChosenEncoding, finder
from modelzip_jax.cli.failures import named
from modelzip_jax.cli.sources import refuse_existing
from modelzip_jax.cli.terminal import out, phase, print_notes
from modelzip_jax.decimal_units import human_bytes
from modelzip_jax.errors import CheckpointError, ModelzipError

__all__ = ["compress"]


@app.command()
def compress(
    source: Annotated[
        Path,
        typer.Argument(
            parser=path_of,
            metavar="IN",
            help="A .safetensors, .npz or .msgpack file, an index of shards, or an Orbax directory.",
        ),
    ],
    target: Annotated[Path, typer.Argument(parser=path_of, metavar="OUT", help="The .mz file to write.")],
    bits: Annotated[
        int | None,
        typer.Option(help="Bits a weight, 1 to 8; 0 keeps weights lossless; if left out, see above."),
    ] = None,
    granularity: Annotated[
        str, typer.Option(help="Weights that share a step: tensor, channel, group.")
    ] = "channel",
    group_size: Annotated[int, typer.Option(help="Weights in a group.")] = 128,
    axis: Annotated[
        int | None, typer.Option(help="The channel axis; if left out, as quantize chooses.")
    ] = None,
    step_range: Annotated[str, typer.Option("--range", help="Step sizes by max or by mse.")] = "max",
    sparsity: Annotated[float, typer.Option(help="Share of the selected weights set to zero, 0 to 1.")] = 0.0,
    allocation: Annotated[
        str, typer.Option(help="Sparsity uniform over tensors, erk or global.")
    ] = "uniform",
    only: Annotated[
        list[str] | None, typer.Option(help="Path pattern of what to compress; repeatable.")
    ] = None,
    min_ndim: Annotated[
        int | None, typer.Option(help="Tensors of fewer axes stay lossless; with --bits 2 if left out.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The part of the checkpoint to take, such as params or state/params.")
    ] = None,
    target_bytes: Annotated[
        int | None, typer.Option(help="The largest file, in bytes, instead of --bits: met within 1 %.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="The largest drop of agreement with the model; with --calibrate.")
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="module:function that returns (apply_fn, batches), a folder of `modelzip train`, or minilm."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A transform instead of these options: module:name or a .json file.")
    ] = None,
    as_json: AsJson = False,
    force: Force = False,
    *,
    context: typer.Context,
) -> None:
    """Compresses a checkpoint: by default to what costs next to nothing, each weight with the step that suits it.

    --bits, --granularity, --group-size, --axis and --range round to so many bits within a range instead, 6 if --bits is
    left out, and keep biases and norms lossless.

    Of a whole train state the params are taken, never an optimizer's memory.
    """
    _check_paths(source, target, force)
    find = finder(context)
    started = time.perf_counter()
    contents, others = _read(source, key, as_json)
    metadata, notes = _metadata(contents, source), contents.notes
    found = find(contents.tree, metadata)
    # Held in a list that is emptied, and by no name: each tensor is freed as soon as it is packed.
    held = [contents.tree]
    del contents
    packed = dataclasses.replace(
        _compressed(held, found, target, f"compressing {source.name}", as_json), variables=others
    )
    sizes = _written(packed, target, {**packed.metadata, **metadata}, as_json)
    _report(target, packed, sizes, [*notes, *found.notes], time.perf_counter() - started, as_json)


def _check_paths(source: Path, target: Path, force: bool) -> None:
    from modelzip_jax.checkpoints.recognition import absence

    if target.suffix != ".mz":
        raise CheckpointError(f"{target} must end in .mz: compress writes that format, decompress reads it")
    if not source.exists():
        raise CheckpointError(f"{source} cannot be read: {absence(source)}")
    refuse_existing(target, force)


def _read(source: Path, key: str | None, quiet: bool) -> tuple[Any, Any]:
    """The checkpoint's weights, and what else it holds."""
    from modelzip_jax import checkpoints
    from modelzip_jax.cli.leaf_choice import check_only_arrays

    with phase(f"reading {source.name}", quiet), named(source):
        contents, others = checkpoints.read_weights(source, key)
    check_only_arrays(contents.tree, source)
    return contents, others


def _compressed(held: list[Any], found: ChosenEncoding, target: Path, text: str, quiet: bool) -> Any:
    import modelzip_jax as mz
    from modelzip_jax.tree import named_leaves, nbytes

    sizes = [nbytes(leaf) for name, leaf in named_leaves(held[0]) if name in found.encoded]
    with phase(text, quiet, sum(sizes), len(sizes)) as tell:
        return mz.compress(held.pop(), found.told_of(tell, target), calibrate=found.data, progress=tell)


def _written(packed: Any, target: Path, metadata: dict[str, Any], quiet: bool) -> Any:
    """Writes the file; its sizes."""
    import modelzip_jax as mz

    count = len(_leaves(packed.params))
    with phase(f"writing {target.name}", quiet, packed.nbytes, count) as tell, named(target):
        return mz.save(target, packed, metadata=metadata, progress=tell)


def _leaves(packed: Any) -> list[Any]:
    import jax

    from modelzip_jax.packed import is_packed

    return jax.tree.leaves(packed, is_leaf=is_packed)


def _metadata(contents: Any, source: Path) -> dict[str, Any]:
    """What the tree of weights has no place for, and the checkpoint that is made of the file gets back."""
    from modelzip_jax.checkpoints import tensors_file

    told: dict[str, Any] = {"metadata": dict(contents.metadata)} if contents.metadata else {}
    order = contents.order()
    if order is not None and source.suffix.lower() != ".npz":
        try:
            usual = tensors_file.usual_order(contents.tree)
        except ModelzipError:
            usual = None
        told |= {"order": order} if order != usual else {}
    elif order is not None and order != sorted(order):
        told["order"] = order
    return {"checkpoint": told} if told else {}


def _report(target: Path, packed: Any, sizes: Any, notes: list[str], seconds: float, as_json: bool) -> None:
    from modelzip_jax.tree import nbytes

    # Variables count on both sides, as in `inspect`.
    beside, kept = nbytes(packed.variables), sum(x.size for x in _leaves(packed.variables))
    dense, held = packed.dense_bytes + beside, packed.nbytes + beside
    weights = sum(leaf.size for leaf in _leaves(packed.params)) + kept
    ratio, bits = dense / sizes.total, 8 * sizes.total / max(weights, 1)
    if as_json:
        report = {
            "dense_bytes": dense, "packed_bytes": held, "file_bytes": sizes.total,
            "ratio": ratio, "weights": weights, "bits_per_weight": bits, "seconds": seconds,
            "file": dataclasses.asdict(sizes), "notes": notes,
        }  # fmt: skip
        print(json.dumps(report))
        return
    out.print(
        f"{target}: {human_bytes(sizes.total)} from {human_bytes(dense)} ({ratio:.2f} times smaller, "
        f"{bits:.2f} bits a weight; {human_bytes(held)} packed in memory)",
        soft_wrap=True,
    )
    print_notes(notes)
