"""Writing a `.mz` file: two passes over the leaves, one to count and one to code."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from modelzip_jax.atomic import atomic_file
from modelzip_jax.coding import rans, sparse, symbols
from modelzip_jax.coding.header import CHECKSUM, Header, checksum
from modelzip_jax.coding.planes import check_dtype
from modelzip_jax.coding.skeleton import check_names, outline, outline_names
from modelzip_jax.coding.streams import RAW, Plan, Segment, plan_all
from modelzip_jax.errors import FormatError, LeafError, TransformError
from modelzip_jax.jax_settings import unwatched
from modelzip_jax.leaf_checks import check_arrays
from modelzip_jax.metadata import Metadata
from modelzip_jax.packed import PackedArray, is_packed
from modelzip_jax.packing import Packed
from modelzip_jax.recipe import to_plain
from modelzip_jax.transform import dense
from modelzip_jax.tree import PyTree, named_leaves, plain
from modelzip_jax.tree_depth import check_depth

__all__ = ["FileSizes", "Progress", "encoded", "file_sizes", "save"]

Progress = Callable[[str, int], None]
MAX_CHUNK = 4 << 20
MAX_SYMBOLS = 1 << 23
MAX_PIECES = 1024
"""Most segments that a chunk has a part of: a decoder holds 16 KiB for each one's table."""


@dataclasses.dataclass(frozen=True)
class FileSizes:
    """Bytes of a written file, by what they are for.

    total: the file. payload: coded words and raw planes. fixed: prelude and header checksum. tensors:
    recipe, metadata, shapes and codings of all tensors, and the chunks' checksums. names: the tree's structure.
    tables: frequency tables. lanes: the coder's final states.
    """

    total: int
    payload: int
    fixed: int
    tensors: int
    names: int
    tables: int
    lanes: int


