"""The compiled loops of the rANS coder; `rans` explains them and checks what they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from modelzip_jax.coding.tables import BITS

__all__ = [
    "START",
    "Rows",
    "decode_entries",
    "decode_rows",
    "encode_entries",
    "encode_rows",
    "grid",
]

START = 1 << 16
"""The state every lane is encoded from and decoded to."""

_GROUP = 32
_MISSING = np.uint32(1 << 31)
# A symbol of frequency 4,096 leaves a state as it is, and takes no word.
_IDLE = np.uint32(0xFFF)
# What 2**23 is as a float.
_TWO_TO_23 = np.uint32(0x4B000000)
_TURN = 4
"""Full rows in a turn of the decoder's loop, twice as many short ones: fewer turns, but longer to compile."""
_LONG = 1024
"""Rows from which on that is worth it."""
_GATHER = lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(0,), start_index_map=(0,))

Encoding = tuple[jax.Array, jax.Array, jax.Array]
Decoding = tuple[jax.Array, jax.Array, jax.Array]


class Rows(NamedTuple):
    """What the kernels know of each row: table, active lanes, rows to its segment's last."""

    table: np.ndarray
    active: np.ndarray
    run: np.ndarray


def _take(table: jax.Array, index: jax.Array) -> jax.Array:
    # Clipping costs nothing measurable and keeps damaged words from reading out of bounds.
    mode = lax.GatherScatterMode.CLIP
    return lax.gather(table, index.astype(jnp.int32)[..., None], _GATHER, (1,), mode=mode)


