"""`.safetensors`: a JSON header and the tensors' bytes, one after the other.

The format is eight bytes (the header's length, little-endian), the header (JSON, from a name to
`dtype`, `shape` and `data_offsets`), and the data. The reader is our own, because the library's
copies every tensor out of a mapped file to wherever the allocator puts it; this one reads each into
an aligned buffer that `jax.device_put` on the CPU shares, so that a checkpoint costs its size and
not twice that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from modelzip_jax.atomic import atomic_file
from modelzip_jax.checkpoints.arrays import DTYPES, aligned_empty, as_stored, fill, raw_bytes
from modelzip_jax.checkpoints.contents import Contents
from modelzip_jax.checkpoints.names import flatten, ordered, unflatten
from modelzip_jax.errors import CheckpointError

__all__ = ["read", "write"]

SEPARATOR = "."
METADATA = "__metadata__"
MAX_HEADER = 100_000_000  # bytes, as in the reference implementation
# Data that begin at such an offset stay aligned when somebody maps the file.
DATA_ALIGNMENT = 64

CODES: dict[str, np.dtype[Any]] = {
    "BOOL": DTYPES["bool"],
    "I8": DTYPES["int8"],
    "I16": DTYPES["int16"],
    "I32": DTYPES["int32"],
    "I64": DTYPES["int64"],
    "U8": DTYPES["uint8"],
    "U16": DTYPES["uint16"],
    "U32": DTYPES["uint32"],
    "U64": DTYPES["uint64"],
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
    "F32": DTYPES["float32"],
    "F64": DTYPES["float64"],
    "C64": DTYPES["complex64"],
    "F8_E4M3": DTYPES["float8_e4m3fn"],
    "F8_E5M2": DTYPES["float8_e5m2"],
    "F8_E8M0": DTYPES["float8_e8m0fnu"],
    "F8_E4M3FNUZ": DTYPES["float8_e4m3fnuz"],
    "F8_E5M2FNUZ": DTYPES["float8_e5m2fnuz"],
}
CODE_OF = {dtype: code for code, dtype in CODES.items()}


class Entry(NamedTuple):
    """One tensor of the header; `begin` and `end` are bytes from the start of the data."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


class Stored(NamedTuple):
    """The tensors of a file by name, in the order of its header, and the strings beside them."""

    flat: dict[str, np.ndarray]
    metadata: dict[str, str]


def read(path: Path) -> Contents:
    """The tensors of a file as nested dicts, split at the dots of their names."""
    return contents([read_flat(path)])


def contents(files: Sequence[Stored]) -> Contents:
    """The tensors of one file, or of several one after the other, as nested dicts."""
    flat = {name: array for stored in files for name, array in stored.flat.items()}
    metadata = {name: text for stored in reversed(files) for name, text in stored.metadata.items()}
    places = {name: place for place, name in enumerate(flat)}
    return Contents(unflatten(flat, SEPARATOR), unflatten(places, SEPARATOR), metadata)


def read_flat(path: Path) -> Stored:
    """The tensors of a file under the names that they have there."""
    with open(path, "rb", buffering=0) as file:
        entries, names, metadata = _read_header(file, path.stat().st_size)
        flat: dict[str, Any] = dict.fromkeys(names)
        for entry in entries:
            array = aligned_empty(entry.shape, entry.dtype)
            fill(array, file)  # the entries are contiguous, in the order of the data
            flat[entry.name] = array
    return Stored(flat, metadata)


