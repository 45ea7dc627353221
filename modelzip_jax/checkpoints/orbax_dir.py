"""Directories that Orbax wrote: a bare checkpoint, a step of a `CheckpointManager`, or all of its steps."""

from __future__ import annotations

import collections
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from modelzip_jax.atomic import atomic_directory
from modelzip_jax.checkpoints.arrays import as_stored
from modelzip_jax.checkpoints.contents import Contents
from modelzip_jax.coding.claims import allowance
from modelzip_jax.errors import CheckpointError, MissingExtraError
from modelzip_jax.tree import leaf_name, segment

__all__ = ["is_checkpoint", "read", "write"]

TREE_FILE = "_METADATA"  # what Orbax puts beside the arrays of a tree
OLD_TREE_FILE = "checkpoint"  # what its first versions put there: the tree, with placeholders for arrays
OLD_ARRAY_FILE = ".zarray"  # in each array's own folder
DATABASE_FILE = "manifest.ocdbt"  # of all arrays, which do not know their names
STEP_FILE = "_CHECKPOINT_METADATA"  # what it puts beside the items of a step
_MAX_DESCRIPTION = 1 << 20
UNFINISHED = ".orbax-checkpoint-tmp"
USUAL_ITEMS = ("params", "default", "state", "pytree", "model", "train_state")
STEP = re.compile(r"(.*?)(\d+)")


def read(path: Path) -> Contents:
    """The tree as NumPy arrays; tuples and custom nodes come back as lists and dicts."""
    item, notes = _item(path.absolute())  # Orbax takes no relative path
    ocp = _orbax()
    with ocp.PyTreeCheckpointer() as checkpointer:
        _check_old_arrays(item)
        if not (item / TREE_FILE).is_file():  # Orbax reads it, and without metadata always as NumPy arrays.
            return Contents(checkpointer.restore(item), notes=notes)
        metadata = checkpointer.metadata(item).item_metadata
        if metadata is None:
            raise CheckpointError(f"its {TREE_FILE} describes no tree")
        _check_sizes(item, [_size(x) for x in jax.tree.leaves(metadata.tree, is_leaf=_is_described)])
        # NumPy, wherever the arrays lived: the devices of the writer need not exist here.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
        return Contents(checkpointer.restore(item, restore_args=as_numpy), notes=notes)


def write(path: Path, params: Any) -> None:
    """Writes what `orbax.checkpoint.StandardCheckpointer` writes."""
    ocp = _orbax()
    # Before Orbax begins: once it has, an error leaves threads that still write.
    arrays = jax.tree_util.tree_map_with_path(_storable, params)
    _refuse_clashes(params)
    with atomic_directory(path) as directory, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), arrays, force=True)
        checkpointer.wait_until_finished()


def _is_described(x: Any) -> bool:
    return hasattr(x, "shape")


def _size(described: Any) -> int:
    """Bytes of an array, or of one of its chunks if that is more."""
    chunk = getattr(getattr(described, "storage", None), "chunk_shape", None)
    values = max(math.prod(shape) for shape in (getattr(described, "shape", None) or (), chunk or ()))
    dtype = getattr(described, "dtype", None)
    return values * (np.dtype(dtype).itemsize if dtype is not None else 8)


