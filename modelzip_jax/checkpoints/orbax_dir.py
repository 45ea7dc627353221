"""Directories that Orbax wrote: a bare checkpoint, or a step of a `CheckpointManager`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from modelzip_jax.atomic import atomic_directory
from modelzip_jax.checkpoints.arrays import as_stored
from modelzip_jax.errors import CheckpointError, MissingExtraError
from modelzip_jax.tree import leaf_name

__all__ = ["read", "write"]

TREE_FILE = "_METADATA"  # what Orbax puts beside the arrays of a tree
FILES = (".safetensors", ".npz", ".msgpack")
USUAL_ITEMS = ("default", "params", "state")


def read(path: Path) -> Any:
    """The tree as NumPy arrays; tuples and custom nodes come back as lists and dicts."""
    item = _item(path)
    ocp = _orbax()
    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(item).item_metadata
        if metadata is None:
            raise CheckpointError(f"its {TREE_FILE} describes no tree")
        # NumPy, wherever the arrays lived: the devices of the writer need not exist here.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
        return checkpointer.restore(item, restore_args=as_numpy)


def write(path: Path, params: Any) -> None:
    """Writes what `orbax.checkpoint.StandardCheckpointer` writes."""
    ocp = _orbax()
    # Before Orbax begins: once it has, an error leaves threads that still write.
    arrays = jax.tree_util.tree_map_with_path(_storable, params)
    with atomic_directory(path) as directory, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory, arrays, force=True)
        checkpointer.wait_until_finished()


def _storable(key_path: tuple[Any, ...], leaf: Any) -> Any:
    name = leaf_name(key_path)
    array = leaf if isinstance(leaf, jax.Array) else as_stored(name, leaf)
    if array.size == 0:
        raise CheckpointError(f"leaf {name!r} has no elements, which Orbax cannot store")
    return array


def _item(path: Path) -> Path:
    """The directory with the arrays: `path` itself or the one item in it."""
    if (path / TREE_FILE).is_file():
        return path
    items = sorted(child.parent.name for child in path.glob(f"*/{TREE_FILE}"))
    for name in USUAL_ITEMS:
        if name in items:
            return path / name
    if len(items) == 1 and not items[0].isdigit():
        return path / items[0]
    if items:
        raise CheckpointError(f"it holds several items; name one of them: {_listed(items)}")
    steps = sorted({f.parents[1].name for f in path.glob(f"*/*/{TREE_FILE}")}, key=_by_number)
    if steps:
        raise CheckpointError(f"it holds checkpoints of several steps; name one: {_listed(steps)}")
    files = [name for suffix in FILES for name in sorted(f.name for f in path.glob(f"*{suffix}"))]
    if files:
        raise CheckpointError(f"it is no Orbax checkpoint; name a file in it: {_listed(files)}")
    raise CheckpointError(f"it is no Orbax checkpoint (there is no {TREE_FILE} in it)")


def _by_number(name: str) -> tuple[int, str]:
    return int(name) if name.isdecimal() else -1, name


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
