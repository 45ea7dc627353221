"""Parameter trees in other people's formats, read and written by `modelzip compress | decompress`.

| name | format | names of the leaves |
|---|---|---|
| `*.safetensors` | safetensors | nested keys joined by "." |
| `*.npz` | NumPy archive | nested keys joined by "/"; "@bfloat16" marks what NumPy cannot name |
| `*.safetensors.index.json` | several `.safetensors` files, read only | the same |
| `*.msgpack` | `flax.serialization` | nested; lists and tuples become dicts: "0", "1", ... |
| a directory | Orbax | nested |

Nothing is ever unpickled or executed; sizes are checked against the file before memory is taken.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from modelzip_jax.checkpoints import orbax_dir, recognition, shards
from modelzip_jax.checkpoints.contents import Contents
from modelzip_jax.checkpoints.train_states import choose
from modelzip_jax.errors import CheckpointError, MissingExtraError, OutOfMemoryError

__all__ = ["SUFFIXES", "Contents", "check_writable", "read", "read_contents", "read_weights", "write"]

SUFFIXES = {".safetensors": "tensors_file", ".npz": "npz_file", ".msgpack": "msgpack_file"}
DIRECTORY_SUFFIXES = ("", ".orbax")
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def read(path: str | os.PathLike[str]) -> Any:
    """Reads the parameter tree of a checkpoint.

    Args:
      path: a `.safetensors`, `.npz` or `.msgpack` file, the index of a checkpoint in several files
        (`model.safetensors.index.json`), a folder with such an index or one such file, or a directory that Orbax
        wrote: a bare checkpoint, or the root or a step of a `CheckpointManager`, of which the latest step and the item
        "params", "default", "state" or single item is taken.

    Returns:
      Nested dicts (and lists, where the format keeps them) of NumPy arrays in the stored dtype. The
      arrays of the three file formats begin at multiples of 64 bytes, so that `jax.device_put` on
      the CPU shares their memory (write to them no more after that); `jnp.asarray` always copies.
      `.msgpack` keeps what else Flax wrote: Python numbers, strings, None.

    Raises:
      CheckpointError: there is no such file, its suffix is unknown, or it is empty, cut short,
        damaged, in another format, holds pickled objects or no array at all. The message names
        the file.
      OutOfMemoryError: this machine has too little memory for it.
      MissingExtraError: the package that reads the format is not installed.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/model.safetensors", {"dense": {"bias": np.zeros(2, np.float16)}})
    ...     read(f"{folder}/model.safetensors")
    {'dense': {'bias': array([0., 0.], dtype=float16)}}
    """
    return read_contents(path).tree


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """Like `read`, with what the tree has no place for: metadata, the order of arrays, and what to tell the user."""
    source = Path(path)
    with _named_errors(source, "cannot be read"):
        in_folder = _file_in(source) if source.is_dir() else None
    found = in_folder or source
    with _named_errors(found, "cannot be read"):
        if found.is_dir():
            contents: Contents = _module("orbax_dir").read(found)
        elif not found.exists():
            raise CheckpointError(recognition.absence(found))
        else:
            contents = _of_file(found)
        if not any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(contents.tree)):
            raise CheckpointError("it holds no arrays")
    return contents


def _of_file(path: Path) -> Contents:
    try:
        reader = _module(_file_format(path))
        if path.stat().st_size == 0:
            raise CheckpointError("it is empty")
        contents: Contents = reader.read(path)
    except (MemoryError, MissingExtraError, OSError):
        raise
    except Exception:
        kind = recognition.kind_of(path)
        named_well = path.suffix and kind is not None and kind.endswith(path.suffix.lower())
        if kind is None or named_well or path.name.lower().endswith(shards.SUFFIX):
            raise
        raise CheckpointError(f"it is {kind}") from None
    return contents


def read_weights(path: str | os.PathLike[str], key: str | None = None) -> tuple[Contents, dict[str, Any]]:
    """The weights of a checkpoint, also of a whole train state, and what travels along: see `train_states.choose`."""
    contents = read_contents(path)
    with _named_errors(Path(path), "cannot be compressed"):
        return choose(contents, key)


def _file_in(folder: Path) -> Path | None:
    """The one file that stands for a folder; None if the folder is Orbax's."""
    if (folder / orbax_dir.TREE_FILE).is_file() or orbax_dir.is_checkpoint(folder):
        return None
    indices = sorted(folder.glob(f"*{shards.SUFFIX}"))
    files = indices or sorted(f for suffix in SUFFIXES for f in folder.glob(f"*{suffix}"))
    if len(files) > 1:
        raise CheckpointError(f"it is no Orbax checkpoint; name a file in it: {_listed(files)}")
    return files[0] if files else None


