"""How each byte stream is coded: raw, by one table, by a table with escapes, or as an earlier one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np

from modelzip_jax.coding import escapes, histograms, planes

__all__ = ["CODED", "ESCAPED", "RAW", "REPEATED", "Plan", "plan", "plan_all"]

RAW, CODED, ESCAPED, REPEATED = range(4)
MAX_REPEATS = 255
"""Most streams that repeat the same one: it bounds what a byte of the file can stand for."""
_WORTH = 8
"""Bytes that a stream must take for its repetition to be told instead."""


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

    def segments(self, stream: np.ndarray) -> list[np.ndarray]:
        """The stream as the segments that its tables code."""
        if self.coding == REPEATED:
            return []
        if self.rare is None:
            return [stream]
        return list(escapes.extract(stream, self.rare))


def plan_all(streams: Iterable[np.ndarray]) -> list[Plan]:
    """The coding of each stream in order; one with the bytes of an earlier one is not coded again.

    >>> [p.coding == REPEATED for p in plan_all([np.arange(256, dtype=np.uint8)] * 2)]
    [False, True]
    """
    plans: list[Plan] = []
    seen: dict[bytes, tuple[int, int]] = {}
    for index, stream in enumerate(streams):
        key = hashlib.blake2b(np.ascontiguousarray(stream).data, digest_size=32).digest()
        first, repeats = seen.get(key, (index, MAX_REPEATS))
        if repeats < MAX_REPEATS:
            seen[key] = first, repeats + 1
            plans.append(Plan(REPEATED, stream.size, back=index - first))
            continue
        plans.append(plan(stream))
        if stream.size and _bytes(plans[-1]) > _WORTH:
            seen[key] = index, 0
    return plans


def _bytes(p: Plan) -> float:
    return p.length if p.coding == RAW else sum(p.bits) / 8 + 4 * len(p.tables)


def plan(stream: np.ndarray) -> Plan:
    """Chooses the coding of a stream (uint8 1-D) that takes the fewest bytes, tables included.

    >>> plan(np.zeros(1000, np.uint8)).coding == CODED, plan(np.arange(256, dtype=np.uint8)).coding == RAW
    (True, True)
    """
    counts = histograms.count(stream)
    if not planes.gains(counts):
        return Plan(RAW, stream.size)
    rare = escapes.rare_symbols(counts)
    if rare.size == 0:
        table = histograms.fit_frequencies(counts)
        return Plan(CODED, stream.size, (table,), (stream.size,), (histograms.code_length(counts, table),))
    escaped = np.zeros_like(counts)
    escaped[rare] = counts[rare]
    common = counts - escaped
    common[rare[0]] = escaped.sum()
    tables = histograms.fit_frequencies(common), histograms.fit_frequencies(escaped)
    bits = tuple(histograms.code_length(c, t) for c, t in zip((common, escaped), tables, strict=True))
    return Plan(ESCAPED, stream.size, tables, (stream.size, int(escaped.sum())), bits, rare)
