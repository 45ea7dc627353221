"""How each byte stream is coded: raw, by one table, or by a table with escapes."""

from __future__ import annotations

import dataclasses

import numpy as np

from modelzip_jax.coding import escapes, histograms, planes

__all__ = ["CODED", "ESCAPED", "RAW", "Plan", "plan"]

RAW, CODED, ESCAPED = range(3)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The decision for one stream.

    coding: RAW, CODED or ESCAPED. length: bytes of the stream. tables: uint32[256] frequencies, none,
    one, or two (of the stream with escapes, and of the escaped symbols). lengths: symbols coded by
    each table. bits: estimated bits of each. rare: for ESCAPED, the escaped symbols, the escape first.
    """

    coding: int
    length: int
    tables: tuple[np.ndarray, ...] = ()
    lengths: tuple[int, ...] = ()
    bits: tuple[float, ...] = ()
    rare: np.ndarray | None = None

    def segments(self, stream: np.ndarray) -> list[np.ndarray]:
        """The stream as the segments that its tables code."""
        if self.rare is None:
            return [stream]
        return list(escapes.extract(stream, self.rare))


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
        table = histograms.fit(counts)
        return Plan(CODED, stream.size, (table,), (stream.size,), (histograms.code_length(counts, table),))
    escaped = np.zeros_like(counts)
    escaped[rare] = counts[rare]
    common = counts - escaped
    common[rare[0]] = escaped.sum()
    tables = histograms.fit(common), histograms.fit(escaped)
    bits = tuple(histograms.code_length(c, t) for c, t in zip((common, escaped), tables, strict=True))
    return Plan(ESCAPED, stream.size, tables, (stream.size, int(escaped.sum())), bits, rare)
