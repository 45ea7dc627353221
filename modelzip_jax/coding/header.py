"""The header of a `.mz` file: everything but the weights. See docs/format.md."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import zlib
from typing import Any, BinaryIO

import msgpack
import numpy as np

from modelzip_jax.coding import tables
from modelzip_jax.coding.skeleton import count_leaves
from modelzip_jax.coding.streams import CODED, ESCAPED, RAW, Plan
from modelzip_jax.coding.symbols import Spec, stream_lengths
from modelzip_jax.errors import FormatError

__all__ = ["Header", "checksum"]

MAGIC = b"\x89MZ\r\n\x1a\n"
VERSION = 1
PRELUDE = struct.Struct("<8sHHIIIII")
CHECKSUM = 8
# What headers usually say, as a preset dictionary for deflate; part of the format.
DICTIONARY = (
    b"encoder/embeddings/attention/layer_norm/LayerNorm_0scaleembeddingBatchNorm_0meanvarConv_0Dense_0"
    b"variablesbatch_statsparamskernelbias\xa7uniform\xa6global\xa9Polynomial\xa5final\xa5begin\xa3end"
    b"\xa7initial\xa5power\xa4type\xa8Identity\xa6fields\x80\xa4type\xa5Prune\xa6fields\x84\xa5score"
    b"\x82\xa4type\xa9Magnitude\xa6fields\x80\xa8sparsity\xcb\xaaallocation\xa5every\x00\xa4type\xa8Quantize"
    b"\xa6fields\x87\xa4bits\x04\xabgranularity\xa7channel\xaagroup_size\xcc\x80\xa4axis\xff\xa9symmetric\xc3"
    b"\xa7learned\xc2\xa5range\xa3max\xa4type\xa5Chain\xa6fields\x81\xa5parts\x92\x82\xa4type\xa9Partition"
    b"\xa6fields\x82\xa5parts\x91\x92\xa8selected\x82\xa6labels\x91\x92\xa9**/kernel\xa8selected"
    b"\x94\xa6masked\x93\xa4bits\x01\xce\x00\x9a\xa9quantized\x93\xa4bits\x08\xce\x00\x94\x00\xa7float32\x01\xcd"
    b"\x93\xa5dense\x94\x00\xa7float32\xcd\x01\x80\x92\xcd\x01\x80"
)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself.

    outline: the tree's structure (see `skeleton`). specs: a description of each leaf (see `symbols`).
    plans: the coding of each stream of each leaf, flat. lanes: of every coded chunk. chunks:
    `(symbols, bytes)` of each coded chunk. recipe: the transform as plain data. step: optimizer steps.
    """

    outline: Any
    specs: list[Spec]
    plans: list[Plan]
    lanes: int
    chunks: list[tuple[int, int]]
    recipe: Any
    step: int

    def to_bytes(self) -> tuple[bytes, dict[str, int]]:
        """The header as stored, and how many bytes each part of it takes."""
        names = msgpack.packb(self.outline)
        escapes = [[int(p.rare[0]), p.lengths[1]] for p in self.plans if p.rare is not None]
        codings = bytes(p.coding for p in self.plans)
        chunks = [n for chunk in self.chunks for n in chunk]
        meta = msgpack.packb(
            [self.recipe, self.step, self.lanes.bit_length() - 1, self.specs, codings, escapes, chunks]
        )
        table = b"".join(tables.encode_table(t) for p in self.plans for t in p.tables)
        packed_names, packed_meta = _deflate(names), _deflate(meta)
        sizes = (len(packed_names), len(names), len(packed_meta), len(meta), len(table))
        body = PRELUDE.pack(MAGIC, VERSION, 0, *sizes) + packed_names + packed_meta + table
        parts = {
            "fixed": PRELUDE.size + CHECKSUM,
            "names": len(packed_names),
            "tensors": len(packed_meta),
            "tables": len(table),
        }
        return body + checksum(body), parts

    @staticmethod
    def read(file: BinaryIO, size: int) -> tuple[Header, int]:
        """Reads a header from the beginning of a file of `size` bytes.

        Returns:
          The header, and the byte offset behind it.

        Raises:
          FormatError: foreign, newer, truncated or damaged.
        """
        start = file.read(PRELUDE.size)
        if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
            raise FormatError(f"not a .mz file: it begins with {start[:8]!r}, expected {MAGIC!r}")
        if len(start) < PRELUDE.size:
            raise FormatError(f"truncated at byte {len(start)}: a .mz file has {PRELUDE.size} bytes of prelude")
        _, version, _, *sizes = PRELUDE.unpack(start)
        if version > VERSION:
            raise FormatError(
                f"the file has format version {version}, this modelzip_jax reads up to {VERSION}: update it"
            )
        stored_names, raw_names, stored_meta, raw_meta, stored_tables = sizes
        length = stored_names + stored_meta + stored_tables
        end = PRELUDE.size + length + CHECKSUM
        if end > size:
            raise FormatError(f"truncated: the header ends at byte {end}, the file at {size}")
        body = file.read(length)
        if checksum(start + body) != file.read(CHECKSUM):
            raise FormatError(f"the header (bytes 0 to {end}) is damaged: its checksum does not match")
        outline = _inflate(body[:stored_names], raw_names, "names")
        meta = _inflate(body[stored_names : stored_names + stored_meta], raw_meta, "tensors")
        return _parse(outline, meta, body[stored_names + stored_meta :]), end


