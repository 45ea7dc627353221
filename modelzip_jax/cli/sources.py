"""The files that the command reads, and the ones that it is about to write."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from modelzip_jax.cli.failures import named
from modelzip_jax.cli.terminal import phase
from modelzip_jax.errors import CheckpointError, FormatError

__all__ = ["Weights", "check_compressed", "refuse_existing", "weights_at"]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a file, with its variables beside them, if any; what to tell the user; and its metadata."""

    tree: Any
    notes: tuple[str, ...] = ()
    metadata: Any = None


def refuse_existing(path: Path, force: bool) -> None:
    """Raises `CheckpointError` if the output exists, or its folder does not, before any work is done."""
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists already; pass --force to replace it")
    if not path.absolute().parent.is_dir():
        raise CheckpointError(f"the folder {path.absolute().parent} does not exist")


def check_compressed(path: Path) -> None:
    """Raises an error that says what to do if a path is certainly no `.mz` file.

    Raises:
      CheckpointError: a folder, a checkpoint, or nothing at all.
    """
    from modelzip_jax import checkpoints
    from modelzip_jax.checkpoints import recognition

    what = "inspect and decompress read .mz files; `modelzip compress` makes one of a checkpoint"
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; {what}")
    if not path.exists():
        raise CheckpointError(f"{path} cannot be read: {recognition.absence(path)}")
    if path.suffix.lower() in checkpoints.SUFFIXES:
        raise CheckpointError(f"{path} is a {path.suffix} checkpoint; {what}")
    _refuse_others(path)


def weights_at(path: Path, quiet: bool, key: str | None = None, limit: int | None = None) -> Weights:
    """The unpacked weights of a `.mz` file or a checkpoint.

    key: the subtree of a checkpoint to take. limit: see `mz.load`.
    """
    from modelzip_jax import checkpoints
    from modelzip_jax.checkpoints import recognition

    is_checkpoint = path.suffix.lower() in checkpoints.SUFFIXES or path.name.endswith(".index.json")
    if path.is_dir() or is_checkpoint:
        with phase(f"reading {path.name}", quiet), named(path):
            contents, others = checkpoints.read_weights(path, key)
        tree = {"params": contents.tree, **others} if others else contents.tree
        return Weights(tree, contents.notes)
    if not path.exists():
        raise CheckpointError(f"{path} cannot be read: {recognition.absence(path)}")
    _refuse_others(path)
    if key is not None:
        raise FormatError(f"--key names a part of a checkpoint, and {path} is a compressed model")
    return _decoded(path, quiet, limit)


def _refuse_others(path: Path) -> None:
    """Raises `CheckpointError` for a file that by its first bytes is something else than a `.mz` file."""
    from modelzip_jax.checkpoints import recognition

    kind = recognition.kind_of(path)
    if kind is not None and not kind.endswith(".mz"):
        raise CheckpointError(f"{path} is no .mz file; it is {kind}")


def _decoded(path: Path, quiet: bool, limit: int | None) -> Weights:
    import jax
    import numpy as np

    import modelzip_jax as mz
    from modelzip_jax.packed import is_packed
    from modelzip_jax.packing import unpacked_bytes

    with phase(f"reading {path.name}", quiet, path.stat().st_size) as tell, named(path):
        packed = mz.load(path, progress=tell, limit=limit)
    count = len(jax.tree.leaves(packed.params, is_leaf=is_packed))
    with phase(f"decoding {path.name}", quiet, packed.dense_bytes, count) as tell:

        def unpack(name: str, leaf: Any) -> Any:
            values = np.asarray(mz.unpack(leaf))
            tell(name, unpacked_bytes(leaf))
            return values

        flat, treedef = jax.tree_util.tree_flatten_with_path(packed.params, is_leaf=is_packed)
        params = treedef.unflatten([unpack(jax.tree_util.keystr(at), leaf) for at, leaf in flat])
    tree = {"params": params, **packed.variables} if packed.variables else params
    return Weights(tree, (), packed.metadata)