def _check_old_arrays(item: Path) -> None:
    """The same of arrays in folders of their own, whose descriptions Orbax may not read before the arrays."""
    claims = []
    for file in item.glob(f"*/{OLD_ARRAY_FILE}"):
        try:
            told = json.loads(file.read_bytes()[:_MAX_DESCRIPTION])
            values = max(math.prod(map(int, told[key])) for key in ("shape", "chunks"))
            width = re.search(r"\d+$", str(told["dtype"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(f"{file.parent.name}/{file.name} describes no array: {error}") from error
        claims.append(values * (int(width[0]) if width else 2))
    _check_sizes(item, claims)


def _check_sizes(item: Path, sizes: list[int]) -> None:
    """Refuses arrays that their files cannot hold. TensorStore takes the memory first, or ends the process."""
    held = sum(file.stat().st_size for file in item.rglob("*") if file.is_file())
    if sum(sizes) > allowance(held):
        raise CheckpointError(f"its arrays claim {sum(sizes):,} bytes, and its files have {held:,}")


def is_checkpoint(path: Path) -> bool:
    """Whether there is a tree of Orbax in the directory or up to two levels below."""
    folders = itertools.chain([path], path.glob("*/"), path.glob("*/*/"))
    return any(_is_tree(folder) or _has_arrays(folder) for folder in folders)


def _is_tree(path: Path) -> bool:
    """Whether a folder holds arrays and what names them. TensorFlow, too, writes a file called "checkpoint"."""
    return (path / TREE_FILE).is_file() or ((path / OLD_TREE_FILE).is_file() and _has_arrays(path))


def _has_arrays(path: Path) -> bool:
    return (path / DATABASE_FILE).is_file() or next(path.glob(f"*/{OLD_ARRAY_FILE}"), None) is not None


def _storable(key_path: tuple[Any, ...], leaf: Any) -> Any:
    name = leaf_name(key_path)
    array = leaf if isinstance(leaf, jax.Array) else as_stored(name, leaf)
    if array.size == 0:
        raise CheckpointError(
            f"leaf {name!r} has no elements, which Orbax cannot store; write .safetensors or .npz"
        )
    return array


def _refuse_clashes(params: Any) -> None:
    """Orbax joins keys with dots, and of two leaves of one name it would keep one, saying nothing."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = collections.Counter(".".join(segment(key) for key in path) for path, _ in paths)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise CheckpointError(f"two leaves would both be stored under the name {twice!r}")


def _item(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The directory with the arrays, and what to say of the choices on the way."""
    if _is_tree(path):
        return path, ()
    if _has_arrays(path):
        raise CheckpointError(
            f"what names its arrays is missing: {TREE_FILE}, or the file {OLD_TREE_FILE!r} of older versions of Orbax; "
            "copy the folder again, with all that is in it"
        )
    if not (path / STEP_FILE).is_file():
        steps = _steps(path)
        if steps:
            item, notes = _item(steps[-1])
            return item, (*_of_steps(path, steps), *notes)
    items = sorted(child.name for child in path.iterdir() if _is_tree(child) and UNFINISHED not in str(child))
    chosen = next((name for name in USUAL_ITEMS if name in items), items[0] if len(items) == 1 else None)
    if chosen is not None:
        others = [name for name in items if name != chosen]
        if others or chosen not in USUAL_ITEMS:
            return path / chosen, (
                f"the item {chosen!r} is read"
                + (f", not {_listed(others)}: name another as {path / others[0]}" if others else ""),
            )
        return path / chosen, ()
    if items:
        raise CheckpointError(
            f"it holds several items; name one of them, as in {path / items[0]}: {_listed(items)}"
        )
    raise CheckpointError(
        f"it is no Orbax checkpoint (there is no {TREE_FILE} in it), nor is a checkpoint of another format in it"
    )


def _steps(path: Path) -> list[Path]:
    """The steps of a `CheckpointManager` (or of `flax.training.checkpoints`), the latest one last."""
    found: dict[int, Path] = {}
    for child in path.iterdir():
        match = STEP.fullmatch(child.name)
        if match and UNFINISHED not in child.name and child.is_dir() and is_checkpoint(child):
            found[int(match[2])] = child
    return [found[step] for step in sorted(found)]


def _of_steps(path: Path, steps: list[Path]) -> tuple[str, ...]:
    if len(steps) == 1:
        return ()
    names = [step.name for step in steps]
    return (f"{names[-1]} is the latest of {_listed(names)}; for another name it, as in {path / names[0]}",)


def _listed(names: list[str]) -> str:
    shown = names if len(names) <= 8 else [*names[:3], "...", *names[-3:]]
    return ", ".join(shown)


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise MissingExtraError(
            "reading or writing a checkpoint directory needs Orbax: pip install orbax-checkpoint"
        ) from error
    return ocp
