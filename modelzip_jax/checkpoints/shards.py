"""Checkpoints in several `.safetensors` files, with an index that says which tensor is in which.

`model.safetensors.index.json` holds `{"metadata": {...}, "weight_map": {tensor: file}}`, as Hugging Face's libraries
write it; the files stand beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modelzip_jax.checkpoints import tensors_file
from modelzip_jax.checkpoints.contents import Contents
from modelzip_jax.errors import CheckpointError

__all__ = ["SUFFIX", "read"]

SUFFIX = ".safetensors.index.json"
MAX_INDEX = 1 << 28  # bytes; a tensor takes about a hundred


def read(path: Path) -> Contents:
    """The tensors of all files that the index names, as nested dicts."""
    named = _weight_map(path)
    missing = sorted({file for file in named.values() if not (path.parent / file).is_file()})
    if missing:
        raise CheckpointError(f"{len(missing)} of its files are not beside it: {', '.join(missing[:3])}")
    shards: list[tensors_file.Stored] = []
    owner: dict[str, str] = {}
    for file in sorted(set(named.values())):
        try:
            stored = tensors_file.read_flat(path.parent / file)
        except (CheckpointError, OSError) as error:
            raise CheckpointError(f"its file {file}: {error}") from error
        for name in stored.flat:
            if name in owner:
                raise CheckpointError(f"the tensor {name!r} is in {owner[name]} and in {file}")
            owner[name] = file
        shards.append(stored)
    lost = [name for name, file in named.items() if owner.get(name) != file]
    if lost:
        raise CheckpointError(f"the tensor {lost[0]!r} is not in {named[lost[0]]}, where the index has it")
    return tensors_file.contents(shards)


def _weight_map(path: Path) -> dict[str, str]:
    if path.stat().st_size > MAX_INDEX:
        raise CheckpointError(f"an index of {path.stat().st_size} bytes is too large")
    try:
        index: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"it is not JSON: {error}") from error
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not named:
        raise CheckpointError("it has no 'weight_map' from tensors to files")
    for file in named.values():
        # A file beside it, and no other place of this machine.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"its 'weight_map' names {str(file)[:80]!r}, which is no .safetensors file beside it"
            )
    return named
