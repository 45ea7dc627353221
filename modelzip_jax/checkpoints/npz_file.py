"""`.npz`: a zip archive with one `.npy` member an array, named by the path joined with "/".

NumPy knows no bfloat16 and stores it as two nameless bytes. Such dtypes (bfloat16, the float8 and
int4 families) are written as the unsigned integers of their size under a name that ends in "@" and
the dtype: "dense/kernel@bfloat16". Nameless two-byte items (`V2`), which `np.savez` makes of a JAX
bfloat16 array, are read as bfloat16: NumPy's own 16-bit types are never stored so.
"""

from __future__ import annotations

import ast
import math
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from modelzip_jax.atomic import atomic_file
from modelzip_jax.checkpoints.arrays import (
    DTYPES,
    EXTENSION_DTYPES,
    Readable,
    aligned_empty,
    as_stored,
    fill,
    raw_bytes,
)
from modelzip_jax.checkpoints.contents import Contents
from modelzip_jax.checkpoints.names import flatten, ordered, unflatten
from modelzip_jax.errors import CheckpointError

__all__ = ["read", "write"]

SEPARATOR = "/"
MARK = "@"
NPY_MAGIC = b"\x93NUMPY"
MAX_HEADER = 1 << 12  # bytes; a shape and a dtype take about a hundred, and what is longer may be nested
MAX_DEFLATE_RATIO = 1032  # what the deflate format can reach


def read(path: Path) -> Contents:
    """The arrays of an archive as nested dicts, split at the slashes of their names."""
    with zipfile.ZipFile(path) as archive:
        flat: dict[str, np.ndarray] = {}
        for info in archive.infolist():
            name, array = _read_member(archive, info, path.stat().st_size)
            if name in flat:
                raise CheckpointError(f"the array {name!r} occurs twice")
            flat[name] = array
    places = {name: place for place, name in enumerate(flat)}
    return Contents(unflatten(flat, SEPARATOR), unflatten(places, SEPARATOR))


def write(
    path: Path,
    params: Any,
    order: Sequence[int] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Writes an uncompressed archive, array by array, in the order of the tree's leaves or another one."""
    flat = ordered(flatten(params, SEPARATOR), order)
    for name in flat:
        if _split_mark(name)[1] is not None:
            raise CheckpointError(f"the name {name!r} ends like a dtype mark of this format; rename the leaf")
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, leaf in flat.items():
            array = as_stored(name, leaf)
            if array.dtype.name in EXTENSION_DTYPES:
                name += MARK + array.dtype.name
                array = array.view(f"u{array.dtype.itemsize}")
            header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
            # A fixed date, so that the same weights give the same bytes.
            info = zipfile.ZipInfo(name + ".npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(cast(Any, member), header)
                member.write(raw_bytes(array))
            if progress:
                progress(name, array.nbytes)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file_size: int) -> tuple[str, np.ndarray]:
    if not info.filename.endswith(".npy"):
        raise CheckpointError(f"its member {info.filename!r} is no .npy array")
    name = info.filename.removesuffix(".npy")
    ratio = MAX_DEFLATE_RATIO if info.compress_type == zipfile.ZIP_DEFLATED else 1
    if info.compress_size > file_size or info.file_size > ratio * info.compress_size + 64:
        raise CheckpointError(f"the array {name!r} claims more bytes than the file can hold")
    with archive.open(info) as member:
        shape, fortran, dtype, header_size = _npy_header(cast(Readable, member), name)
        name, stored, dtype = _meaning(name, dtype)
        needed = math.prod(shape) * stored.itemsize
        if needed != info.file_size - header_size:
            raise CheckpointError(
                f"the array {name!r} (shape {shape}, {dtype}) needs {needed} bytes, and its member "
                f"holds {info.file_size - header_size}"
            )
        array = aligned_empty(shape[::-1] if fortran else shape, stored)
        fill(array, member)
        member.read(1)  # past the end, where zipfile compares the checksum
    if stored.byteorder == ">" or (stored.byteorder == "=" and np.little_endian is False):
        array = array.astype(stored.newbyteorder("="))
    array = array.view(dtype) if dtype != stored.newbyteorder("=") else array
    return name, array.T if fortran else array


def _meaning(name: str, stored: np.dtype[Any]) -> tuple[str, np.dtype[Any], np.dtype[Any]]:
    """The leaf's name, the dtype to read and the dtype it stands for."""
    bare, marked = _split_mark(name)
    if marked is not None and stored.kind == "u" and stored.itemsize == marked.itemsize:
        return bare, stored, marked
    if stored == np.dtype("V2"):
        return name, np.dtype("<u2"), EXTENSION_DTYPES["bfloat16"]
    return name, stored, stored.newbyteorder("=")


def _split_mark(name: str) -> tuple[str, np.dtype[Any] | None]:
    bare, mark, dtype_name = name.rpartition(MARK)
    if mark and dtype_name in EXTENSION_DTYPES:
        return bare, EXTENSION_DTYPES[dtype_name]
    return name, None


def _npy_header(member: Readable, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, Fortran order, stored dtype and the header's bytes, read without trusting any.

    Not NumPy's reader: on damaged headers it warns and falls back to a tokenizer.
    """
    prefix = member.read(8)
    if len(prefix) < 8 or prefix[:6] != NPY_MAGIC:
        raise CheckpointError(f"its member {name!r} is no .npy array")
    width, code = (2, "<H") if prefix[6] == 1 else (4, "<I")
    size_bytes = member.read(width)
    if prefix[6] not in (1, 2, 3) or len(size_bytes) < width:
        raise CheckpointError(f"the array {name!r} has the unknown .npy version {prefix[6]}")
    (size,) = struct.unpack(code, size_bytes)
    text = member.read(min(size, MAX_HEADER))
    if len(text) != size:
        raise CheckpointError(f"the header of the array {name!r} is cut short or too long")
    try:
        header = ast.literal_eval(text.decode("utf-8" if prefix[6] == 3 else "latin1").strip())
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"the header of array {name!r} cannot be read: {error}") from error
    sizes = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**62 for n in shape)
    if not sizes or len(shape) > 32 or not isinstance(fortran, bool):
        raise CheckpointError(f"the header of the array {name!r} has an invalid shape or order")
    return shape, fortran, _stored_dtype(name, descr), 8 + width + size


def _stored_dtype(name: str, descr: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(descr) if isinstance(descr, str) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is not None and dtype.hasobject:
        raise CheckpointError(
            f"the array {name!r} holds Python objects (a pickle), which are never loaded; "
            "save it again as arrays of numbers"
        )
    if dtype is None or not (dtype.name in DTYPES or dtype == np.dtype("V2")):
        raise CheckpointError(f"the array {name!r} has the dtype {descr!r}, not a type of numbers")
    return dtype
