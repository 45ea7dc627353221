"""What a compressed file holds, tensor by tensor, side information included."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from modelzip_jax.coding.reader import Archive
from modelzip_jax.masking.masked import Masked
from modelzip_jax.packed import Dense, PackedArray
from modelzip_jax.packing import unpacked_bytes
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.sharing.clustered import Clustered, VectorClustered

__all__ = ["TensorReport", "describe", "tensors"]


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


def tensors(path: str | os.PathLike[str]) -> list[TensorReport]:
    """The report of every tensor in a `.mz` file, in the order of the file.

    Raises:
      FormatError: the file is damaged or foreign.

    >>> import tempfile, numpy as np, modelzip_jax as mz
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     packed = mz.compress({"w": np.eye(64, dtype=np.float32)}, mz.quantize(bits=4))
    ...     _ = mz.save(folder + "/model.mz", packed)
    ...     tensors(folder + "/model.mz")[0].form
    'int4 channel'
    """
    with Archive(path) as archive:
        specs, coded = archive.header.specs, archive.coded_bytes()
        rows = zip(archive.names, archive.leaves(), specs, coded, strict=True)
        return [_report(name.removeprefix("params/"), leaf, spec, size) for name, leaf, spec, size in rows]


def _report(name: str, packed: PackedArray, spec: Any, coded: int) -> TensorReport:
    dense_bytes = unpacked_bytes(packed)
    itemsize = dense_bytes // max(packed.size, 1)
    sparsity = 1.0 - packed.kept / packed.size if isinstance(packed, Masked) and packed.size else 0.0
    dtype = getattr(packed, "dtype", None) or f"{8 * itemsize} bit"
    if isinstance(packed, Dense):
        dtype = str(packed.array.dtype)
    return TensorReport(
        name, packed.shape, str(dtype), describe(packed, spec), packed.size, sparsity, dense_bytes,
        packed.nbytes, coded,
    )  # fmt: skip


def describe(packed: PackedArray, spec: Any = None) -> str:
    """How a packed array is stored, in a few words; with its spec, how the file stores its mask.

    >>> import numpy as np
    >>> describe(Dense(np.zeros(3), (3,)))
    'lossless'
    """
    if isinstance(packed, Dense):
        return "lossless"
    if isinstance(packed, Quantized):
        group = f"({packed.group_size})" if packed.granularity == "group" else ""
        sign = "u" if packed.zero is not None else ""
        return f"{sign}int{packed.codes.bits} {packed.granularity}{group}"
    if isinstance(packed, Clustered):
        return f"{len(packed.codebook)} values"
    if isinstance(packed, VectorClustered):
        return f"{len(packed.codebook)} vectors of {packed.codebook.shape[1]}"
    if isinstance(packed, Masked):
        forms = {"bits": "bitmap", "gaps": "gaps", "implied": "among codes"}
        form = f" ({forms[spec[1][0]]})" if spec else ""
        return f"mask{form} + {describe(packed.inner)}"
    return packed.tag
