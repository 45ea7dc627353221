"""The `modelzip` command: compress, decompress, inspect and evaluate checkpoints; train networks."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from modelzip_jax.errors import CheckpointError, ModelzipError, RecipeError

__all__ = ["app", "main"]

app = typer.Typer(
    name="modelzip",
    help="Makes trained networks small.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# A table that is not read on a terminal need not fit one.
_out = Console(width=None if sys.stdout.isatty() else 160)
_err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output.")]


def main() -> None:
    """Runs the command; bad input ends in one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except (ModelzipError, OSError, MemoryError) as error:
        print(f"modelzip: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _phase(text: str, quiet: bool) -> Iterator[None]:
    """Shows that a long phase is under way, and for how long, on a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True, disable=quiet or not _err.is_terminal) as bar:
        bar.add_task(text, total=None)
        yield


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists already; pass --force to replace it")
    if not path.absolute().parent.is_dir():
        raise CheckpointError(f"the folder {path.absolute().parent} does not exist")


@app.command()
def compress(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="A .safetensors, .npz or .msgpack file, or an Orbax directory."),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .mz file to write.")],
    bits: Annotated[int, typer.Option(help="Bits a weight, 1 to 8; 0 keeps weights lossless.")] = 6,
    granularity: Annotated[
        str, typer.Option(help="Weights that share a step: tensor, channel, group.")
    ] = "channel",
    group_size: Annotated[int, typer.Option(help="Weights in a group.")] = 128,
    axis: Annotated[int, typer.Option(help="The channel axis.")] = -1,
    step_range: Annotated[str, typer.Option("--range", help="Step sizes by max or by mse.")] = "max",
    sparsity: Annotated[float, typer.Option(help="Share of the selected weights set to zero.")] = 0.0,
    allocation: Annotated[str, typer.Option(help="Sparsity uniform over tensors, or global.")] = "uniform",
    only: Annotated[
        list[str] | None, typer.Option(help="Path pattern of what to compress; repeatable.")
    ] = None,
    min_ndim: Annotated[int, typer.Option(help="Tensors of fewer axes stay lossless.")] = 2,
    recipe: Annotated[
        str | None, typer.Option(help="A transform instead of these options: module:name or a .json file.")
    ] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Compresses a checkpoint: by default to 6 bits a weight per channel, biases and norms lossless."""
    import modelzip_jax as mz
    from modelzip_jax import checkpoints

    if target.suffix in checkpoints.SUFFIXES:
        raise CheckpointError(
            f"{target} would be a checkpoint; compress writes .mz files, decompress reads them"
        )
    _refuse_existing(target, force)
    if recipe is not None:
        transform = _recipe(recipe)
    else:
        parts: list[mz.Transform] = [mz.prune(sparsity=sparsity, allocation=allocation)] if sparsity else []
        if bits:
            parts.append(
                mz.quantize(bits, granularity=granularity, group_size=group_size, axis=axis, range=step_range)
            )
        transform = mz.only(
            tuple(only or ["**"]),
            mz.chain(*parts) if parts else mz.identity(),
            min_ndim=min_ndim,
            floating=not only,
        )
    started = time.perf_counter()
    with _phase(f"compressing {source.name}", as_json):
        # No name for the checkpoint: each tensor is freed as soon as it is packed.
        packed = mz.compress(_floats_only(checkpoints.read(source), source), transform)
    with _phase(f"writing {target.name}", as_json):
        sizes = mz.save(target, packed)
    weights = sum(leaf.size for leaf in _packed_leaves(packed))
    report = {
        "dense_bytes": packed.dense_bytes,
        "packed_bytes": packed.nbytes,
        "file_bytes": sizes.total,
        "ratio": packed.dense_bytes / sizes.total,
        "weights": weights,
        "bits_per_weight": 8 * sizes.total / max(weights, 1),
        "seconds": time.perf_counter() - started,
        "file": dataclasses.asdict(sizes),
    }
    if as_json:
        print(json.dumps(report))
        return
    _out.print(
        f"{target}: {_bytes(sizes.total)} from {_bytes(packed.dense_bytes)} ({report['ratio']:.2f} times smaller, "
        f"{report['bits_per_weight']:.2f} bits a weight; {_bytes(packed.nbytes)} packed in memory)",
        soft_wrap=True,
    )


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .mz file.")],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="A .safetensors, .npz or .msgpack file, or a new Orbax directory."
        ),
    ],
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Writes the weights of a .mz file as an ordinary checkpoint."""
    from modelzip_jax import checkpoints

    _refuse_existing(target, force)
    checkpoints.check_writable(target)
    started = time.perf_counter()
    with _phase(f"decoding {source.name}", as_json):
        params = _weights(source)
    with _phase(f"writing {target.name}", as_json):
        checkpoints.write(target, params)
    if as_json:
        print(json.dumps({"out": str(target), "seconds": time.perf_counter() - started}))
    else:
        _out.print(f"{target} written", soft_wrap=True)


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .mz file.")],
    as_json: AsJson = False,
) -> None:
    """Shows what a .mz file holds, tensor by tensor."""
    from modelzip_jax.coding.reader import Archive
    from modelzip_jax.evaluation import report

    with _phase(f"reading {source.name}", as_json):
        rows = report.tensors(source)
        with Archive(source) as archive:
            recipe, step, total = archive.header.recipe, archive.header.step, archive.size
    coded = sum(row.file_bytes for row in rows)
    if as_json:
        tensors = [{**dataclasses.asdict(row), "bits_per_weight": row.bits_per_weight} for row in rows]
        print(json.dumps({"file_bytes": total, "step": step, "recipe": recipe, "tensors": tensors}))
        return
    table = Table(title=str(source), box=None, title_justify="left")
    table.add_column("tensor", overflow="fold", min_width=24)
    for column in ("shape", "stored as"):
        table.add_column(column, no_wrap=True)
    for column in ("bits/weight", "sparsity", "bytes", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name, "×".join(map(str, row.shape)) or "scalar", row.form, f"{row.bits_per_weight:.2f}",
            f"{row.sparsity:.1%}" if row.sparsity else "", f"{row.file_bytes:,}",
            f"{row.file_bytes / max(total, 1):.1%}",
        )  # fmt: skip
    dense, packed = sum(r.dense_bytes for r in rows), sum(r.packed_bytes for r in rows)
    table.add_section()
    table.add_row(
        "header and checksums", "", "", "", "", f"{total - coded:,}", f"{(total - coded) / total:.1%}"
    )
    table.add_row(f"{len(rows)} tensors", "", "", "", "", f"{total:,}", "100.0%")
    _out.print(table)
    _out.print(
        f"{_bytes(dense)} dense, {_bytes(packed)} packed in memory, {_bytes(total)} in the file",
        soft_wrap=True,
    )


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .mz file or a checkpoint.")],
    task: Annotated[str, typer.Option(help="module:function, from params to a dict of named numbers.")],
    against: Annotated[
        Path | None, typer.Option(help="Another .mz file or checkpoint to compare with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Runs a task on the weights of a file, and on others to compare with."""
    function = _named(task, "--task")
    results = {}
    for path in [source] + ([against] if against else []):
        with _phase(f"evaluating {path.name}", as_json):
            scores = function(_weights(path))
        if not isinstance(scores, dict):
            raise RecipeError(f"--task {task} returned a {type(scores).__name__}, expected a dict of numbers")
        results[str(path)] = {name: float(value) for name, value in scores.items()}
    if as_json:
        print(json.dumps(results))
        return
    table = Table(box=None)
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right", overflow="fold")
    for name in next(iter(results.values())):
        table.add_row(name, *(f"{scores.get(name, float('nan')):.4f}" for scores in results.values()))
    _out.print(table)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="A file with get_config(), such as configs/digits_mlp.py.")],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; default runs/NAME. A run there goes on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Trains what a config describes; --config.field=value changes one of its fields."""
    from modelzip_jax.training import config as configs
    from modelzip_jax.training import experiment

    chosen = configs.override(configs.load(config), context.args)
    transform = _recipe(chosen.recipe) if chosen.recipe else None
    folder = out or Path("runs") / config.stem
    result = experiment.run(chosen, folder, transform, quiet=as_json)
    if as_json:
        print(json.dumps(result))
        return
    table = Table(title=str(folder / "model.mz"), box=None, title_justify="left")
    for column in ("", "loss", "accuracy"):
        table.add_column(column, justify="right")
    for name in ("train", "validation", "test"):
        numbers = result[name]
        table.add_row(
            name, f"{numbers['loss']:.4f} ± {numbers['loss_se']:.4f}",
            f"{numbers['accuracy']:.2%} ± {numbers['accuracy_se']:.2%}",
        )  # fmt: skip
    _out.print(table)
    _out.print(
        f"{result['steps']:,} steps; {_bytes(result['dense_bytes'])} of weights, "
        f"{_bytes(result['file_bytes'])} in the file",
        soft_wrap=True,
    )


def _weights(path: Path) -> Any:
    """The unpacked weights of a .mz file (with its variables beside them, if any) or a checkpoint."""
    import numpy as np

    import modelzip_jax as mz
    from modelzip_jax import checkpoints

    if path.is_dir() or path.suffix in checkpoints.SUFFIXES:
        return checkpoints.read(path)
    packed = mz.load(path)
    import jax

    params = jax.tree.map(np.asarray, mz.unpack(packed))
    return {"params": params, **packed.variables} if packed.variables else params


def _floats_only(params: Any, path: Path) -> Any:
    """Refuses what msgpack checkpoints may hold beside arrays."""
    import jax

    from modelzip_jax.tree import is_array, named_leaves

    for name, leaf in named_leaves(params):
        if not is_array(leaf):
            raise CheckpointError(f"{path}: {name!r} is a {type(leaf).__name__}, not an array")
    return jax.tree.map(lambda x: x, params)


def _packed_leaves(packed: Any) -> list[Any]:
    import jax

    from modelzip_jax.packed import is_packed

    return jax.tree.leaves(packed.params, is_leaf=is_packed)


def _recipe(text: str) -> Any:
    """A transform from `module:name` or from a JSON file in the form that `inspect --json` prints."""
    from modelzip_jax.recipe import from_plain
    from modelzip_jax.transform import Transform

    if text.endswith(".json"):
        try:
            transform = from_plain(json.loads(Path(text).read_text()))
        except json.JSONDecodeError as error:
            raise RecipeError(f"{text} is not JSON: {error}") from error
    else:
        transform = _named(text, "--recipe")
    if callable(transform) and not isinstance(transform, Transform):
        transform = transform()
    if not isinstance(transform, Transform):
        raise RecipeError(f"--recipe {text} gives a {type(transform).__name__}, expected a transform")
    return transform


def _named(text: str, option: str) -> Callable[..., Any]:
    """The object that `module:name` names; modules of the current folder are found too."""
    module, _, name = text.partition(":")
    if not module or not name:
        raise RecipeError(f"{option} takes module:name, not {text!r}")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise RecipeError(f"{option} {text}: {error}") from error
    except AttributeError as error:
        raise RecipeError(f"{option} {text}: the module {module} has no {name!r}") from error
    finally:
        sys.path.remove("")


def _bytes(size: int) -> str:
    """A size with a decimal unit.

    >>> _bytes(90_900_000), _bytes(512)
    ('90.9 MB', '512 B')
    """
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


if __name__ == "__main__":
    main()