def grid(lanes: int) -> tuple[int, int]:
    """Lanes of a group and groups; lane `l` is `l // groups` in group `l % groups`.

    Groups lie along the minor axis, so that the bits of a group are combined by vector
    instructions.
    """
    return min(lanes, _GROUP), max(lanes // _GROUP, 1)


def _quotient(low: jax.Array, frequency: jax.Array) -> jax.Array:
    """`low // frequency`, exactly: XLA:CPU divides floats in vectors, integers one by one.

    The quotient is below 2**20, so that floats of 24 bits are off by less than a half, be the division
    of a backend rounded correctly or not. Added to 2**23 it is rounded to an integer, which is in the
    lower bits and at most one too large; then the remainder is negative.
    """
    ratio = low.astype(jnp.float32) / frequency.astype(jnp.int32).astype(jnp.float32)
    near = lax.bitcast_convert_type(ratio + np.float32(2**23), jnp.uint32) - _TWO_TO_23
    return near - ((low - near * frequency) >> 31)


@jax.jit
def encode_rows(
    symbols: jax.Array,
    table: jax.Array,
    ids: jax.Array,
    active: jax.Array,
    count: jax.Array,
    state: jax.Array,
) -> Encoding:
    """Codes the last `count` rows of a block first, from the state that the rows behind it left.

    symbols uint8[R, groups, lanes of each], table of each row int32[R], active lanes int32[R], states
    uint32[groups, lanes of each] -> states, words uint16 and their flags uint8 of the shape of `symbols`.
    A flag is 1 where the word is emitted, and more where the symbol has no code.
    """
    shape = symbols.shape
    _, groups, size = shape
    lane = jnp.arange(groups, dtype=jnp.int32)[:, None] + groups * jnp.arange(size, dtype=jnp.int32)
    # Lanes in one axis: XLA:CPU makes longer vectors of it, which takes a quarter less time.
    lane, state, symbols = lane.reshape(-1), state.reshape(-1), symbols.reshape(len(symbols), -1)

    def step(k: jax.Array, carry: Encoding) -> Encoding:
        state, words, flags = carry
        r = (count - 1 - k).astype(jnp.uint32)
        at = (r, jnp.uint32(0))
        row = lax.dynamic_slice(symbols, at, (1, state.size))[0]
        entries = lax.dynamic_slice(table, (ids[r] * 256,), (256,))
        entry = jnp.where(lane < active[r], _take(entries, row), _IDLE)
        frequency, start = (entry & 0xFFF) + 1, (entry >> 12) & 0xFFF
        emits = (state >> (32 - BITS)) >= frequency
        flag = emits.astype(jnp.uint8) | ((entry >> 31).astype(jnp.uint8) << 1)
        words = lax.dynamic_update_slice(words, state.astype(jnp.uint16)[None], at)
        flags = lax.dynamic_update_slice(flags, flag[None], at)
        low = jnp.where(emits, state >> 16, state)
        # (low // f) << 12 | low % f + start, without a second division.
        return low + _quotient(low, frequency) * (2**BITS - frequency) + start, words, flags

    words, flags = jnp.zeros(symbols.shape, jnp.uint16), jnp.zeros(symbols.shape, jnp.uint8)
    state, words, flags = lax.fori_loop(0, count, step, (state, words, flags))
    return state.reshape(groups, size), words.reshape(shape), flags.reshape(shape)


@jax.jit
def decode_rows(
    states: jax.Array,
    starts: jax.Array,
    words: jax.Array,
    table: jax.Array,
    rows: Rows,
    count: jax.Array,
) -> Decoding:
    """states uint32[lanes], starts int32[groups] -> states, ends, symbols uint8[R, lanes]."""
    lanes = states.size
    size, groups = grid(lanes)
    # LLVM unrolls an inner loop of 16 and then no longer makes vectors of it: three times slower.
    shape = (size, 4, 4) if groups == 16 else (size, groups)
    lane = jnp.arange(lanes, dtype=jnp.int32).reshape(shape)
    bit = jnp.arange(size, dtype=jnp.uint32).reshape(size, *(1 for _ in shape[1:]))
    below = (jnp.uint32(1) << bit) - 1
    turn = (_TURN if groups > 8 else 2 * _TURN) if rows.table.size >= _LONG else 1

    def step(r: jax.Array, carry: Decoding, *, entries: jax.Array, active: jax.Array | None) -> Decoding:
        """The states behind a row, where the words go on, and the row's symbols."""
        # Two states take turns. Writing one of them in place keeps XLA:CPU from splitting each
        # row's refill between threads, which on busy cores costs more than the row itself.
        states, position, _ = carry
        now, then = r & 1, (r + 1) & 1
        state = lax.dynamic_index_in_dim(states, now, keepdims=False)
        entry = _take(entries, (state & (2**BITS - 1)).astype(jnp.int32))
        decoded = (((entry >> 8) & 0xFFF) + 1) * (state >> BITS) + (entry >> 20)
        # Full rows skip the comparison, a sixth of the time.
        state = decoded if active is None else jnp.where(lane < active, decoded, state)
        flag = state < START
        packed = jnp.sum(flag.astype(jnp.uint32) << bit, axis=0, dtype=jnp.uint32)
        before = lax.population_count(packed[None] & below).astype(jnp.int32)
        word = _take(words, position + before).astype(jnp.uint32)
        state = jnp.where(flag, (state << 16) | word, state)
        states = lax.dynamic_update_index_in_dim(states, state, then, 0)
        position = position + lax.population_count(packed).astype(jnp.int32)
        return states, position, entry.astype(jnp.uint8).reshape(1, lanes)

    def run(carry: tuple[jax.Array, Decoding]) -> tuple[jax.Array, Decoding]:
        # One table at a time: small enough for the innermost cache, and see above.
        r, inner = carry
        stop = r + rows.run[r].astype(jnp.uint32) + 1
        entries = lax.dynamic_slice(table, (rows.table[r] << BITS,), (2**BITS,))

        def full(carry: tuple[jax.Array, Decoding]) -> tuple[jax.Array, Decoding]:
            r, inner = carry
            out, symbols = inner[2], []
            for k in range(turn):
                inner = step(r + k, inner, entries=entries, active=None)
                symbols.append(inner[2])
            out = lax.dynamic_update_slice(out, jnp.concatenate(symbols), (r, jnp.uint32(0)))
            return r + turn, (*inner[:2], out)

        def any_row(r: jax.Array, inner: Decoding) -> Decoding:
            states, position, symbols = step(r, inner, entries=entries, active=rows.active[r])
            return states, position, lax.dynamic_update_slice(inner[2], symbols, (r, jnp.uint32(0)))

        r, inner = lax.while_loop(lambda carry: carry[0] + turn < stop, full, (r, inner))
        return stop, lax.fori_loop(r, stop, any_row, inner)

    out = jnp.zeros((rows.table.size, lanes), jnp.uint8)
    pair = jnp.broadcast_to(states.reshape(shape), (2, *shape))
    _, (pair, position, out) = lax.while_loop(
        lambda carry: carry[0] < count.astype(jnp.uint32),
        run,
        (jnp.uint32(0), (pair, starts.reshape(shape[1:]), out)),
    )
    return pair[count & 1].reshape(-1), position.reshape(-1), out


def _starts(tables: np.ndarray) -> np.ndarray:
    return (np.cumsum(tables, axis=1) - tables).astype(np.uint32)


def encode_entries(
    tables: np.ndarray, capacity: int, rare: Sequence[np.ndarray | None] | None = None
) -> np.ndarray:
    """uint32 entry a symbol: frequency - 1 (12 bits), start (12 bits), or `_MISSING`.

    The rare symbols of a table have the entry of the first of them.
    """
    entries = ((tables - 1).astype(np.uint32) & 0xFFF) | (_starts(tables) & 0xFFF) << 12
    packed = np.zeros((capacity, 256), np.uint32)
    packed[: len(tables)] = np.where(tables > 0, entries, _MISSING)
    for row, symbols in zip(packed, rare or (), strict=False):
        if symbols is not None:
            row[symbols] = row[symbols[0]]
    return packed.reshape(-1)


def decode_entries(tables: np.ndarray, capacity: int) -> np.ndarray:
    """uint32 entry a slot: symbol (8 bits), frequency - 1 (12), slot - start (12)."""
    starts = _starts(tables)
    head = np.arange(256, dtype=np.uint32) | ((tables - 1).astype(np.uint32) & 0xFFF) << 8
    # Modulo 2**32, which leaves slot - start in the upper bits.
    base = np.repeat((head - (starts << 20)).reshape(-1), tables.reshape(-1)).reshape(-1, 2**BITS)
    packed = np.zeros((capacity, 2**BITS), np.uint32)
    packed[: len(tables)] = base + (np.arange(2**BITS, dtype=np.uint32) << 20)
    return packed.reshape(-1)