@unwatched()
def save(
    path: str | os.PathLike[str],
    packed: Packed,
    *,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> FileSizes:
    """Writes a compressed model to a `.mz` file, atomically.

    Args:
      path: the file; an existing one is replaced once the new one is complete.
      packed: a model from `mz.pack` or `mz.compress`.
      metadata: plain data by name (see `Metadata`) that travel along; those of `packed` if None.
      progress: called with a leaf's path and bytes once it is counted and once it is coded; the bytes of all
        calls sum to those of all packed arrays in memory.

    Returns:
      How many bytes went where.

    Raises:
      LeafError: the variables hold something that is no array.
      FormatError: `metadata` hold something that is no plain data.
      OSError: the disk is full, or the directory missing.

    >>> import tempfile, modelzip_jax as mz
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     packed = mz.compress({"w": np.eye(9, dtype=np.float32)}, mz.quantize(bits=2))
    ...     sizes = mz.save(folder + "/model.mz", packed)
    ...     mz.unpack(mz.load(folder + "/model.mz"))["w"].trace()
    Array(9., dtype=float32)
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(packed, Packed):
        raise TransformError(
            f"save() takes a path and a packed model, mz.save('model.mz', mz.pack(opt_state, params)), not a "
            f"{type(path).__name__} and a {type(packed).__name__}"
        )
    if metadata is not None and not isinstance(metadata, Mapping):
        raise FormatError(f"metadata= takes a dict of plain data by name, not {metadata!r:.80}")
    file = _File.of(packed, metadata, progress)
    with atomic_file(path) as out:
        for piece in file.pieces():
            out.write(piece)
    return file.sizes


def _check_storable(tree: PyTree) -> None:
    """Raises `LeafError` naming the first leaf with what no file stores, such as random keys."""
    for name, packed in named_leaves(tree, is_packed):
        for x in jax.tree.leaves(packed):
            dtype = x.dtype if hasattr(x, "dtype") else np.result_type(x)
            if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
                raise LeafError(
                    f"leaf {name!r} is a random key, which no file stores; pass weights only, for NNX "
                    "nnx.state(model, nnx.Param), or jax.random.key_data(key)"
                )
            try:
                check_dtype(np.dtype(dtype))
            except LeafError as error:
                raise LeafError(f"leaf {name!r}: {error}") from error


def file_sizes(packed: Packed) -> FileSizes:
    """What `save` would return, without writing: everything is coded, nothing but its length is kept.

    >>> import modelzip_jax as mz
    >>> packed = mz.compress({"w": np.eye(9, dtype=np.float32)}, mz.quantize(bits=2))
    >>> file_sizes(packed).total < 200
    True
    """
    return _File.of(packed).sizes


@unwatched()
def encoded(packed: Packed) -> bytes:
    """The bytes of the file that `save` would write.

    >>> import modelzip_jax as mz
    >>> packed = mz.compress({"w": np.eye(9, dtype=np.float32)}, mz.quantize(bits=2))
    >>> len(encoded(packed)) == file_sizes(packed).total
    True
    """
    return b"".join(_File.of(packed, None).pieces())


@dataclasses.dataclass(frozen=True)
class _File:
    """A file that is coded: its header, the coded chunks, and what will be stored raw."""

    head: bytes
    chunks: list[tuple[int, bytes]]
    stored: list[PackedArray]
    plans: list[Plan]
    sizes: FileSizes

    @staticmethod
    def of(
        packed: Packed,
        metadata: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> _File:
        for tree in (packed.params, packed.variables):
            check_depth(tree)
        carried = plain(packed.variables)
        check_arrays(carried)
        tree = {"params": packed.params, "variables": dense(carried)}
        structure, told = (
            outline(tree, is_packed),
            Metadata(packed.metadata if metadata is None else metadata),
        )
        check_names(outline_names(structure))
        _check_storable(packed.params)
        _check_storable(carried)
        leaves = jax.tree.leaves(tree, is_leaf=is_packed)
        halves = [_halves(leaf.nbytes) for leaf in leaves]
        tell = [_telling(progress, outline_names(structure), [half[i] for half in halves]) for i in (0, 1)]
        stored = [sparse.stored(leaf) for leaf in leaves]
        plans = plan_all([functools.partial(symbols.streams, leaf) for leaf in stored], tell[0])
        lanes, target = _layout(plans)
        cut = _cut((n for p in plans for n in p.lengths), target)
        chunks = _code(_segments(stored, plans, tell[1]), cut, lanes)
        header = Header(
            structure, [symbols.packed_spec(leaf) for leaf in stored], plans, lanes,
            [(count, len(data)) for count, data in chunks], to_plain(packed.transform), packed.step, told,
        )  # fmt: skip
        head, parts = header.to_bytes()
        raw = sum(p.length for p in plans if p.coding == RAW)
        checks = CHECKSUM * (len(chunks) + -(-raw // MAX_CHUNK))
        flush = len(chunks) * rans.header_bytes(lanes)
        coded = sum(len(data) for _, data in chunks)
        parts["tensors"] += checks
        total = len(head) + coded + raw + checks
        sizes = FileSizes(total=total, payload=coded - flush + raw, lanes=flush, **parts)
        return _File(head, chunks, stored, plans, sizes)

    def pieces(self) -> Iterator[bytes]:
        """All bytes of the file, in order."""
        yield self.head
        for _, data in self.chunks:
            yield checksum(data) + data
        for piece in _raw_chunks(self.stored, self.plans):
            yield checksum(piece)
            yield piece


def _layout(plans: list[Plan]) -> tuple[int, int]:
    """Lanes, and the symbols that a chunk aims at: chunks are as equal as their number allows."""
    coded = int(sum(b for p in plans for b in p.bits) / 8)
    count = sum(n for p in plans for n in p.lengths)
    segments = sum(len(p.lengths) for p in plans)
    chunks = max(
        -(-coded // (MAX_CHUNK - MAX_CHUNK // 32)), -(-count // MAX_SYMBOLS), -(-segments // MAX_PIECES), 1
    )
    return rans.choose_lanes(coded // chunks, count // chunks), -(-count // chunks)


def _halves(size: int) -> tuple[int, int]:
    """What a leaf's bytes count for in each of the two passes."""
    return size // 2, size - size // 2


def _telling(progress: Progress | None, paths: list[str], sizes: list[int]) -> Callable[[int], None]:
    """Tells that a pass is through with a leaf, by its index."""
    return lambda index: progress(paths[index], sizes[index]) if progress else None


def _segments(stored: list[PackedArray], plans: list[Plan], done: Callable[[int], None]) -> Iterator[Segment]:
    """Everything coded, in order."""
    todo = iter(plans)
    for index, leaf in enumerate(stored):
        for stream in symbols.streams(leaf):
            yield from next(todo).segments(stream)
        done(index)


def _raw_chunks(stored: list[PackedArray], plans: list[Plan]) -> Iterator[bytes]:
    """Everything raw, one after the other, in pieces of exactly `MAX_CHUNK` bytes and a rest."""
    todo, pending = iter(plans), bytearray()
    for leaf in stored:
        for stream in symbols.streams(leaf):
            if next(todo).coding != RAW:
                continue
            pending += stream.tobytes()
            while len(pending) >= MAX_CHUNK:
                yield bytes(pending[:MAX_CHUNK])
                del pending[:MAX_CHUNK]
    if pending:
        yield bytes(pending)


def _cut(lengths: Iterable[int], target: int) -> list[list[int]]:
    """The lengths of the pieces of segments in each chunk of `target` symbols.

    >>> _cut([5, 1, 4], target=4)
    [[4], [1, 1, 2], [2]]
    """
    chunks: list[list[int]] = []
    room = 0
    for length in lengths:
        while length:
            if room == 0 or len(chunks[-1]) == MAX_PIECES:
                chunks.append([])
                room = target
            chunks[-1].append(min(length, room))
            length, room = length - chunks[-1][-1], room - chunks[-1][-1]
    return chunks


def _code(segments: Iterator[Segment], chunks: list[list[int]], lanes: int) -> list[tuple[int, bytes]]:
    """`(symbols, coded bytes)` of each chunk, all by one compiled kernel."""
    rows = max((rans.rows_needed(chunk, lanes) for chunk in chunks), default=1)
    capacity = rans.round_capacity(rows, 1, max(map(len, chunks), default=1))
    coded: list[tuple[int, bytes]] = []
    rest = Segment(np.empty(0, np.uint8), np.empty(0))
    for chunk in chunks:
        pieces = []
        for length in chunk:
            while rest.symbols.size == 0:
                rest = next(segments)
            pieces.append(rest._replace(symbols=rest.symbols[:length]))
            rest = rest._replace(symbols=rest.symbols[length:])
        coded += _encode(pieces, lanes, capacity)
    for _ in segments:  # None has symbols; leaves at the end that are raw or empty are told of.
        pass
    return coded


def _encode(pieces: list[Segment], lanes: int, capacity: rans.Capacity) -> list[tuple[int, bytes]]:
    """One chunk, or several if it turns out larger than a chunk may be."""
    data = rans.encode(
        [piece.symbols for piece in pieces],
        range(len(pieces)),
        np.stack([piece.table for piece in pieces]),
        lanes,
        capacity,
        [piece.rare for piece in pieces],
    )
    count = sum(piece.symbols.size for piece in pieces)
    if len(data) <= MAX_CHUNK or count < 2:
        return [(count, data)]
    first, second, room = [], [], count // 2
    for piece in pieces:
        first.append(piece._replace(symbols=piece.symbols[:room]))
        second.append(piece._replace(symbols=piece.symbols[room:]))
        room = max(room - piece.symbols.size, 0)
    halves = [[piece for piece in half if piece.symbols.size] for half in (first, second)]
    return _encode(halves[0], lanes, capacity) + _encode(halves[1], lanes, capacity)
