"""The compiled loops of the rANS coder; `rans` explains them and checks what they are given."""

from __future__ import annotations

import functools
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
_GATHER = lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(0,), start_index_map=(0,))

Encoding = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
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


@jax.jit
def encode_rows(symbols: jax.Array, table: jax.Array, rows: Rows, count: jax.Array) -> Encoding:
    """symbols uint8[R, lanes] -> states, words and their flags by group, whether all had codes."""
    capacity, lanes = symbols.shape
    shape = grid(lanes)
    lane = jnp.arange(lanes, dtype=jnp.int32).reshape(shape)

    def step(k: jax.Array, carry: Encoding) -> Encoding:
        state, seen, words, flags = carry
        r = (count - 1 - k).astype(jnp.uint32)
        row = lax.dynamic_slice(symbols, (r, jnp.uint32(0)), (1, lanes)).reshape(shape)
        entry = _take(table, rows.table[r] * 256 + row.astype(jnp.int32))
        frequency, start = (entry & 0xFFF) + 1, (entry >> 12) & 0xFFF
        on = lane < rows.active[r]
        flag = ((state >> (32 - BITS)) >= frequency) & on
        at = (r, jnp.uint32(0))
        words = lax.dynamic_update_slice(words, state.astype(jnp.uint16).reshape(1, lanes), at)
        flags = lax.dynamic_update_slice(flags, flag.reshape(1, lanes), at)
        low = jnp.where(flag, state >> 16, state)
        # (low // f) << 12 | low % f + start, without a second division.
        coded = low + (low // frequency) * (2**BITS - frequency) + start
        seen = seen | jnp.where(on, entry, jnp.uint32(0))
        return jnp.where(on, coded, state), seen, words, flags

    def by_group(rows: jax.Array) -> jax.Array:
        return rows.reshape(capacity, *shape).transpose(2, 0, 1).reshape(shape[1], -1)

    state, seen, words, flags = lax.fori_loop(
        0,
        count,
        step,
        (
            jnp.full(shape, START, jnp.uint32),
            jnp.zeros(shape, jnp.uint32),
            jnp.zeros((capacity, lanes), jnp.uint16),
            jnp.zeros((capacity, lanes), jnp.bool_),
        ),
    )
    return state.reshape(-1), by_group(words), by_group(flags), jnp.all(seen < _MISSING)


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
    shape = grid(lanes)
    lane = jnp.arange(lanes, dtype=jnp.int32).reshape(shape)
    bit = jnp.arange(shape[0], dtype=jnp.uint32)[:, None]
    below = (jnp.uint32(1) << bit) - 1

    def step(r: jax.Array, carry: Decoding, *, entries: jax.Array, active: jax.Array | None) -> Decoding:
        # Two states take turns. Writing one of them in place keeps XLA:CPU from splitting each
        # row's refill between threads, which on busy cores costs more than the row itself.
        states, position, out = carry
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
        symbols = entry.astype(jnp.uint8).reshape(1, lanes)
        return states, position, lax.dynamic_update_slice(out, symbols, (r, jnp.uint32(0)))

    def run(carry: tuple[jax.Array, Decoding]) -> tuple[jax.Array, Decoding]:
        # One table at a time: small enough for the innermost cache, and see above.
        r, inner = carry
        end = r + rows.run[r].astype(jnp.uint32)
        entries = lax.dynamic_slice(table, (rows.table[r] << BITS,), (2**BITS,))
        full = functools.partial(step, entries=entries, active=None)
        inner = lax.fori_loop(r, end, full, inner)
        return end + 1, step(end, inner, entries=entries, active=rows.active[end])

    out = jnp.zeros((rows.table.size, lanes), jnp.uint8)
    pair = jnp.broadcast_to(states.reshape(shape), (2, *shape))
    _, (pair, position, out) = lax.while_loop(
        lambda carry: carry[0] < count.astype(jnp.uint32), run, (jnp.uint32(0), (pair, starts, out))
    )
    return pair[count & 1].reshape(-1), position, out


def _starts(tables: np.ndarray) -> np.ndarray:
    return (np.cumsum(tables, axis=1) - tables).astype(np.uint32)


def encode_entries(tables: np.ndarray, capacity: int) -> np.ndarray:
    """uint32 entry a symbol: frequency - 1 (12 bits), start (12 bits), or `_MISSING`."""
    entries = ((tables - 1).astype(np.uint32) & 0xFFF) | (_starts(tables) & 0xFFF) << 12
    packed = np.zeros((capacity, 256), np.uint32)
    packed[: len(tables)] = np.where(tables > 0, entries, _MISSING)
    return packed.reshape(-1)


def decode_entries(tables: np.ndarray, capacity: int) -> np.ndarray:
    """uint32 entry a slot: symbol (8 bits), frequency - 1 (12), slot - start (12)."""
    symbol = np.tile(np.arange(256, dtype=np.uint32), len(tables))
    slot = np.tile(np.arange(2**BITS, dtype=np.uint32), len(tables))
    frequency = tables.reshape(-1)
    head = symbol | ((frequency - 1).astype(np.uint32) & 0xFFF) << 8
    # Modulo 2**32, which leaves slot - start in the upper bits.
    base = head - (_starts(tables).reshape(-1) << 20)
    packed = np.zeros((capacity << BITS), np.uint32)
    packed[: slot.size] = np.repeat(base, frequency) + (slot << 20)
    return packed
