"""Interleaved rANS over bytes, with static histograms, in JAX.

A range variant of asymmetric numeral systems (Duda 2013, arXiv:1311.2540): 32-bit states,
renormalised by 16-bit words, frequencies of 12 bits. Many lanes run side by side (Giesen 2014,
arXiv:1402.3392). Up to 32 lanes form a group, and a group shares one stream of words: the
refill flags of a group are the bits of one integer, so that a population count gives each lane its
word and nothing crosses groups. A scan over all lanes would cost a quarter of the decoder's time on
CPU; the length that each group has to store instead adds 3 % to the 4 bytes of a lane's state.

The unit is a chunk: a list of segments (a tensor, or a part of one), each with a table. A segment
starts on a new row of `lanes` symbols. Lanes behind its end neither change state nor take
words, so they cost nothing. Only integers are involved: every backend gives the same bytes.

Stored form of a chunk, little-endian: `lanes` states (uint32), the number of words of every
group but the last (uint32), the words of all groups one after the other (uint16).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from modelzip_jax.coding import rans_kernels as kernels
from modelzip_jax.coding.rans_kernels import Rows
from modelzip_jax.coding.rans_rows import by_group, emitted_words, row_layout
from modelzip_jax.coding.tables import BITS
from modelzip_jax.errors import FormatError
from modelzip_jax.jax_settings import as_compiled

__all__ = [
    "Capacity",
    "choose_lanes",
    "decode",
    "encode",
    "round_capacity",
    "rows_needed",
    "words_held",
]

MAX_LANES = 4096
MAX_CELLS = 1 << 26
"""Most symbols of a chunk, counted in full rows: bounds what a damaged file can allocate."""
_BLOCK = 1 << 19


class Capacity(NamedTuple):
    """Static sizes of the compiled kernels; chunks that share them share one compilation.

    Attributes:
        rows: rows of `lanes` symbols.
        words: 16-bit words (the encoder does not need it).
        tables: frequency tables in use in one chunk (however many the file holds).
    """

    rows: int
    words: int
    tables: int


def round_capacity(rows: int, words: int, tables: int) -> Capacity:
    """Rounded up to three significant bits, at least 1, so that similar files reuse a compilation.

    >>> round_capacity(rows=1025, words=300_000, tables=3)
    Capacity(rows=1280, words=327680, tables=3)
    """
    return Capacity(*(_round_up(max(size, 1)) for size in (rows, words, tables)))


def _round_up(size: int) -> int:
    unit = 1 << max(size.bit_length() - 3, 0)
    return -(-size // unit) * unit


def rows_needed(lengths: Sequence[int], lanes: int) -> int:
    """Rows that segments of these lengths take.

    >>> rows_needed([0, 1, 64, 65], lanes=64)
    4
    """
    return sum(-(-int(length) // lanes) for length in lengths)


def words_held(data_bytes: int, lanes: int) -> int:
    """Words in a coded chunk of that many bytes, for the capacity of its decoder.

    >>> words_held(1000, lanes=64)
    370
    """
    return max(data_bytes - header_bytes(lanes), 0) // 2


def header_bytes(lanes: int) -> int:
    """What a stream's states and its groups' lengths take before the words."""
    _, groups = kernels.grid(lanes)
    return 4 * lanes + 4 * (groups - 1)


def choose_lanes(coded_bytes: int, symbols: int = 0) -> int:
    """A power of two between 1 and 4,096 that balances speed and the 4 bytes that a lane costs.

    One lane for 1,600 coded bytes keeps the states at 0.25 % (between 0.18 and 0.35 %, as
    powers of two go). A large number of symbols that code to almost nothing (masks) asks for
    lanes too: one for 16,384 symbols.

    Args:
        coded_bytes: estimated size of a chunk, for example `histograms.code_length(...) / 8`.
        symbols: how many symbols it holds.

    >>> choose_lanes(2_300_000), choose_lanes(700)
    (1024, 1)
    """
    wanted = max(coded_bytes // 1600, symbols // 16384, 1)
    power = wanted.bit_length() - 1
    # Nearest in the logarithm: round up from wanted / 2**power >= sqrt(2).
    power += wanted * wanted >= 2 << (2 * power)
    return int(min(1 << power, MAX_LANES))


def _check(
    lengths: Sequence[int],
    table_ids: Sequence[int],
    tables: np.ndarray,
    lanes: int,
    words: int,
    capacity: Capacity | None,
) -> tuple[np.ndarray, np.ndarray, Capacity]:
    """Validates a chunk's sizes: the tables in use, and which of them each segment has. Raises ValueError."""
    if lanes < 1 or lanes > MAX_LANES or lanes & (lanes - 1):
        raise ValueError(f"lanes must be a power of two from 1 to {MAX_LANES}, got {lanes}")
    tables = np.asarray(tables)
    if tables.ndim != 2 or tables.shape[1] != 256:
        raise ValueError(f"tables must have the shape [K, 256], got {tables.shape}")
    if len(lengths) != len(table_ids):
        raise ValueError(f"{len(lengths)} segments but {len(table_ids)} table indices")
    for length, index in zip(lengths, table_ids, strict=True):
        if length < 0 or not 0 <= index < len(tables):
            raise ValueError(f"segment of length {length} with table {index} of {len(tables)}")
    used, ids = np.unique(np.asarray(table_ids, np.int64), return_inverse=True)
    if (tables[used] < 0).any() or (tables[used].sum(axis=1) != 2**BITS).any():
        raise ValueError(f"the frequencies of each table must be >= 0 and sum to {2**BITS}")
    if words > sum(int(length) for length in lengths):
        raise ValueError(f"{words} words, more than there are symbols")
    # Kernels cannot be compiled for empty arrays.
    needed = (max(rows_needed(lengths, lanes), 1), max(words, 1), max(used.size, 1))
    if needed[0] * lanes > MAX_CELLS:
        raise ValueError(f"a chunk of {needed[0]} rows of {lanes} lanes is too large")
    capacity = round_capacity(*needed) if capacity is None else capacity
    if any(need > have for need, have in zip(needed, capacity, strict=True)):
        raise ValueError(f"the chunk needs {Capacity(*needed)}, beyond its {capacity}")
    return used, ids, capacity