def write(
    path: Path,
    params: Any,
    order: Sequence[int] | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Writes the leaves tensor by tensor, so that at most one is held twice.

    order: of the tensors, as indices of the tree's leaves; wide types first, then by name, if None. metadata: strings
    by name for the header.
    """
    flat = flatten(params, SEPARATOR)
    if METADATA in flat:
        raise CheckpointError(f"{METADATA!r} is reserved in this format and cannot name a tensor")
    plan = [_planned(name, leaf) for name, leaf in ordered(flat, order or usual_order(params)).items()]
    told = {METADATA: dict(metadata)} if metadata else {}
    text, placed = _header(plan, told)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for item in placed:
            file.write(raw_bytes(as_stored(item.name, flat[item.name])))
            if progress:
                progress(item.name, item.end)


def usual_order(params: Any) -> list[int]:
    """The order in which `write` puts the leaves by itself, as indices of them."""
    plan = [_planned(name, leaf) for name, leaf in flatten(params, SEPARATOR).items()]
    return sorted(range(len(plan)), key=lambda i: (-plan[i].dtype.itemsize, plan[i].name))


def _header(plan: list[Entry], told: dict[str, Any]) -> tuple[bytes, list[Entry]]:
    """The header's text in the order of the plan, and the tensors in the order of their data.

    That is the same order where every tensor then begins at a multiple of its item size; else wide types come first.
    """
    offsets = np.cumsum([0, *(item.end for item in plan)])
    aligned = all(o % item.dtype.itemsize == 0 for o, item in zip(offsets, plan, strict=False))
    placed = plan if aligned else sorted(plan, key=lambda item: -item.dtype.itemsize)
    begins: dict[str, int] = {}
    begin = 0
    for item in placed:
        begins[item.name] = begin
        begin += item.end
    header = told | {
        item.name: {
            "dtype": CODE_OF[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [begins[item.name], begins[item.name] + item.end],
        }
        for item in plan
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise CheckpointError(f"the header would have {len(text)} bytes, above the format's limit")
    return text, placed


def _planned(name: str, leaf: Any) -> Entry:
    # From the attributes where there are any: np.asarray would fetch a device array twice.
    array = leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else as_stored(name, leaf)
    dtype = DTYPES.get(getattr(array.dtype, "name", ""))
    if dtype not in CODE_OF:
        raise CheckpointError(
            f"leaf {name!r} has dtype {array.dtype}, which .safetensors cannot store; "
            "cast it or write another format"
        )
    return Entry(name, dtype, tuple(array.shape), 0, math.prod(array.shape) * dtype.itemsize)


def _read_header(file: BinaryIO, file_size: int) -> tuple[list[Entry], list[str], dict[str, str]]:
    """The checked entries in the order of their data, the names in the header's, and its metadata.

    The file is left at the start of the data.
    """
    prefix = file.read(8)
    if len(prefix) < 8:
        raise CheckpointError(f"it has {file_size} bytes, too few for a header")
    size = int.from_bytes(prefix, "little")
    if size > min(MAX_HEADER, file_size - 8):
        raise CheckpointError(
            f"its first 8 bytes announce a header of {size} bytes in a file of {file_size}: "
            "it is cut short or not in this format"
        )
    text = file.read(size)
    if len(text) < size:
        raise CheckpointError("it ends within the header")
    header = _parse(text)
    metadata = _metadata(header.pop(METADATA, None) or {})
    entries = [_entry(name, value) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise CheckpointError(
                f"tensor {entry.name!r} begins at byte {entry.begin} of the data where byte "
                f"{position} was due: the tensors overlap or leave a gap"
            )
        position = entry.end
    if position != file_size - 8 - size:
        raise CheckpointError(
            f"the header describes {position} bytes of data and the file has "
            f"{file_size - 8 - size}: it is cut short or has bytes after its end"
        )
    return entries, list(header), metadata


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"its {METADATA} are no strings by name: {_short(value)}")
    return value


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError("its header is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a name occurs twice")
    return keys


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise CheckpointError(f"tensor {name!r} has no dtype, shape and data_offsets in the header")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in CODES:
        raise CheckpointError(f"tensor {name!r} has dtype {code!r}; known are {', '.join(CODES)}")
    if not _sizes(shape) or len(shape) > 32:
        raise CheckpointError(f"tensor {name!r} has the invalid shape {_short(shape)}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"tensor {name!r} has the invalid offsets {_short(offsets)}")
    begin, end = offsets
    needed = math.prod(shape) * CODES[code].itemsize
    if end - begin != needed:
        raise CheckpointError(
            f"tensor {name!r} ({code}, shape {_short(shape)}) needs {needed} bytes, and "
            f"its offsets give it {end - begin}"
        )
    return Entry(name, CODES[code], tuple(shape), begin, end)


def _sizes(value: Any) -> bool:
    """Whether a JSON value is a list of sizes that NumPy can hold."""
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**62 for x in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
