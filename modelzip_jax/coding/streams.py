"""How each byte stream is coded: raw, by one table, by a table with escapes, or as an earlier one."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from modelzip_jax.coding import escapes, histograms

__all__ = ["CODED", "ESCAPED", "RAW", "REPEATED", "Plan", "Segment", "plan", "plan_all"]

RAW, CODED, ESCAPED, REPEATED = range(4)
MAX_REPEATS = 255
"""Most streams that repeat the same one: it bounds what a byte of the file can stand for."""
_WORTH = 8
"""Bytes that a stream must take for its repetition to be told instead."""
_SAVED = 1 / 64
"""The part of a stream's bytes that coding must save, table included.

Mantissa planes often save about a percent, a quarter of that in the file, and would take most
of the decoding time.
"""
_BLOCK = 64
"""Histograms whose tables are looked for together."""


class Segment(NamedTuple):
    """What one table codes. symbols: uint8[n]. table: uint32[256]. rare: uint8[k], symbols that are coded as the
    first of them, or None."""

    symbols: np.ndarray
    table: np.ndarray
    rare: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The decision for one stream.

    coding: RAW, CODED, ESCAPED or REPEATED. length: bytes of the stream. tables: uint32[256] frequencies, none,
    one, or two (of the stream with escapes, and of the escaped symbols). lengths: symbols coded by
    each table. bits: estimated bits of each. rare: for ESCAPED, the escaped symbols, the escape first.
    back: for REPEATED, how many streams before this one the same bytes were.
    """

    coding: int
    length: int
    tables: tuple[np.ndarray, ...] = ()
    lengths: tuple[int, ...] = ()
    bits: tuple[float, ...] = ()
    rare: np.ndarray | None = None
    back: int = 0

    def segments(self, stream: np.ndarray) -> list[Segment]:
        """The stream as the segments that its tables code."""
        if self.rare is None:
            return [Segment(stream, table) for table in self.tables]
        common, escaped = self.tables
        return [Segment(stream, common, self.rare), Segment(escapes.extract(stream, self.rare), escaped)]


def plan_all(
    leaves: Sequence[Callable[[], Iterable[np.ndarray]]], done: Callable[[int], None] | None = None
) -> list[Plan]:
    """The coding of each stream in order; one with the bytes of an earlier one is not coded again.

    Args:
        leaves: the streams (uint8 1-D) of each leaf; those that may repeat are asked for twice.
        done: told a leaf's index once its symbols are counted.

    >>> [p.coding == REPEATED for p in plan_all([lambda: [np.arange(256, dtype=np.uint8)] * 2])]
    [False, True]
    """
    # Streams of one histogram have one plan, and only they can be the same.
    keys: list[list[bytes]] = []
    plans: dict[bytes, Plan] = {}
    waiting: dict[bytes, np.ndarray] = {}
    for index, streams in enumerate(leaves):
        keys.append([])
        for stream in streams():
            counts = histograms.count(stream)
            key = _digest(counts)
            keys[-1].append(key)
            if key not in plans and key not in waiting:
                waiting[key] = counts
            if len(waiting) == _BLOCK:
                plans |= _plans(waiting)
                waiting = {}
        if done:
            done(index)
    plans |= _plans(waiting)
    return _without_repeats(leaves, keys, plans)


def _plans(waiting: dict[bytes, np.ndarray]) -> dict[bytes, Plan]:
    return dict(zip(waiting, _planned(np.stack(list(waiting.values()))), strict=True)) if waiting else {}


def _without_repeats(
    leaves: Sequence[Callable[[], Iterable[np.ndarray]]], keys: list[list[bytes]], plans: dict[bytes, Plan]
) -> list[Plan]:
    often = collections.Counter(key for leaf in keys for key in leaf)
    worth = {key for key, n in often.items() if n > 1 and plans[key].length and _bytes(plans[key]) > _WORTH}
    found: list[Plan] = []
    seen: dict[bytes, tuple[int, int]] = {}
    for streams, leaf in zip(leaves, keys, strict=True):
        contents = streams() if worth.intersection(leaf) else [None] * len(leaf)
        for key, stream in zip(leaf, contents, strict=True):
            index = len(found)
            found.append(plans[key])
            if stream is None or key not in worth:
                continue
            content = _digest(stream)
            first, repeats = seen.get(content, (index, MAX_REPEATS))
            if repeats < MAX_REPEATS:
                seen[content] = first, repeats + 1
                found[-1] = Plan(REPEATED, stream.size, back=index - first)
            else:
                seen[content] = index, 0
    return found


def _digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=32).digest()


def _bytes(p: Plan) -> float:
    return p.length if p.coding == RAW else sum(p.bits) / 8 + 4 * len(p.tables)


def plan(stream: np.ndarray) -> Plan:
    """Chooses the coding of a stream (uint8 1-D) that takes the fewest bytes, tables included.

    >>> plan(np.zeros(1000, np.uint8)).coding == CODED, plan(np.arange(256, dtype=np.uint8)).coding == RAW
    (True, True)
    """
    return _planned(histograms.count(stream)[None])[0]


def _planned(counts: np.ndarray) -> list[Plan]:
    """The plans of streams with these histograms."""
    lengths = counts.sum(axis=1)
    most = lengths * (1 - _SAVED)
    plans = [Plan(RAW, length) for length in lengths.tolist()]
    # Without the search for a table where even the entropy is too much.
    (rows,) = np.nonzero(histograms.entropies(counts) / 8 < most)
    if not rows.size:
        return plans
    for row, found in zip(rows.tolist(), escapes.divide(counts[rows]), strict=True):
        if found.plain_bits / 8 < most[row]:
            coding, rare = (ESCAPED, found.rare) if found.rare.size else (CODED, None)
            plans[row] = Plan(coding, plans[row].length, found.tables, found.lengths, found.bits, rare)
    return plans
