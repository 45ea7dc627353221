"""What each candidate makes of each leaf: its bytes, and its error by a sensitivity."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.combinator import FROM_DATA, check_transform, reads, told
from modelzip_jax.errors import NonFiniteError, PatternError, TransformError
from modelzip_jax.packing import Packed, compress, unpack
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.quantization.sensitivity import LeafCost
from modelzip_jax.transform import Transform
from modelzip_jax.tree import PyTree

__all__ = ["Measurements", "measured", "named_candidates"]


@dataclasses.dataclass(frozen=True, eq=False)
class Measurements:
    """Leaves by candidates: int64 and float64 arrays `(leaves, candidates)`.

    leaves: their names. sizes: values in each. candidates: name → transform. nbytes: packed. stored: payload in a file;
    None unless asked for. widths: bits of a factor that products read: of integer codes theirs, otherwise the leaf's
    floats. errors: by the sensitivity; infinite where a candidate's patterns leave a leaf out.
    """

    leaves: tuple[str, ...]
    sizes: tuple[int, ...]
    candidates: Mapping[str, Transform]
    nbytes: np.ndarray
    stored: np.ndarray | None
    widths: np.ndarray
    errors: np.ndarray


def named_candidates(candidates: Any, called: str = "mixed_precision()") -> dict[str, Transform]:
    """Candidates by name; those of a sequence are called by their class and the fields in which they differ.

    called: who takes them, in messages.

    Raises:
      TransformError: there are none, two are equal, or one is no transform that encodes each leaf by itself.

    >>> import modelzip_jax as mz
    >>> list(named_candidates([mz.quantize(2), mz.quantize(4), mz.identity()]))
    ['Quantize(bits=2)', 'Quantize(bits=4)', 'Identity()']
    """
    if isinstance(candidates, Transform) or not isinstance(candidates, Mapping | Sequence) or not candidates:
        raise TransformError(
            f"{called} takes candidates, such as [mz.quantize(b) for b in (2, 4, 8)] or name → transform, not "
            f"{candidates!r:.100}"
        )
    named = dict(candidates) if isinstance(candidates, Mapping) else None
    every = list(candidates.values() if isinstance(candidates, Mapping) else candidates)
    for transform in every:
        check_transform(transform, called)
        if not transform.leafwise:
            raise TransformError(
                f"{transform!r:.100} looks at all leaves together, so that nobody can tell what it does to one; "
                "candidates encode each leaf by itself"
            )
    if len(set(every)) < len(every):
        raise TransformError("two of the candidates are equal")
    named = dict(zip(_names(every), every, strict=True)) if named is None else named
    if not all(isinstance(name, str) for name in named):
        raise TransformError(f"candidates are named by strings, not {list(named)!r:.100}")
    return named


def _names(transforms: list[Transform]) -> list[str]:
    """The class of each and the fields in which those of one class differ."""
    of_class = collections.defaultdict(list)
    for transform in transforms:
        of_class[type(transform)].append(transform)

    def differing(transform: Transform) -> str:
        fields = [f.name for f in dataclasses.fields(transform)]
        alike = of_class[type(transform)]
        differ = [f for f in fields if len({getattr(t, f) for t in alike}) > 1]
        return ", ".join(f"{f}={getattr(transform, f)!r}" for f in differ)

    return [f"{type(t).__name__}({differing(t)})" for t in transforms]


def measured(
    params: PyTree,
    keep: Sequence[bool],
    candidates: Mapping[str, Transform],
    measure: LeafCost,
    given: Mapping[str, Any],
    *,
    in_files: bool,
    progress: Callable[[str, int], None] | None,
    called: str = "mixed_precision()",
) -> Measurements:
    """Compresses each chosen leaf by each candidate.

    Args:
      params: plain arrays. keep: which leaves. measure: of a prepared sensitivity. given: what candidates read, as for
        `mz.compress`. in_files: whether payloads in files are wanted. called: who measures, in messages.

    Raises:
      TransformError: a candidate needs what is not given. NonFiniteError: a sensitivity is NaN or infinite.
      PatternError: no candidate encodes a leaf.
      Others: as `mz.compress` of a leaf, and as the sensitivity.
    """
    context = told(params, keep, given, called)
    chosen_outlines = [leaf for leaf, k in zip(trees.outlines(params), keep, strict=True) if k]
    for label, transform in candidates.items():
        needs = [field for field in FROM_DATA if any(reads(transform, chosen_outlines, field))]
        if missing := context.lacks(needs):
            raise TransformError(
                f"the candidate {label!r} needs {', '.join(missing)}: pass {', '.join(f'{m}=' for m in missing)} to "
                f"{called}"
            )
    treedef, named = jax.tree.structure(params), trees.named_leaves(params)
    parts = {field: treedef.flatten_up_to(tree) for field, tree in context.trees().items()}
    whole = {field: value for field, value in given.items() if field not in parts}
    rows = []
    for i, (name, leaf) in enumerate(named):
        if not keep[i]:
            continue
        told_here = {field: {name: part[i]} for field, part in parts.items()} | whole
        cells = [
            _cell(name, leaf, label, transform, measure, told_here, in_files)
            for label, transform in candidates.items()
        ]
        if all(cell is None for cell in cells):
            raise PatternError(f"no candidate has a pattern that matches the leaf {name!r}")
        rows.append([_NONE if cell is None else cell for cell in cells])
        if progress is not None:
            progress(name, trees.nbytes(leaf))
    chosen = [pair for pair, k in zip(named, keep, strict=True) if k]
    columns = [np.array([[cell[field] for cell in row] for row in rows]) for field in range(4)]
    nbytes, stored, widths = (column.astype(np.int64) for column in columns[:3])
    return Measurements(
        tuple(name for name, _ in chosen), tuple(int(np.size(x)) for _, x in chosen), dict(candidates),
        nbytes, stored if in_files else None, widths, columns[3].astype(np.float64),
    )  # fmt: skip


_Cell = tuple[int, int, int, float]
"""Packed bytes, payload in a file, bits of a factor, error."""
_NONE: _Cell = (0, 0, 0, np.inf)


def _cell(
    name: str,
    leaf: Any,
    label: str,
    transform: Transform,
    measure: LeafCost,
    given: Mapping[str, Any],
    in_files: bool,
) -> _Cell | None:
    try:
        packed = compress({name: leaf}, transform, **given)
    except PatternError:  # Such as layers={"blocks/**": 0}, which only the leaves there can have.
        return None
    error = float(measure(name, np.asarray(leaf), np.asarray(unpack(packed)[name])))
    if not np.isfinite(error):
        raise NonFiniteError(
            f"the sensitivity of leaf {name!r} to the candidate {label!r} is {error}: look at its batches, statistics "
            "or gradients"
        )
    return packed.nbytes, _payload(packed) if in_files else 0, _width(packed, name, leaf), error


def _payload(packed: Packed) -> int:
    """Bytes of one leaf that grow with it; what a file has beside them is measured of the whole model."""
    sizes = file_sizes(packed)
    return sizes.payload + sizes.tables


def _width(packed: Packed, name: str, leaf: Any) -> int:
    form = packed.params[name]
    while form.tag == "masked":
        form = form.inner
    return (
        form.codes.bits
        if isinstance(form, Quantized)
        else 8 * trees.nbytes(leaf) // max(int(np.size(leaf)), 1)
    )
