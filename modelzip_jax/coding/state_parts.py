"""Codes of a trellis in the file: by classes of rows and columns, and by the quantizer that each one is of.

Which quantizer that is, a reader knows once it has the codes before in the same run. So parts are in the order in which
it meets them: the first codes of all runs, then the second ones, and so on.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from modelzip_jax.coding.class_choice import CLASSES, StateClasses, cheapest_by_state
from modelzip_jax.coding.joined import Joined
from modelzip_jax.errors import FormatError
from modelzip_jax.packed import Bits, PackedArray, packed_kind, static
from modelzip_jax.quantization.trellis.codes import TrellisCodes
from modelzip_jax.quantization.trellis.machine import following

__all__ = ["ByState", "by_state"]


@packed_kind("by_state")
class ByState(PackedArray):
    """Codes of a `TrellisCodes`, those of each class of rows, class of columns and quantizer together.

    codes: the parts, `Bits` of equal bits, one after the other. row_class, column_class: uint8 `(rows,)` and
    `(columns,)`, None where there is one class. parts: the part of each class of rows, class of columns and quantizer,
    the last changing first.
    """

    since = 6

    codes: PackedArray
    row_class: jax.Array | None
    column_class: jax.Array | None
    parts: tuple[int, ...] = static()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.codes.size,)

    @staticmethod
    def of(held: TrellisCodes, height: int) -> ByState | None:
        """The codes of a leaf that is a matrix of so many rows; None if one table for all does as well."""
        codes = held.codes.unpack_host()
        if not isinstance(held.codes, Bits) or held.codes.bits < 2:
            return None
        quantizers = held.quantizers()
        found = cheapest_by_state(*(x.reshape(height, -1) for x in (codes, quantizers)))  # type: ignore[union-attr]
        if found is None:
            return None
        part = _part_of_each(found)[_cells(found) + quantizers]
        places = np.arange(codes.size).reshape(held.lines)  # type: ignore[union-attr]
        met = np.concatenate([places[at].reshape(-1) for _, at in held.along.positions()])
        order = met[np.argsort(part[met], kind="stable")]
        ends = np.cumsum(np.bincount(part))
        pieces = np.split(codes[order], ends[:-1])  # type: ignore[index]
        joined = Joined.of([Bits.pack(piece, held.codes.bits) for piece in pieces])
        row_class, column_class = (x if x.any() else None for x in (found.rows, found.columns))
        return ByState(joined, row_class, column_class, tuple(found.parts.reshape(-1).tolist()))

    def in_order(self, held: TrellisCodes) -> Bits:
        """The codes in C order.

        Raises:
          FormatError: classes, parts and lines do not fit together.
        """
        parts = Joined.parts(self.codes)
        bits = parts[0].bits if isinstance(parts[0], Bits) else 0
        if not 2 <= bits <= 8 or not all(isinstance(part, Bits) and part.bits == bits for part in parts):
            raise FormatError("codes by states whose parts are not codes of one width")
        count = sum(part.size for part in parts)
        if not count or math.prod(held.lines) != count:
            raise FormatError(f"{count} codes by states along {held.lines}")
        found = self._classes(count, len(parts))
        table, cells = _part_of_each(found), _cells(found).reshape(held.lines)
        left = [np.asarray(part.unpack_host()) for part in parts]
        at = np.zeros(len(parts), np.int64)
        codes, along = np.empty(held.lines, np.uint8), held.along
        state = np.zeros((along.before, along.runs, along.behind), np.int8)
        for reach, places in along.positions():
            now = state[:, :reach]
            part = table[cells[places] + (now & 1)].reshape(-1)
            ends = at + np.bincount(part, minlength=len(parts))
            pieces = [each[a:b] for each, a, b in zip(left, at.tolist(), ends.tolist(), strict=True)]
            values = np.concatenate(pieces)
            if values.size != part.size:
                raise FormatError("parts of other numbers of codes than their states ask for")
            met = np.empty_like(values)
            met[np.argsort(part, kind="stable")] = values
            met = met.reshape(now.shape)
            codes[places], at = met, ends
            odd = (met + np.uint8(held.low % 2)).view(np.int8) & 1
            state[:, :reach] = following(now, odd, held.states)
        if any(end != each.size for end, each in zip(at.tolist(), left, strict=True)):
            raise FormatError("parts of more codes than their states ask for")
        return Bits.pack(codes.reshape(-1), bits)

    def _classes(self, count: int, parts: int) -> StateClasses:
        told = [None if x is None else np.asarray(x) for x in (self.row_class, self.column_class)]
        if not all(x is None or (x.dtype == np.uint8 and x.ndim == 1 and x.size) for x in told):
            raise FormatError("classes of rows and columns that are no bytes")
        product = math.prod(x.size for x in told if x is not None)
        both = all(x is not None for x in told)
        if count != product if both else count % product:
            raise FormatError(f"{count} codes by states of {product} rows, columns, or both")
        # Where only one is told, the other has what is left; of neither, all codes are in one row.
        if self.row_class is None and self.column_class is None:
            told[0] = np.zeros(1, np.uint8)
        rows, columns = (np.zeros(count // product, np.uint8) if x is None else x for x in told)
        sizes = int(rows.max()) + 1, int(columns.max()) + 1
        known = isinstance(self.parts, tuple) and all(
            type(part) is int and 0 <= part < parts for part in self.parts
        )
        if max(sizes) > CLASSES or not known or len(self.parts) != 2 * math.prod(sizes):
            raise FormatError(
                f"{sizes[0]} x {sizes[1]} classes by states with the parts {str(self.parts)[:80]}"
            )
        return StateClasses(rows, columns, np.reshape(self.parts, (*sizes, 2)))


def by_state(held: TrellisCodes, height: int) -> TrellisCodes:
    """The codes of a trellis in the form that takes the fewest bits."""
    found = ByState.of(held, height) if held.size else None
    if found is None:
        return held
    return TrellisCodes(found, held.wide, held.low, held.lines, held.run, held.states)


def _part_of_each(found: StateClasses) -> np.ndarray:
    return found.parts.reshape(-1).astype(np.uint8)


def _cells(found: StateClasses) -> Any:
    """The class of each code's row and column, as an index into the parts of quantizer 0: uint8, C order."""
    width = 2 * found.parts.shape[1]
    return (found.rows[:, None] * np.uint8(width) + found.columns * np.uint8(2)).reshape(-1)