def _listed(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:6]) + (", ..." if len(files) > 6 else "")


def write(
    path: str | os.PathLike[str],
    params: Any,
    *,
    order: Sequence[int] | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Writes a parameter tree; the file or directory appears whole or not at all.

    Args:
      path: a name that ends in `.safetensors`, `.npz` or `.msgpack`; a name without a suffix or
        ending in `.orbax` becomes a directory in Orbax's standard format. A file is replaced; a
        directory that is not empty never is.
      params: any pytree of arrays. Formats of flat names join the keys and indices of its paths.
      order: of the arrays in a `.safetensors` or `.npz` file: the index among the tree's leaves of the first, the
        second, …. Other formats have none.
      metadata: strings by name, for `.safetensors`; other formats have no place for them.
      progress: called with the name and the bytes of each array that a `.safetensors` or `.npz` file has got.

    Raises:
      CheckpointError: the suffix is unknown, the tree holds no arrays or a leaf that the format
        cannot store, two names clash, or the place cannot be written. The message names the file.
      MissingExtraError: the package that writes the format is not installed.

    >>> try:
    ...     write("weights.pkl", {"a": 1.0})
    ... except CheckpointError as error:
    ...     print(str(error).partition(";")[0])
    weights.pkl cannot be written: '.pkl' is not known (pickles are never read or written)
    """
    target = Path(path)
    with _named_errors(target, "cannot be written"):
        is_directory = target.suffix in DIRECTORY_SUFFIXES
        name = "orbax_dir" if is_directory else _file_format(target)
        if name == "shards":
            raise CheckpointError(
                f"write one file instead: {target.name.removesuffix(shards.SUFFIX)}.safetensors"
            )
        if not jax.tree.leaves(params):
            raise CheckpointError("the tree holds no arrays")
        flat: dict[str, Any] = {"order": order, "progress": progress}
        told: dict[str, dict[str, Any]] = {"tensors_file": {**flat, "metadata": metadata}, "npz_file": flat}
        _module(name).write(target, params, **told.get(name, {}))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises `CheckpointError` if no format belongs to the name, before any work is done."""
    target = Path(path)
    with _named_errors(target, "cannot be written"):
        if target.suffix.lower() == ".mz":
            raise CheckpointError(
                f"it is to be a checkpoint: name it {', '.join(SUFFIXES)}, or without a suffix for Orbax"
            )
        if target.suffix not in DIRECTORY_SUFFIXES:
            _file_format(target)


def _file_format(path: Path) -> str:
    if path.name.lower().endswith(shards.SUFFIX):
        return "shards"
    suffix = path.suffix.lower()
    if suffix == ".mz":
        raise CheckpointError("it is compressed already; `modelzip decompress` makes a checkpoint of it")
    if suffix not in SUFFIXES:
        pickles = " (pickles are never read or written)" if suffix in PICKLES else ""
        what = f"{path.suffix!r} is not known" if suffix else "it has no suffix that names its format"
        raise CheckpointError(
            f"{what}{pickles}; use the suffix {', '.join(SUFFIXES)}, or a directory for Orbax"
        )
    return SUFFIXES[suffix]


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


@contextmanager
def _named_errors(path: Path, what: str) -> Iterator[None]:
    """Turns every failure into a `CheckpointError` that names the file."""
    try:
        yield
    except MissingExtraError:
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{path} {what}: there is not enough memory for it") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} {what}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} {what}: {error.strerror or error}") from error
    except Exception as error:
        # zipfile, msgpack, Orbax and TensorStore document no closed set of what damaged data raise.
        detail = str(error).strip().splitlines() or [""]
        raise CheckpointError(
            f"{path} {what}: it is damaged or in another format than its name says "
            f"({type(error).__name__}: {detail[0][:200]})"
        ) from error
