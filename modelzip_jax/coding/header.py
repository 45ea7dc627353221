"""The header of a `.mz` file: everything but the weights. See docs/format.md."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgpack
import numpy as np

from modelzip_jax.coding import claims, rans, tables
from modelzip_jax.coding.skeleton import count_leaves, named_characters
from modelzip_jax.coding.streams import CODED, ESCAPED, MAX_REPEATS, RAW, REPEATED, Plan
from modelzip_jax.coding.symbols import Spec, stream_lengths
from modelzip_jax.errors import FormatError, ModelzipError
from modelzip_jax.metadata import NOTHING, Metadata
from modelzip_jax.packed import kinds

__all__ = ["Header", "checksum"]

MAGIC = b"\x89MZ\r\n\x1a\n\x00"
VERSIONS = (1, 2, 3, 4, 5, 6)
"""Version 2 has streams that repeat earlier ones, version 3 metadata; a file has the lowest that will do."""
PRELUDE = struct.Struct("<8sIII")
CHECKSUM = 8
MAX_DEPTH = 256
MAX_META = 1 << 26
MAX_LANE = 1 << 15
"""Most symbols of a lane in a chunk: 8,192 for each byte that the lane's state takes in the file."""
# What headers usually say, as a preset dictionary for deflate; part of the format.
DICTIONARY = (
    b"encoder/embeddings/attention/layer_norm/LayerNorm_0scaleembeddingBatchNorm_0meanvarbatch_statsConv"
    b"_0\x91\x92\xa8selected\x82\xa4type\xa8Quantize\xa6fields\x87\xa4bits\x04\xa6labels\x91\x92\xa2**"
    b"\xa8selected\xa8min_ndim\x00\xa8floating\xc2\x00\x00\x91\xa5final\xcb?\xec\xcc\xcc\xcc\xcc\xcc\xcd"
    b"\xa5begin\xcd\xa3end\xcd\xa7initial\xcb\x00\x00\x00\x00\x00\x00\x00\x00\xa5power\xcb@\x08\x00\x00"
    b"\x00\x00\x00\x00\xaaallocation\xa6global\xa5every\xa5group\x94\xa5gaps\x93\x00\xa5uint8\xcd\x93"
    b"\xa6masked\x93\xa4bits\x01\xce\x00\x93\xa5dense\x94\x00\xa7float32\xcd\x94\xa6masked\xc0\x9a\xa9qu"
    b"antized\x93\xa5joint\x93\x00\xa5uint8\xcd\x08\x00\x04\x94\x00\xa7float32\x01\x9a\xa9quantized\x93"
    b"\xa4bits\x04\xcd\x94\x00\xa7float32\x01\x01\xc0\xf8\x92 \xa7float32\xa6tensor\xff\x01\x93\xa5dense"
    b"\x93\x00\xa7float32 \x91 \x98\x82\xa6params\x82\xa7Dense_0\x82\xa4bias\xc0\xa6kernel\xc0\xa7Dense_"
    b"1\x82\xa9variables\x80\x82\xa4type\xa8Identity\xa6fields\x80\x00\x00\x91\x93\xa5dense\x82\xa4type"
    b"\xa9Partition\xa6fields\x84\xa5parts\x91\x92\xa8selected\x82\xa4type\xa5Chain\xa6fields\x81\xa5par"
    b"ts\x92\x82\xa4type\xa5Prune\xa6fields\x84\xa5score\x82\xa4type\xa9Magnitude\xa6fields\x80\xa8spars"
    b"ity\xcb?\xe9\x99\x99\x99\x99\x99\x9a\xaaallocation\xa7uniform\xa5every\x00\x82\xa4type\xa8Quantize"
    b"\xa6fields\x87\xa4bits\x04\xabgranularity\xa7channel\xaagroup_size\xcc\x80\xa4axis\xff\xa9symmetri"
    b"c\xc3\xa7learned\xc2\xa5range\xa3max\xa6labels\x91\x92\xa9**/kernel\xa8selected\xa8min_ndim\x00"
    b"\xa8floating\xc2\x00\x00\x91\x9a\xa9quantized\x93\xa4bits\x04\xcd\x08\x00\x94\x00\xa7float32\x01 "
    b"\xc0\xf8\x92@ \xa7float32\xa7channel\xff\xcc\x80\xc4\x05\x01\x01\x00\x00\x00\x90\x92\xcd"
)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself.

    outline: the tree's structure (see `skeleton`). specs: a description of each leaf (see `symbols`).
    plans: the coding of each stream of each leaf, flat. lanes: of every coded chunk. chunks:
    `(symbols, bytes)` of each coded chunk. recipe: the transform as plain data. step: optimizer steps.
    metadata: plain data by name.
    """

    outline: Any
    specs: list[Spec]
    plans: list[Plan]
    lanes: int
    chunks: list[tuple[int, int]]
    recipe: Any
    step: int
    metadata: Metadata = NOTHING

    def to_bytes(self) -> tuple[bytes, dict[str, int]]:
        """The header as stored, and how many bytes each part of it takes."""
        _check_depth(self.outline)
        _check_depth(self.recipe)
        escapes = [
            [p.back] if p.rare is None else [int(p.rare[0]), p.lengths[1]]
            for p in self.plans
            if p.coding in (ESCAPED, REPEATED)
        ]
        repeats = any(p.coding == REPEATED for p in self.plans)
        version = max([3 if self.metadata else 2 if repeats else 1, *map(_since, self.specs)])
        codings = bytes(p.coding for p in self.plans)
        chunks = [n for chunk in self.chunks for n in chunk]
        rest = [self.recipe, self.step, self.lanes.bit_length() - 1, self.specs, codings, escapes, chunks]
        rest += [dict(self.metadata)] if version >= 3 else []
        raw = msgpack.packb([self.outline, *rest])
        meta = _deflate(raw)
        if len(raw) > _meta_limit(len(meta)):
            raise FormatError(f"{len(self.specs)} tensors need a header of {len(raw)} bytes, too large")
        table = b"".join(tables.encode_table(t) for p in self.plans for t in p.tables)
        body = PRELUDE.pack(MAGIC, version, len(meta), len(table)) + meta + table
        tensors = min(len(_deflate(msgpack.packb([None, *rest]))), len(meta))
        parts = {
            "fixed": PRELUDE.size + CHECKSUM,
            "names": len(meta) - tensors,
            "tensors": tensors,
            "tables": len(table),
        }
        return body + checksum(body), parts

    @staticmethod
    def read(file: BinaryIO, size: int, limit: int | None = None) -> tuple[Header, int]:
        """Reads a header from the beginning of a file of `size` bytes.

        limit: bytes that its tensors may take in memory; see `claims`.

        Returns:
          The header, and the byte offset behind it.

        Raises:
          FormatError: foreign, newer, truncated or damaged.
        """
        start = file.read(PRELUDE.size)
        if not start:
            raise FormatError("not a .mz file: it is empty")
        if start[: len(MAGIC)] != MAGIC[: len(start)]:
            raise FormatError(f"not a .mz file: it begins with {start[:8]!r}, expected {MAGIC!r} at byte 0")
        if len(start) < PRELUDE.size:
            raise FormatError(f"truncated at byte {len(start)}, inside the {PRELUDE.size} bytes of prelude")
        _, version, stored_meta, stored_tables = PRELUDE.unpack(start)
        if version not in VERSIONS:
            raise FormatError(
                f"byte 8: the file has format version {version}, this modelzip_jax reads {VERSIONS[-1]}: update it"
            )
        length = stored_meta + stored_tables
        end = PRELUDE.size + length + CHECKSUM
        if end > size:
            raise FormatError(f"truncated: the header ends at byte {end}, the file at byte {size}")
        body = file.read(length)
        if checksum(start + body) != file.read(CHECKSUM):
            raise FormatError(f"the header (bytes 0 to {end}) is damaged: its checksum does not match")
        try:
            limit = claims.allowance(size) if limit is None else limit
            return _parse(_inflate(body[:stored_meta]), body[stored_meta:], size, version, limit), end
        except RecursionError as error:
            raise FormatError(
                f"the header (bytes 0 to {end}) is nested too deeply to be read here"
            ) from error
        except ModelzipError as error:
            raise FormatError(f"the header (bytes 0 to {end}): {error}") from error


def _since(spec: Spec) -> int:
    """The format version that has a spec's packed kind, and those inside."""
    inside = [_since(item) for item in spec[1:] if isinstance(item, list) and item and item[0] in kinds]
    return max([kinds[spec[0]].since, *inside])


