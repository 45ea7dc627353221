"""`.msgpack`: what `flax.serialization.to_bytes` writes and `msgpack_restore` reads.

Arrays are extension type 1, holding a MessagePack list of shape, dtype name and bytes; numbers with
a dtype are type 3, Python complex numbers type 2. Arrays above 2**30 bytes are cut into a dict of
pieces, since an item may not exceed 2**32 bytes. Flax builds the whole file in memory, and copies
each array twice while reading; here arrays stream to the file, and are copied once into aligned
buffers.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from modelzip_jax.atomic import atomic_file
from modelzip_jax.checkpoints.arrays import DTYPES, aligned_empty, as_stored, raw_bytes
from modelzip_jax.checkpoints.contents import Contents
from modelzip_jax.errors import CheckpointError, MissingExtraError

__all__ = ["read", "write"]

ARRAY, COMPLEX, SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
MAX_CHUNK = 2**30  # bytes, Flax's own limit
MOST_ITEMS, BYTES_AN_ITEM = 1 << 18, 64
# Of each code: bytes that it takes, and if there are more the number that says how many. Lists and maps: their head.
_WIDTHS = {
    **{0xCA: (5, ""), 0xCB: (9, ""), 0xCC: (2, ""), 0xCD: (3, ""), 0xCE: (5, ""), 0xCF: (9, "")},
    **{0xD0: (2, ""), 0xD1: (3, ""), 0xD2: (5, ""), 0xD3: (9, "")},
    **{0xD4: (3, ""), 0xD5: (4, ""), 0xD6: (6, ""), 0xD7: (10, ""), 0xD8: (18, "")},
    **{0xC4: (1, "B"), 0xC5: (1, ">H"), 0xC6: (1, ">I"), 0xD9: (1, "B"), 0xDA: (1, ">H"), 0xDB: (1, ">I")},
    **{0xC7: (2, "B"), 0xC8: (2, ">H"), 0xC9: (2, ">I")},
    **{0xDC: (3, ""), 0xDD: (5, ""), 0xDE: (3, ""), 0xDF: (5, "")},
}
HEAD = 4096  # bytes, more than the shape and dtype of any array take


def read(path: Path) -> Contents:
    """The tree as it was written: {"params": ...}, a bare dict of layers or a whole train state."""
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        # Every length is within the file's: msgpack sets its limits so when given all the data.
        _check_items(data)
        hook = functools.partial(_extension_of, data)
        tree = msgpack.unpackb(data, ext_hook=hook, raw=False, strict_map_key=False)
    return Contents(_joined(tree))


def write(path: Path, params: Any) -> None:
    """Writes what `flax.serialization.to_bytes(params)` returns, without building it in memory."""
    try:
        from flax import serialization
    except ImportError as error:
        raise MissingExtraError("writing .msgpack needs flax: pip install flax") from error
    try:
        state = serialization.to_state_dict(params)
    except AssertionError as error:
        raise CheckpointError(f"the tree cannot become a state dict: {error}") from error
    with atomic_file(path) as file:
        for piece in _packed(state, ""):
            file.write(piece)


def _check_items(data: mmap.mmap) -> None:
    """Refuses what holds more items than checkpoints do: an empty map is a byte here, and a hundred in memory."""
    most = MOST_ITEMS + len(data) // BYTES_AN_ITEM
    at, items = 0, 0
    while at < len(data):
        items += 1
        if items > most:
            raise CheckpointError(
                f"it holds more than {most} items in {len(data)} bytes, which no checkpoint does"
            )
        at += _width(data, at)


def _width(data: mmap.mmap, at: int) -> int:
    """Bytes from one item to the next; those inside a list or map are items of their own."""
    code = data[at]
    if 0xA0 <= code <= 0xBF:
        return 1 + (code & 0x1F)
    fixed, counted = _WIDTHS.get(code, (1, ""))
    if not counted:
        return fixed
    size = struct.calcsize(counted)
    if at + 1 + size > len(data):
        raise CheckpointError("it is cut short")
    return fixed + size + int(struct.unpack_from(counted, data, at + 1)[0])


def _extension_of(source: mmap.mmap, code: int, data: bytes) -> Any:
    # The mapped pages of what is already copied would otherwise count as memory until the end.
    if len(data) > 2**20 and hasattr(mmap, "MADV_DONTNEED"):
        source.madvise(mmap.MADV_DONTNEED)
    return _extension(code, data)


def _extension(code: int, data: bytes) -> Any:
    if code in (ARRAY, SCALAR):
        array = _array(memoryview(data))
        return array if code == ARRAY else array[()]
    if code == COMPLEX:
        real, imaginary = msgpack.unpackb(data)
        return complex(real, imaginary)
    raise CheckpointError(f"it holds the extension type {code}, which Flax does not write")


def _array(data: memoryview) -> np.ndarray:
    """An array from (shape, dtype name, bytes), its bytes copied once."""
    head = msgpack.Unpacker(raw=True)
    head.feed(data[:HEAD])
    if head.read_array_header() != 3:
        raise CheckpointError("an array is not stored as shape, dtype and bytes")
    shape, name = head.unpack(), head.unpack()
    dtype = DTYPES.get(name.decode("ascii", "replace")) if isinstance(name, bytes) else None
    if dtype is None:
        raise CheckpointError(f"an array has the dtype {name!r}, not a known type of numbers")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise CheckpointError("an array has an invalid shape")
    content = _bytes_item(data[head.tell() :])
    if len(shape) > 32 or math.prod(shape) * dtype.itemsize != len(content):
        raise CheckpointError(
            f"an array of shape {tuple(shape)} and dtype {dtype} is stored in {len(content)} bytes"
        )
    array = aligned_empty(shape, dtype)
    raw_bytes(array)[:] = content
    return array


def _bytes_item(data: memoryview) -> memoryview:
    """The content of the one MessagePack byte string in `data`, shared with it."""
    widths = {0xC4: "B", 0xC5: ">H", 0xC6: ">I", 0xD9: "B", 0xDA: ">H", 0xDB: ">I"}
    code = data[0] if len(data) else 0
    if code & 0xE0 == 0xA0:  # the old format's short strings
        start, size = 1, code & 0x1F
    elif code in widths and len(data) > struct.calcsize(widths[code]):
        (size,) = struct.unpack_from(widths[code], data, 1)
        start = 1 + struct.calcsize(widths[code])
    else:
        raise CheckpointError("an array's bytes are missing")
    if start + size != len(data):
        raise CheckpointError("an array's bytes are cut short or followed by others")
    return data[start:]


def _joined(node: Any) -> Any:
    """The tree with the pieces of large arrays put together, in place, to free them one by one."""
    if isinstance(node, list):
        node[:] = map(_joined, node)
    elif isinstance(node, dict) and CHUNKED in node:
        return _joined_array(node)
    elif isinstance(node, dict):
        for key in node:
            node[key] = _joined(node[key])
    return node


def _joined_array(node: dict[Any, Any]) -> np.ndarray:
    shape, pieces = _tuple(node, "shape"), _tuple(node, "chunks")
    if not all(type(n) is int and n >= 0 for n in shape) or not pieces:
        raise CheckpointError("a large array has an invalid shape or no pieces")
    if not all(isinstance(piece, np.ndarray) and piece.ndim == 1 for piece in pieces):
        raise CheckpointError("a piece of a large array is no flat array")
    if len({piece.dtype for piece in pieces}) != 1:
        raise CheckpointError("the pieces of a large array differ in dtype")
    if math.prod(shape) != sum(piece.size for piece in pieces):
        raise CheckpointError(f"the pieces of a large array do not make up its shape {shape}")
    array = aligned_empty(shape, pieces[0].dtype)
    np.concatenate(pieces, out=array.reshape(-1))
    return array


def _tuple(node: dict[Any, Any], key: str) -> tuple[Any, ...]:
    items = node.get(key)
    if not isinstance(items, dict) or set(items) != {str(i) for i in range(len(items))}:
        raise CheckpointError(f"a large array has no valid {key!r}")
    return tuple(items[str(i)] for i in range(len(items)))


def _packed(node: Any, name: str) -> Iterator[bytes | memoryview]:
    if isinstance(node, dict):
        yield msgpack.Packer().pack_map_header(len(node))
        for key, child in node.items():
            yield msgpack.packb(key)
            yield from _packed(child, f"{name}/{key}" if name else str(key))
    elif node is None or type(node) in (bool, int, float, str, bytes):
        yield msgpack.packb(node)
    elif type(node) is complex:
        yield msgpack.packb(msgpack.ExtType(COMPLEX, msgpack.packb((node.real, node.imag))))
    elif isinstance(node, np.generic):
        yield from _packed_array(as_stored(name, node), SCALAR)
    else:
        array = as_stored(name, node)
        if array.nbytes > MAX_CHUNK:
            yield from _packed(_chunked(array), name)
        else:
            yield from _packed_array(array, ARRAY)


def _packed_array(array: np.ndarray, code: int) -> Iterator[bytes | memoryview]:
    content = raw_bytes(array)
    head = msgpack.Packer().pack_array_header(3)
    head += msgpack.packb(array.shape) + msgpack.packb(array.dtype.name)
    if len(content) < 2**16:
        yield msgpack.packb(msgpack.ExtType(code, head + msgpack.packb(bytes(content))))
        return
    head += b"\xc6" + struct.pack(">I", len(content))
    yield b"\xc9" + struct.pack(">Ib", len(head) + len(content), code) + head
    yield content


def _chunked(array: np.ndarray) -> dict[str, Any]:
    flat = array.reshape(-1)
    size = max(1, MAX_CHUNK // array.dtype.itemsize)
    pieces = [flat[start : start + size] for start in range(0, flat.size, size)]
    return {
        CHUNKED: True,
        "shape": {str(i): n for i, n in enumerate(array.shape)},
        "chunks": {str(i): piece for i, piece in enumerate(pieces)},
    }