@as_compiled()
def encode(
    segments: Sequence[np.ndarray],
    table_ids: Sequence[int],
    tables: np.ndarray,
    lanes: int,
    capacity: Capacity | None = None,
    rare: Sequence[np.ndarray | None] | None = None,
) -> bytes:
    """Codes the segments of a chunk.

    Args:
        segments: uint8[n] each, `n` may be 0.
        table_ids: which table codes each segment.
        tables: int[K, 256], each row from `histograms.normalize_counts`.
        lanes: power of two from 1 to 4,096, see `choose_lanes`.
        capacity: static sizes; chosen for this chunk alone if absent.
        rare: for each table the symbols, uint8[k], that are coded as the first of them, or None
            (see `escapes`).

    Returns:
        The chunk: `4 * lanes` bytes of states, `4 * (lanes // 32 - 1)` of group lengths, words.

    Raises:
        ValueError: segments of another dtype, a symbol without frequency, tables that do not sum
            to 4,096, sizes beyond capacity.

    >>> from modelzip_jax.coding import histograms
    >>> symbols = np.frombuffer(b"abracadabra" * 100, np.uint8)
    >>> tables = histograms.normalize_counts(histograms.count(symbols))[None]
    >>> data = encode([symbols], [0], tables, lanes=1)
    >>> len(data), bytes(decode(data, [1100], [0], tables, lanes=1)[0][:5])
    (284, b'abrac')
    """
    if any(segment.dtype != np.uint8 or segment.ndim != 1 for segment in segments):
        raise ValueError("segments must be one-dimensional uint8 arrays")
    lengths = [len(segment) for segment in segments]
    used, ids, capacity = _check(lengths, table_ids, tables, lanes, 0, capacity)
    tables = np.asarray(tables, np.int64)[used]
    size, groups = kernels.grid(lanes)
    # Blocks of rows, the last one first: their words stay in the cache until they are picked out.
    height = max(min(capacity.rows, _BLOCK // lanes), 1)
    total = rows_needed(lengths, lanes)
    blocks = -(-total // height)
    firsts, rows = row_layout(lengths, ids, lanes, blocks * height)
    entries = kernels.encode_entries(tables, capacity.tables, rare and [rare[index] for index in used])
    state: np.ndarray | jax.Array = np.full((groups, size), kernels.START, np.uint32)
    found = []
    for first in range((blocks - 1) * height, -1, -height):
        part = slice(first, first + height)
        symbols = by_group(segments, firsts, lanes, part)
        block = Rows(*(of[part] for of in rows))
        state, *emitted = _encode_block(symbols, entries, block, min(height, total - first), state)
        found.append(emitted)
    sizes = sum((np.diff(ends) for _, ends in found), np.zeros(groups, np.int64))
    head = np.asarray(state).T.reshape(-1).astype("<u4"), sizes[:-1].astype("<u4")
    cuts = [(stream.astype("<u2", copy=False), ends.tolist()) for stream, ends in reversed(found)]
    words_of = (stream[ends[g] : ends[g + 1]] for g in range(groups) for stream, ends in cuts)
    return b"".join([*(part.tobytes() for part in head), *words_of])


def _encode_block(
    symbols: np.ndarray,
    entries: np.ndarray | jax.Array,
    rows: Rows,
    count: int,
    state: np.ndarray | jax.Array,
) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """The state before a block's first `count` rows, and their `emitted_words`.

    A function of its own, so that the next block finds this one's memory free: to be given new pages by the system
    would take a small chunk as long as the coding.
    """
    state, words, flags = kernels.encode_rows(
        symbols, entries, rows.table, rows.active, np.int32(count), state
    )
    emitted = np.asarray(flags)[:count]
    if emitted.max() > 1:
        raise ValueError("a segment holds a symbol to which its table gives no frequency")
    return state, *emitted_words(np.asarray(words)[:count], emitted)


@as_compiled()
def decode(
    data: bytes | memoryview,
    lengths: Sequence[int],
    table_ids: Sequence[int],
    tables: np.ndarray,
    lanes: int,
    capacity: Capacity | None = None,
) -> list[np.ndarray]:
    """Decodes what `encode` made of a chunk.

    Damaged data never reads out of bounds, never hangs and never allocates more than capacity.
    Damage is found if it changes how many words a group takes or the state a lane ends in, which
    is nearly always; a checksum around the chunk must find the rest.

    Args:
        data: the chunk.
        lengths: symbols of each segment.
        table_ids, tables, lanes: as they were given to `encode`.
        capacity: static sizes, the bound that lengths are held against; chosen for this chunk
            alone if absent.

    Returns:
        uint8[length] for each segment: read-only views of one buffer.

    Raises:
        FormatError: truncated or damaged data, or sizes beyond capacity.
    """
    try:
        header = header_bytes(lanes)
        size = len(data) - header
        if size < 0 or size % 2:
            raise ValueError(f"{len(data)} bytes cannot hold {header} bytes of header and words")
        used, ids, capacity = _check(lengths, table_ids, tables, lanes, size // 2, capacity)
    except ValueError as error:
        raise FormatError(f"coded chunk: {error}") from error
    groups = header // 4 - lanes + 1
    states = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
    sizes = np.frombuffer(data, "<u4", groups - 1, 4 * lanes).astype(np.int64)
    ends = np.append(np.cumsum(sizes), size // 2)
    if groups > 1 and ends[-2] > ends[-1]:
        raise FormatError(f"coded chunk: groups of {ends[-2]} words in data of {ends[-1]}")
    words = np.zeros(capacity.words, np.uint16)
    words[: size // 2] = np.frombuffer(data, "<u2", size // 2, header)
    firsts, rows = row_layout(lengths, ids, lanes, capacity.rows)
    states, stops, symbols = kernels.decode_rows(
        states,
        (ends - np.diff(ends, prepend=0)).astype(np.int32),
        words,
        kernels.decode_entries(np.asarray(tables, np.int64)[used], capacity.tables),
        rows,
        np.int32(rows_needed(lengths, lanes)),
    )
    wrong = np.flatnonzero(np.asarray(stops) != ends)
    if wrong.size:
        at = header + 2 * int(ends[wrong[0]])
        raise FormatError(f"coded chunk: the words of a group do not end at byte {at}; damaged")
    if (np.asarray(states) != kernels.START).any():
        raise FormatError("coded chunk: a state does not return to its start; the chunk is damaged")
    flat = np.asarray(symbols).reshape(-1)
    return [
        flat[first * lanes : first * lanes + length]
        for first, length in zip(firsts.tolist(), lengths, strict=True)
    ]