def checksum(data: bytes | memoryview) -> bytes:
    """blake2b of 8 bytes."""
    return hashlib.blake2b(data, digest_size=CHECKSUM).digest()


def _deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    return compressor.compress(data) + compressor.flush()


def _meta_limit(stored: int) -> int:
    """Bytes that so many deflated ones may inflate to: parsed, each can become 64 bytes in memory."""
    return min((1 << 20) + 64 * stored, MAX_META)


def _inflate(data: bytes) -> Any:
    limit = _meta_limit(len(data))
    try:
        inflater = zlib.decompressobj(-15, zdict=DICTIONARY)
        raw = inflater.decompress(data, limit + 1)
        if len(raw) > limit or not inflater.eof or inflater.unused_data:
            raise FormatError(f"its {len(data)} deflated bytes end early or late, or hold more than {limit}")
        meta = msgpack.unpackb(raw, strict_map_key=False)
        _check_depth(meta, MAX_DEPTH + 1)
    except (zlib.error, ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise FormatError(f"cannot be read: {error}") from error
    return meta


def _check_depth(data: Any, left: int = MAX_DEPTH) -> None:
    """Bounds the recursion of everything that walks the header."""
    if isinstance(data, dict | list):
        if left == 0:
            raise FormatError(f"it is nested more than {MAX_DEPTH} levels deep")
        for item in data.values() if isinstance(data, dict) else data:
            _check_depth(item, left - 1)


def _parse(meta: Any, table_bytes: bytes, file_size: int, version: int, limit: int) -> Header:
    parts = 9 if version >= 3 else 8
    if not isinstance(meta, list) or len(meta) != parts:
        raise FormatError(f"it does not have its {parts} parts")
    outline, recipe, step, lane_bits, specs, codings, escapes, chunks = meta[:8]
    metadata = meta[8] if version >= 3 else {}
    if not (
        type(step) is int and isinstance(specs, list) and isinstance(codings, bytes)
        and type(lane_bits) is int and 0 <= lane_bits <= 12
        and _are_sizes(chunks) and len(chunks) % 2 == 0
        and isinstance(escapes, list) and all(_are_sizes(e) and len(e) in (1, 2) for e in escapes)
    ):  # fmt: skip
        raise FormatError("its parts have wrong types")
    if not isinstance(metadata, dict):
        raise FormatError(f"its metadata are a {type(metadata).__name__}, not a map")
    if count_leaves(outline) != len(specs):
        raise FormatError(f"{count_leaves(outline)} names for {len(specs)} tensors")
    lengths = [n for spec in specs for n in stream_lengths(spec)]
    claims.check_claims(specs, named_characters(outline), limit)
    if len(lengths) != len(codings):
        raise FormatError(f"{len(codings)} codings for {len(lengths)} streams")
    plans = _plans(lengths, codings, escapes, table_bytes)
    pairs = list(zip(chunks[::2], chunks[1::2], strict=True))
    coded = sum(n for p in plans for n in p.lengths)
    if sum(symbols for symbols, _ in pairs) != coded:
        raise FormatError(f"chunks of {sum(s for s, _ in pairs)} symbols for streams of {coded}")
    header = Header(outline, specs, plans, 1 << lane_bits, pairs, recipe, step, Metadata(metadata))
    _check_sizes(header, file_size)
    return header


def _check_sizes(header: Header, file_size: int) -> None:
    """What the header claims, every byte of the file accounted for, so that nothing larger is allocated."""
    for chunk, (symbols, size) in enumerate(header.chunks):
        if not 1 <= symbols <= header.lanes * MAX_LANE or size < rans.header_bytes(header.lanes):
            raise FormatError(f"chunk {chunk} claims {symbols} symbols, {size} bytes, {header.lanes} lanes")
    weights = sum(size for _, size in header.chunks) + sum(p.length for p in header.plans if p.coding == RAW)
    if weights > file_size:
        raise FormatError(f"truncated: it claims {weights} bytes of weights, the file has {file_size}")


def _are_sizes(items: Any) -> bool:
    return isinstance(items, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in items)


def _plans(lengths: list[int], codings: bytes, escapes: list[list[int]], table_bytes: bytes) -> list[Plan]:
    plans: list[Plan] = []
    offset, left, repeats = 0, iter(escapes), collections.Counter[int]()
    for length, coding in zip(lengths, codings, strict=True):
        if coding == RAW:
            plans.append(Plan(RAW, length))
            continue
        if coding == REPEATED:
            (back,) = _detail(left, 1)
            first = len(plans) - back
            repeats[first] += 1
            if (
                not 0 <= first < len(plans)
                or plans[first].coding == REPEATED
                or plans[first].length != length
            ):
                raise FormatError(f"stream {len(plans)} cannot repeat the one {back} before it")
            if repeats[first] > MAX_REPEATS:
                raise FormatError(f"more than {MAX_REPEATS} streams repeat stream {first}")
            plans.append(Plan(REPEATED, length, back=back))
            continue
        if coding not in (CODED, ESCAPED):
            raise FormatError(f"unknown coding {coding} of a stream")
        common, offset = tables.decode_table(table_bytes, offset)
        if coding == CODED:
            plans.append(Plan(CODED, length, (common,), (length,)))
            continue
        escaped, offset = tables.decode_table(table_bytes, offset)
        escape, count = _detail(left, 2)
        if escape > 255 or count > length:
            raise FormatError(f"{count} escapes by symbol {escape} in a stream of {length}")
        rare = np.array([escape], np.uint8)
        plans.append(Plan(ESCAPED, length, (common, escaped), (length, count), (), rare))
    if offset != len(table_bytes):
        raise FormatError(f"{len(table_bytes) - offset} bytes behind the last table")
    return plans


def _detail(left: Iterator[list[int]], count: int) -> list[int]:
    """The next item that a coding needs."""
    item = next(left, [])
    if len(item) != count:
        raise FormatError(f"{item} where a stream's coding needs {count} numbers")
    return item
