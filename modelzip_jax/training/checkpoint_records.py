"""What a checkpoint says of itself: its plain data and a digest of each array, under a digest of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from modelzip_jax.digests import tree_digest
from modelzip_jax.errors import CheckpointError

__all__ = ["DamagedCheckpointError", "differing_arrays", "differing_leaf", "read_record", "record_of"]

Named = Mapping[str, jax.Array]


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written."""


def record_of(arrays: Named, plain: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON holds it: `plain` data, and of each array its shape, dtype and digest.

    Every process of a run calls it, since an array that is spread over processes is gathered.

    >>> record = record_of({"w": np.zeros(2, np.float32)}, {"position": 7})
    >>> record["content"]["arrays"]["w"][:2], record["content"]["plain"]
    ([[2], 'float32'], {'position': 7})
    """
    facts = {name: [list(x.shape), x.dtype.name, _digest(name, x)] for name, x in arrays.items()}
    content = {"arrays": facts, "plain": dict(plain)}
    return {"content": content, "digest": _digest_of_json(content)}


def read_record(path: Path) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The arrays' facts and the plain data of a record in a file.

    Raises:
      DamagedCheckpointError: it is not what was written.
    """
    try:
        record = json.loads(path.read_bytes())
        content = record["content"]
        if set(record) == {"content", "digest"} and record["digest"] == _digest_of_json(content):
            return content["arrays"], content["plain"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedCheckpointError(f"its record {path.name} cannot be read: {reason}") from error
    raise DamagedCheckpointError(f"its record {path.name} is not what was written")


def differing_leaf(facts: Mapping[str, list[Any]], wanted: Named) -> str | None:
    """A sentence about the first leaf of another shape or dtype than is wanted; None if there is none."""
    for name in sorted({*facts, *wanted}):
        stored = tuple(facts[name][0]) if name in facts else None
        ours = tuple(wanted[name].shape) if name in wanted else None
        if stored != ours:
            return f"{name!r} has the shape {stored} in the checkpoint, {ours} in this run"
        if facts[name][1] != wanted[name].dtype.name:
            return f"{name!r} is {facts[name][1]} in the checkpoint, {wanted[name].dtype.name} in this run"
    return None


def differing_arrays(facts: Mapping[str, list[Any]], arrays: Named) -> list[str]:
    """The names of the arrays that are not what was written."""
    return sorted(
        name
        for name in {*facts, *arrays}
        if name not in facts or name not in arrays or facts[name][2] != _digest(name, arrays[name])
    )


def _digest(name: str, x: Any) -> str:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        # Data-parallel states are on each device whole; others are put together, a leaf at a time.
        whole = x.is_fully_replicated
        x = x.addressable_data(0) if whole else multihost_utils.process_allgather(x, tiled=True)
    return tree_digest({name: np.asarray(x)})


def _digest_of_json(content: Any) -> str:
    # In its canonical form: a bit that changes nothing but the form is harmless.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
