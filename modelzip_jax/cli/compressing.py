"""`modelzip compress`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from modelzip_jax.cli.application import AsJson, Force, app, path_of
from modelzip_jax.cli.failures import named
from modelzip_jax.cli.named_objects import recipe_of, search_of
from modelzip_jax.cli.sources import refuse_existing
from modelzip_jax.cli.terminal import human_bytes, out, phase, print_notes
from modelzip_jax.errors import CheckpointError, ModelzipError, TransformError

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
    bits: Annotated[int, typer.Option(help="Bits a weight, 1 to 8; 0 keeps weights lossless.")] = 6,
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
    min_ndim: Annotated[int, typer.Option(help="Tensors of fewer axes stay lossless.")] = 2,
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
            help="module:function that returns (apply_fn, batches) or (apply_fn, batches, likelihood)."
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
    """Compresses a checkpoint: by default to 6 bits a weight per channel, biases and norms lossless.

    Of a whole train state the params are taken, never an optimizer's memory.
    """
    import modelzip_jax as mz
    from modelzip_jax import checkpoints
    from modelzip_jax.checkpoints.recognition import absence
    from modelzip_jax.cli.leaf_choice import (
        check_only_arrays,
        nothing_encoded,
        refuse_what_needs_data,
        remarks,
        without_nonfinite,
    )

    if target.suffix != ".mz":
        raise CheckpointError(f"{target} must end in .mz: compress writes that format, decompress reads it")
    if not source.exists():
        raise CheckpointError(f"{source} cannot be read: {absence(source)}")
    refuse_existing(target, force)
    searched = not (target_bytes is None and max_drop is None and calibrate is None)
    if recipe is not None:
        _refuse_options_beside(f"--recipe {recipe}", context, (*_OPTIONS, *_SEARCHED))
        transform = recipe_of(recipe)
    elif searched:
        _refuse_options_beside("a search for the smallest file", context, _OPTIONS)
        transform, data = search_of(target_bytes, max_drop, calibrate)
    else:
        _refuse_without_effect(bits, granularity, sparsity, min_ndim, context)
        encoding = _encoding(bits, granularity, group_size, axis, step_range, sparsity, allocation)
        transform = mz.only(tuple(only or ["**"]), encoding, min_ndim=min_ndim, floating=not only)
    started = time.perf_counter()
    with phase(f"reading {source.name}", as_json), named(source):
        contents, others = checkpoints.read_weights(source, key)
    check_only_arrays(contents.tree, source)
    notes = list(contents.notes)
    encodes = not searched and bool(bits or sparsity or recipe is not None)
    if encodes and recipe is None and not only:
        transform, said = without_nonfinite(transform, contents.tree)
        notes += said
    if encodes:
        refuse_what_needs_data(transform, contents.tree)
        notes += nothing_encoded(transform, contents.tree)
    notes += [] if searched else remarks(transform, contents.tree)
    metadata = _metadata(contents, source)
    if searched and target_bytes is not None:
        # What is stored beside the model counts as well.
        transform = dataclasses.replace(transform, bytes=max(target_bytes - _beside(metadata), 1))
    # Held in a list that is emptied, and by no name: each tensor is freed as soon as it is packed.
    held = [contents.tree]
    del contents
    packed = dataclasses.replace(
        _searched(held, transform, data, f"compressing {source.name}", as_json)
        if searched
        else _compressed(held, transform, f"compressing {source.name}", as_json),
        variables=others,
    )
    metadata = {**packed.metadata, **metadata}
    count = len(_leaves(packed.params))
    with phase(f"writing {target.name}", as_json, packed.nbytes, count) as tell, named(target):
        sizes = mz.save(target, packed, metadata=metadata, progress=tell)
    _report(target, packed, sizes, notes, time.perf_counter() - started, as_json)


_OPTIONS = (
    "bits", "granularity", "group_size", "axis", "step_range", "sparsity", "allocation", "only", "min_ndim",
)  # fmt: skip
"""What says how to encode which tensors, by parameter of `compress`."""
_SEARCHED = ("target_bytes", "max_drop", "calibrate")


def _refuse_options_beside(what: str, context: typer.Context, names: tuple[str, ...]) -> None:
    """Options that would be passed over beside what says all that they say."""
    for name in names:
        if _is_given(name, context):
            option = {"step_range": "range"}.get(name, name).replace("_", "-")
            raise TransformError(f"{what} is taken instead of --{option}; leave one of them out")


def _is_given(name: str, context: typer.Context) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_without_effect(
    bits: int, granularity: str, sparsity: float, min_ndim: int, context: typer.Context
) -> None:
    """Options that would be passed over beside the others."""
    of_bits = {"granularity": "--granularity", "axis": "--axis", "step_range": "--range"}
    cases = [(name, option, not bits, "with --bits 0") for name, option in of_bits.items()]
    cases += [
        ("axis", "--axis", granularity == "tensor", "with --granularity tensor"),
        ("group_size", "--group-size", not bits or granularity != "group", "without --granularity group"),
        ("allocation", "--allocation", not sparsity, "without --sparsity"),
    ]
    for name, option, idle, beside in cases:
        if idle and _is_given(name, context):
            raise TransformError(f"{option} does nothing {beside}")
    if min_ndim < 0:
        raise TransformError(f"--min-ndim {min_ndim} must be 0 or more")


def _encoding(
    bits: int,
    granularity: str,
    group_size: int,
    axis: int | None,
    step_range: str,
    sparsity: float,
    allocation: str,
) -> Any:
    """What the options ask for; their mistakes in the words of the options."""
    import modelzip_jax as mz

    if not 0.0 <= sparsity < 1.0:
        share = sparsity / 100
        meant = f"; did you mean {share:g}?" if 1.0 < sparsity < 100.0 else ""
        raise TransformError(f"--sparsity {sparsity:g} must be a share from 0 to below 1{meant}")
    if not 0 <= bits <= 8:
        raise TransformError(f"--bits {bits} must be from 1 to 8, or 0 to keep the weights lossless")
    parts: list[mz.Transform] = [mz.prune(sparsity=sparsity, allocation=allocation)] if sparsity else []
    if bits:
        along: dict[str, Any] = {} if axis is None else {"axis": axis}
        along |= {"group_size": group_size} if granularity == "group" else {}
        parts.append(mz.quantize(bits, granularity=granularity, range=step_range, **along))
    return mz.chain(*parts)


def _compressed(held: list[Any], transform: Any, text: str, quiet: bool) -> Any:
    import modelzip_jax as mz
    from modelzip_jax.cli.leaf_choice import encoded_leaves
    from modelzip_jax.tree import nbytes

    tells = "progress" in inspect.signature(mz.compress).parameters
    sizes = [nbytes(leaf) for _, leaf in encoded_leaves(transform, held[0])] if tells else []
    size, count = sum(sizes), len(sizes)
    with phase(text, quiet, size, count) as tell:
        options: dict[str, Any] = {"progress": tell} if tells else {}
        return mz.compress(held.pop(), transform, **options)


def _searched(held: list[Any], search: Any, data: Any, text: str, quiet: bool) -> Any:
    import modelzip_jax as mz

    with phase(text, quiet):
        return mz.compress(held.pop(), search, calibrate=data)


def _beside(metadata: dict[str, Any]) -> int:
    """About how many bytes of a file metadata take, rather more."""
    import numpy as np

    import modelzip_jax as mz
    from modelzip_jax.coding.writer import file_sizes
    from modelzip_jax.metadata import Metadata

    if not metadata:
        return 0
    least = mz.compress({"w": np.zeros(1, np.float32)}, mz.identity())
    told = dataclasses.replace(least, metadata=Metadata(metadata))
    return 16 + file_sizes(told).total - file_sizes(least).total


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
