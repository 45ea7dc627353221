"""What a compressed model holds, tensor by tensor, side information included."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from modelzip_jax.coding.header import Header
from modelzip_jax.coding.reader import Archive
from modelzip_jax.coding.writer import Progress, encoded
from modelzip_jax.errors import TransformError
from modelzip_jax.evaluation.stored_forms import describe, sparsity
from modelzip_jax.jax_settings import unwatched
from modelzip_jax.packed import Dense, PackedArray, is_packed
from modelzip_jax.packing import Packed, unpacked_bytes
from modelzip_jax.transform import dense

__all__ = ["Report", "TensorReport", "describe", "inspect", "tensors"]

_UNLIMITED = 1 << 62
"""Of a model that is in memory already."""


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """One tensor of a file.

    dense_bytes: unpacked, in its own dtype. packed_bytes: packed in device memory. file_bytes: its
    share of the coded chunks, raw planes and tables. sparsity: share of weights that a mask sets to
    zero. form: how it is stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    form: str
    size: int
    sparsity: float
    dense_bytes: int
    packed_bytes: int
    file_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits in the file for each weight, pruned ones included."""
        return 8.0 * self.file_bytes / max(self.size, 1)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `inspect` finds; `print` shows it as a table.

    tensors: a row each, in the order of the file. file_bytes: of the whole file. recipe: how the model was made, as
    plain data. step: optimizer steps taken. metadata: plain data by name that the file carries along.
    """

    tensors: tuple[TensorReport, ...]
    file_bytes: int
    recipe: Any
    step: int
    metadata: Mapping[str, Any]

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors, unpacked."""
        return sum(row.dense_bytes for row in self.tensors)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all tensors, packed in device memory."""
        return sum(row.packed_bytes for row in self.tensors)

    @property
    def size(self) -> int:
        """Number of values in all tensors, stored or implied."""
        return sum(row.size for row in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file for each value."""
        return 8.0 * self.file_bytes / max(self.size, 1)

    def plain(self) -> dict[str, Any]:
        """The same as dicts, lists, numbers and strings."""
        rows = [{**dataclasses.asdict(row), "bits_per_weight": row.bits_per_weight} for row in self.tensors]
        return {
            "file_bytes": self.file_bytes, "packed_bytes": self.packed_bytes, "dense_bytes": self.dense_bytes,
            "bits_per_weight": self.bits_per_weight, "step": self.step, "recipe": self.recipe,
            "metadata": dict(self.metadata), "tensors": rows,
        }  # fmt: skip

    def cells(self) -> list[list[str]]:
        """The table as text: headings, a row for each tensor, what else is in the file, and totals."""
        heading = [
            "tensor",
            "shape",
            "dtype",
            "stored as",
            "bits/weight",
            "sparsity",
            "packed",
            "in the file",
        ]
        rows = [heading, *(_cells(row) for row in self.tensors)]
        rest = self.file_bytes - sum(row.file_bytes for row in self.tensors)
        rows.append(["header and checksums", *[""] * 6, f"{rest:,}"])
        total = [f"{len(self.tensors)} tensors", "", "", "", f"{self.bits_per_weight:.2f}", ""]
        rows.append([*total, f"{self.packed_bytes:,}", f"{self.file_bytes:,}"])
        return rows

    def __str__(self) -> str:
        sizes = f"{self.dense_bytes:,} bytes dense, {self.packed_bytes:,} packed in memory"
        lines = [*_aligned(self.cells(), left=4), "", f"{sizes}, {self.file_bytes:,} in the file"]
        lines += [f"after {self.step:,} steps of training"] if self.step else []
        lines += [f"metadata: {name} = {str(value)[:80]}" for name, value in self.metadata.items()]
        return "\n".join(lines)


@unwatched()
def inspect(
    model: str | os.PathLike[str] | Packed, *, progress: Progress | None = None, limit: int | None = None
) -> Report:
    """What a compressed model holds: a row for each tensor, totals, recipe, step and metadata.

    Args:
      model: a `.mz` file, or a `Packed` model, whose file is then made in memory.
      progress: see `mz.load`.
      limit: bytes that a file's tensors may take in memory, see `mz.load`.

    Raises:
      FormatError: the file is damaged or foreign, or claims more than `limit`.
      OSError: it cannot be opened.

    >>> import numpy as np, modelzip_jax as mz
    >>> found = inspect(mz.compress({"w": np.eye(64, dtype=np.float32)}, mz.quantize(bits=4)))
    >>> found.tensors[0].form, found.dense_bytes, found.file_bytes < 1000
    ('int4 channel', 16384, True)
    >>> print(str(found).splitlines()[0])
    tensor                shape  dtype    stored as     bits/weight  sparsity  packed  in the file
    """
    if not isinstance(model, Packed):
        if not isinstance(model, str | os.PathLike):
            raise TransformError(
                f"inspect() takes the path of a .mz file or a packed model, not a {type(model).__name__}"
            )
        with Archive(model, limit=limit) as archive:
            return _report(archive, archive.leaves(), progress)
    with Archive(io.BytesIO(encoded(model)), limit=_UNLIMITED) as archive:
        tree = {"params": model.params, "variables": dense(model.variables)}
        return _report(archive, jax.tree.leaves(tree, is_leaf=is_packed), progress)


def tensors(path: str | os.PathLike[str]) -> list[TensorReport]:
    """The rows of `inspect`.

    >>> import tempfile, numpy as np, modelzip_jax as mz
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     packed = mz.compress({"w": np.eye(64, dtype=np.float32)}, mz.quantize(bits=4))
    ...     _ = mz.save(folder + "/model.mz", packed)
    ...     tensors(folder + "/model.mz")[0].form
    'int4 channel'
    """
    return list(inspect(path).tensors)


def _report(archive: Archive, leaves: Iterable[PackedArray], progress: Progress | None) -> Report:
    header: Header = archive.header
    rows = []
    for name, leaf, spec, size in zip(
        archive.names, leaves, header.specs, archive.coded_bytes(), strict=True
    ):
        rows.append(_row(name.removeprefix("params/"), leaf, spec, size))
        if progress:
            progress(name, size)
    return Report(tuple(rows), archive.size, header.recipe, header.step, header.metadata)


def _row(name: str, packed: PackedArray, spec: Any, coded: int) -> TensorReport:
    # Of the leaf as it is: a 64-bit one would be narrowed on its way through JAX.
    dtype = (
        packed.array.dtype
        if isinstance(packed, Dense)
        else jax.eval_shape(lambda p: p.unpack(), packed).dtype
    )
    return TensorReport(
        name, packed.shape, str(np.dtype(dtype)), describe(packed, spec), packed.size, sparsity(packed),
        unpacked_bytes(packed), packed.nbytes, coded,
    )  # fmt: skip


def _cells(row: TensorReport) -> list[str]:
    shape = "×".join(map(str, row.shape)) or "scalar"
    zeros = f"{row.sparsity:.1%}" if row.sparsity else ""
    return [
        row.name, shape, row.dtype, row.form, f"{row.bits_per_weight:.2f}", zeros, f"{row.packed_bytes:,}",
        f"{row.file_bytes:,}",
    ]  # fmt: skip


def _aligned(rows: list[list[str]], left: int) -> list[str]:
    """The rows as lines of columns, the first `left` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