def checksum(data: bytes | memoryview) -> bytes:
    """blake2b of 8 bytes."""
    return hashlib.blake2b(data, digest_size=CHECKSUM).digest()


def _deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    return compressor.compress(data) + compressor.flush()


def _inflate(data: bytes, size: int, what: str) -> Any:
    """Never more than `size` bytes, nor than deflate's own 1,032 to 1."""
    if size > 1032 * len(data) + 64:
        raise FormatError(f"the {what} claim {size} bytes, more than {len(data)} compressed ones can hold")
    try:
        inflater = zlib.decompressobj(-15, zdict=DICTIONARY)
        raw = inflater.decompress(data, size + 1)
        if len(raw) != size or not inflater.eof:
            raise FormatError(f"the {what} have {len(raw)} bytes, the header says {size}")
        return msgpack.unpackb(raw, strict_map_key=False)
    except (zlib.error, ValueError, msgpack.exceptions.UnpackException) as error:
        raise FormatError(f"the {what} in the header cannot be read: {error}") from error


def _parse(outline: Any, meta: Any, table_bytes: bytes) -> Header:
    if not isinstance(meta, list) or len(meta) != 7:
        raise FormatError("the header does not have its seven parts")
    recipe, step, lane_bits, specs, codings, escapes, chunks = meta
    if not (
        isinstance(step, int) and isinstance(specs, list) and isinstance(codings, bytes)
        and isinstance(lane_bits, int) and 0 <= lane_bits <= 12
        and _are_sizes(chunks) and len(chunks) % 2 == 0
        and isinstance(escapes, list) and all(_are_sizes(e) and len(e) == 2 and e[0] < 256 for e in escapes)
    ):  # fmt: skip
        raise FormatError("the header's parts have wrong types")
    if count_leaves(outline) != len(specs):
        raise FormatError(f"{count_leaves(outline)} names for {len(specs)} tensors")
    lengths = [n for spec in specs for n in stream_lengths(spec)]
    if len(lengths) != len(codings):
        raise FormatError(f"{len(codings)} codings for {len(lengths)} streams")
    plans = _plans(lengths, codings, escapes, table_bytes)
    pairs = list(zip(chunks[::2], chunks[1::2], strict=True))
    coded = sum(n for p in plans for n in p.lengths)
    if sum(symbols for symbols, _ in pairs) != coded:
        raise FormatError(f"chunks of {sum(s for s, _ in pairs)} symbols for streams of {coded}")
    return Header(outline, specs, plans, 1 << lane_bits, pairs, recipe, step)


def _are_sizes(items: Any) -> bool:
    return isinstance(items, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in items)


def _plans(lengths: list[int], codings: bytes, escapes: list[list[int]], table_bytes: bytes) -> list[Plan]:
    plans, offset, left = [], 0, iter(escapes)
    for length, coding in zip(lengths, codings, strict=True):
        if coding == RAW:
            plans.append(Plan(RAW, length))
            continue
        if coding not in (CODED, ESCAPED):
            raise FormatError(f"unknown coding {coding} of a stream")
        first, offset = tables.decode_table(table_bytes, offset)
        if coding == CODED:
            plans.append(Plan(CODED, length, (first,), (length,)))
            continue
        second, offset = tables.decode_table(table_bytes, offset)
        escape, count = next(left, (0, -1))
        if not 0 <= count <= length:
            raise FormatError(f"{count} escapes in a stream of {length}")
        rare = np.array([escape], np.uint8)
        plans.append(Plan(ESCAPED, length, (first, second), (length, count), (), rare))
    if offset != len(table_bytes):
        raise FormatError(f"{len(table_bytes) - offset} bytes behind the last table")
    return plans
