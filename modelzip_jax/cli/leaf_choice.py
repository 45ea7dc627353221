"""Which leaves of a checkpoint are encoded, and what the user should know of the others."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

import modelzip_jax as mz
from modelzip_jax.combinator import FROM_DATA, reads, selects
from modelzip_jax.errors import CheckpointError, NonFiniteError, TransformError
from modelzip_jax.tree import is_array, named_leaves, outlines

__all__ = [
    "check_only_arrays",
    "encoded_names",
    "nothing_encoded",
    "refuse_what_needs_data",
    "remarks",
    "without_nonfinite",
]


def check_only_arrays(tree: Any, path: Path) -> None:
    """Raises `CheckpointError` for what msgpack checkpoints may hold beside arrays."""
    for name, leaf in named_leaves(tree):
        if not is_array(leaf):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(leaf).__name__}, not an array; take a part without it with --key"
            )


def encoded_leaves(transform: Any, tree: Any) -> list[tuple[str, Any]]:
    """The leaves that a transform encodes, by name."""
    keep = selects(transform, outlines(tree))
    return [named for named, chosen in zip(named_leaves(tree), keep, strict=True) if chosen]


def encoded_names(transform: Any, tree: Any) -> list[str]:
    """The names of leaves that a transform changes, or might."""
    return [name for name, _ in encoded_leaves(transform, tree)] if _changes(transform) else []


def nothing_encoded(names: Collection[str], least: int | None) -> list[str]:
    """A warning if no tensor is encoded, although the user asked for something.

    least: axes that a tensor must have; None where also biases and scales may be encoded.
    """
    if names:
        return []
    chosen = "no tensor of floating-point numbers that was chosen"
    why = f"{chosen} has {least} axes or more (see --min-ndim)" if least else "no tensor was chosen"
    if least is None:
        why = f"{chosen} is a matrix, or larger, or may be rounded as a bias or scale (see --only and --min-ndim)"
    return [f"nothing is compressed but by the entropy coder: {why}"]


def refuse_what_needs_data(transform: Any, tree: Any) -> None:
    """Raises `TransformError` for a recipe that goes by statistics of inputs, by gradients or the like."""
    leaves = outlines(tree)
    for field in FROM_DATA:
        names = [
            leaf.name for leaf, asked in zip(leaves, reads(transform, leaves, field), strict=True) if asked
        ]
        if names:
            raise TransformError(
                f"the recipe needs {field}= of {names[0]!r}, which come of running the network, and the command has "
                f"weights alone: compress in Python, mz.compress(params, recipe, {field}=...)"
            )


def without_nonfinite(transform: Any, tree: Any) -> tuple[Any, list[str]]:
    """The transform, leaving alone leaves with NaN or infinity, and what to say of them.

    Attention masks and other buffers are no weights: they hold -inf where nothing may be seen, and are kept as they
    are. Where nothing else is left the network has diverged.

    Raises:
      NonFiniteError: every leaf that would be encoded holds NaN or infinity.
    """
    chosen = encoded_leaves(transform, tree)
    bad = [name for name, leaf in chosen if not _is_finite(leaf)]
    if not bad:
        return transform, []
    if len(bad) == len(chosen):
        raise NonFiniteError(
            f"leaf {bad[0]!r} holds NaN or infinite values, and so does every other leaf to compress; "
            "training has diverged, or the checkpoint is damaged"
        )
    ((_, encoding),) = transform.parts
    labels = dict.fromkeys(bad, "lossless") | dict(transform.labels)
    parts = {"lossless": mz.chain(), "selected": encoding}
    spared = mz.partition(parts, labels, min_ndim=transform.min_ndim, floating=transform.floating)
    return spared, [f"{_some(bad)} of NaN, infinite or largest values kept lossless"]


def remarks(encoded: Collection[str], tree: Any) -> list[str]:
    """What happens to 64-bit leaves, which JAX computes in 32 bits. encoded: the names of leaves that are."""
    wide = [name for name, leaf in named_leaves(tree) if getattr(leaf, "dtype", None) == np.float64]
    if not wide or jax.config.jax_enable_x64:
        return []
    changed = [name for name in wide if name in encoded]
    kept = [name for name in wide if name not in encoded]
    said = []
    if changed:
        said.append(f"{_some(changed)} of float64 computed in float32, which they come back as")
    if kept:
        said.append(f"{_some(sorted(kept))} of float64 stored as they are; JAX computes with them in float32")
    return said


def _changes(transform: Any) -> bool:
    """Whether a transform does anything to the leaves that it encodes."""
    parts = (
        [part for _, part in getattr(transform, "parts", ())] if hasattr(transform, "labels") else [transform]
    )
    return any(not isinstance(part, type(mz.identity())) for part in parts)


def _is_finite(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not jax.numpy.issubdtype(dtype, np.inexact):
        return True
    if not leaf.size:
        return True
    # Where masks hold no -inf they hold the smallest float there is.
    most = float(jax.numpy.finfo(dtype).max) / 2
    return float(np.abs(leaf).max()) < most


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown})"
