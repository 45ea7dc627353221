"""Reading a `.mz` file, tensor by tensor, by decoding only the chunks that each is in."""

from __future__ import annotations

import collections
import functools
import math
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import jax
import numpy as np

from modelzip_jax.coding import escapes, rans, skeleton, sparse, symbols
from modelzip_jax.coding.claims import claimed_bytes
from modelzip_jax.coding.header import CHECKSUM, Header, checksum
from modelzip_jax.coding.streams import ESCAPED, RAW, REPEATED
from modelzip_jax.coding.writer import MAX_CHUNK, MAX_PIECES
from modelzip_jax.errors import FormatError, ModelzipError, OutOfMemoryError, TransformError
from modelzip_jax.jax_settings import as_compiled
from modelzip_jax.packed import Dense, PackedArray

__all__ = ["Archive"]


class Archive:
    """An open `.mz` file. Reading a tensor decodes the chunks that hold it and no others.

    Args:
      source: the file's path, or an open binary file that can seek.
      limit: bytes that the tensors may take in memory, see `load`.

    Threads may share it: they wait for each other.

    Raises:
      FormatError: the file is foreign, newer, truncated or damaged; the message names the place.
      OutOfMemoryError: it may be sound, and this machine has too little memory for it.
      OSError: it cannot be opened.
    """

    def __init__(self, source: str | os.PathLike[str] | BinaryIO, *, limit: int | None = None):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise TransformError(f"limit= is a number of bytes, not {limit!r}")
        named = isinstance(source, str | os.PathLike)
        self.path = Path(source) if named else Path("(memory)")  # type: ignore[arg-type]
        self._file: BinaryIO = open(source, "rb") if named else source  # type: ignore  # noqa: SIM115
        try:
            self.size = self._file.seek(0, os.SEEK_END)
            self._file.seek(0)
            self.header, start = Header.read(self._file, self.size, limit)
            self._locate(start)
        except BaseException as error:
            self._file.close()
            if isinstance(error, ModelzipError):
                raise FormatError(f"{self.path}: {error}") from error
            if _exhausts(error):
                raise OutOfMemoryError(f"{self.path}: there is not enough memory for its header") from error
            raise
        self._lock = threading.RLock()
        self._cached: tuple[int, dict[int, np.ndarray]] | None = None
        self._cached_raw: tuple[int, bytes] | None = None
        self._repeated: dict[int, np.ndarray] = {}
        self._repeats_left = collections.Counter[int]()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _locate(self, start: int) -> None:
        """Works out where each chunk, segment and stream is; all from the checked header."""
        header = self.header
        self._lengths = [n for p in header.plans for n in p.lengths]
        self._tables = [t for p in header.plans for t in p.tables]
        self._segment_ends = np.cumsum([0, *self._lengths])
        self._symbol_ends = np.cumsum([0, *(count for count, _ in header.chunks)])
        self._offsets = start + np.cumsum([0, *(size + CHECKSUM for _, size in header.chunks)])
        raw = sum(p.length for p in header.plans if p.coding == RAW)
        pieces = -(-raw // MAX_CHUNK)
        self._raw_start, self._raw_size = int(self._offsets[-1]), raw
        end = self._raw_start + raw + CHECKSUM * pieces
        if end != self.size:
            what = "truncated" if end > self.size else "followed by foreign bytes"
            raise FormatError(f"{what}: the weights end at byte {end}, the file at {self.size}")
        per_leaf = [len(symbols.stream_lengths(spec)) for spec in header.specs]
        self._first_stream = np.cumsum([0, *per_leaf])
        self._first_segment = np.cumsum([0, *(len(p.lengths) for p in header.plans)])
        self._raw_ends = np.cumsum([0, *(p.length if p.coding == RAW else 0 for p in header.plans)])
        self._check_chunks()

    def _check_chunks(self) -> None:
        needs = [self._needs(chunk) for chunk in range(len(self.header.chunks))]
        largest = [max((n[i] for n in needs), default=1) for i in range(3)]
        for chunk, (rows, words, pieces) in enumerate(needs):
            if (
                rows * self.header.lanes > rans.MAX_CELLS
                or words > self.header.chunks[chunk][0]
                or pieces > MAX_PIECES
            ):
                raise FormatError(f"chunk {chunk} claims {rows} rows, {words} words and {pieces} segments")
        self.capacity = rans.round_capacity(*largest)

    def _needs(self, chunk: int) -> tuple[int, int, int]:
        """Rows, words and tables of a chunk."""
        pieces = self._pieces(chunk)
        rows = rans.rows_needed([stop - start for _, start, stop in pieces], self.header.lanes)
        return rows, rans.words_held(self.header.chunks[chunk][1], self.header.lanes), len(pieces)

    def _pieces(self, chunk: int) -> list[tuple[int, int, int]]:
        """`(segment, start, stop)` of the parts of segments that a chunk holds."""
        low, high = int(self._symbol_ends[chunk]), int(self._symbol_ends[chunk + 1])
        first = int(np.searchsorted(self._segment_ends, low, side="right")) - 1
        pieces = []
        for segment in range(max(first, 0), len(self._lengths)):
            begin, end = int(self._segment_ends[segment]), int(self._segment_ends[segment + 1])
            if begin >= high:
                break
            start, stop = max(low, begin) - begin, min(high, end) - begin
            if stop > start:
                pieces.append((segment, start, stop))
        return pieces

    def _read(self, offset: int, size: int, what: str) -> bytes:
        self._file.seek(offset)
        expected, data = self._file.read(CHECKSUM), self._file.read(size)
        if len(data) != size or checksum(data) != expected:
            raise FormatError(
                f"{what} (bytes {offset} to {offset + CHECKSUM + size}) is damaged: its checksum "
                "does not match"
            )
        return data

    def _chunk(self, chunk: int) -> dict[int, np.ndarray]:
        """The symbols of each segment with a piece in a chunk, decoded; the last one is remembered."""
        if self._cached is None or self._cached[0] != chunk:
            pieces = self._pieces(chunk)
            data = self._read(int(self._offsets[chunk]), self.header.chunks[chunk][1], f"chunk {chunk}")
            tables = np.stack([self._tables[segment] for segment, _, _ in pieces])
            lengths = [stop - start for _, start, stop in pieces]
            try:
                decoded = rans.decode(
                    data, lengths, list(range(len(pieces))), tables, self.header.lanes, self.capacity
                )
            except FormatError as error:
                raise FormatError(f"chunk {chunk}: {error}") from error
            self._cached = (chunk, {piece[0]: part for piece, part in zip(pieces, decoded, strict=True)})
        return self._cached[1]

    def _segment(self, segment: int) -> np.ndarray:
        """The symbols of a segment: uint8 1-D, a view where one chunk holds them all."""
        low, high = int(self._segment_ends[segment]), int(self._segment_ends[segment + 1])
        if low == high:
            return np.empty(0, np.uint8)
        first = int(np.searchsorted(self._symbol_ends, low, side="right")) - 1
        last = int(np.searchsorted(self._symbol_ends, high, side="left")) - 1
        found = []
        for chunk in range(first, last + 1):
            part = self._chunk(chunk).get(segment)
            found += [part] if part is not None else []
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _raw(self, stream: int) -> np.ndarray:
        low, high = int(self._raw_ends[stream]), int(self._raw_ends[stream + 1])
        out = np.empty(high - low, np.uint8)
        position = low
        while position < high:
            piece, skip = divmod(position, MAX_CHUNK)
            if self._cached_raw is None or self._cached_raw[0] != piece:
                offset = self._raw_start + piece * (MAX_CHUNK + CHECKSUM)
                size = min(MAX_CHUNK, self._raw_size - piece * MAX_CHUNK)
                self._cached_raw = (piece, self._read(offset, size, f"raw chunk {piece}"))
            part = np.frombuffer(self._cached_raw[1], np.uint8)[skip : skip + high - position]
            out[position - low : position - low + part.size] = part
            position += part.size
        return out

    def _stream(self, stream: int) -> np.ndarray:
        plan = self.header.plans[stream]
        first = stream - plan.back
        if plan.coding != REPEATED:
            found = self._decoded(stream)
            if self._repeats_left[stream]:
                self._repeated[stream] = found.copy()  # A view would keep its whole chunk.
            return found
        if first not in self._repeated:
            return self._decoded(first)
        self._repeats_left[first] -= 1
        return self._repeated[first] if self._repeats_left[first] else self._repeated.pop(first)

    def _decoded(self, stream: int) -> np.ndarray:
        plan = self.header.plans[stream]
        if plan.coding == RAW:
            return self._raw(stream)
        segment = int(self._first_segment[stream])
        decoded = self._segment(segment)
        if plan.coding == ESCAPED and plan.rare is not None:
            # The common symbols first, as a view of one chunk dies when another one is decoded.
            return escapes.restore(decoded, self._segment(segment + 1), int(plan.rare[0]))
        return decoded

    @as_compiled()
    def leaf(self, index: int) -> PackedArray:
        """The packed array of a leaf, by its place in `names`."""
        first, last = int(self._first_stream[index]), int(self._first_stream[index + 1])
        try:
            with self._lock:
                streams = (self._stream(s) for s in range(first, last))
                stored = symbols.rebuild(self.header.specs[index], streams)
            packed = sparse.in_memory(stored)
            packed.check()
            shape = _unpacked_shape(packed)
            if shape != packed.shape:
                raise FormatError(f"it unpacks to the shape {shape}, not {packed.shape}")
        except OSError:
            raise
        except Exception as error:
            if _exhausts(error):
                size = claimed_bytes(self.header.specs[index])
                raise OutOfMemoryError(
                    f"{self.path}: tensor {self.names[index][:200]!r}: there is not enough memory for the {size:,} "
                    "bytes that it claims"
                ) from error
            # Whatever kinds of others, NumPy or JAX make of fields that do not fit.
            raise FormatError(f"{self.path}: tensor {self.names[index][:200]!r}: {error}") from error
        return packed

    @property
    def names(self) -> list[str]:
        """The path of every leaf: those of the params begin "params/", of the variables "variables/"."""
        return skeleton.outline_names(self.header.outline)

    def leaves(self) -> Iterator[PackedArray]:
        """All packed arrays, in order; each chunk is decoded once."""
        plans = self.header.plans
        with self._lock:
            self._repeated.clear()
            self._repeats_left = collections.Counter(
                stream - plan.back for stream, plan in enumerate(plans) if plan.coding == REPEATED
            )
        return (self.leaf(index) for index in range(len(self.header.specs)))

    def coded_bytes(self) -> list[int]:
        """Estimated file bytes of each leaf: its code length, tables and raw planes; none of what repeats."""
        from modelzip_jax.coding import histograms, tables

        per_segment: list[float] = [0.0] * len(self._lengths)
        bits = [histograms.entropy(table) / max(int(table.sum()), 1) for table in self._tables]
        for chunk, (_, size) in enumerate(self.header.chunks):
            pieces = [
                (segment, (stop - start) * bits[segment]) for segment, start, stop in self._pieces(chunk)
            ]
            whole = max(sum(weight for _, weight in pieces), 1e-9)
            for segment, weight in pieces:
                per_segment[segment] += size * weight / whole
        found = []
        for index in range(len(self.header.specs)):
            total = 0.0
            for stream in range(int(self._first_stream[index]), int(self._first_stream[index + 1])):
                plan, first = self.header.plans[stream], int(self._first_segment[stream])
                total += plan.length if plan.coding == RAW else 0
                total += sum(per_segment[first : first + len(plan.lengths)])
                total += sum(len(tables.encode_table(t)) for t in plan.tables)
            found.append(round(total))
        return found


def _exhausts(error: BaseException) -> bool:
    """Whether an error says that memory is used up, in the words of Python or of XLA."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _unpacked_shape(packed: PackedArray) -> tuple[int, ...]:
    """The shape of what `unpack` gives, without computing it."""
    if isinstance(packed, Dense):
        return packed.shape if np.size(packed.array) == math.prod(packed.shape) else np.shape(packed.array)
    leaves, treedef = jax.tree.flatten(packed)
    return _traced_shape(treedef, tuple(jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in leaves))


@functools.lru_cache(maxsize=1 << 12)
def _traced_shape(treedef: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[int, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That JAX narrows 64 bits is for `unpack` to say.
        return tuple(jax.eval_shape(_unpack, jax.tree.unflatten(treedef, leaves)).shape)


def _unpack(packed: PackedArray) -> jax.Array:
    return packed.unpack()
