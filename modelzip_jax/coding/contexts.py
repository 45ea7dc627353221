"""Codes in the file by classes of rows and columns, each with a frequency table of its own.

In memory they are one array in C order. What the classes are for, and how they are found: `class_choice`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from modelzip_jax.coding import histograms
from modelzip_jax.coding.class_choice import CLASSES, Classes, cheapest_classes, fewest_bits
from modelzip_jax.coding.entropy import coded_bits
from modelzip_jax.coding.joined import Joined
from modelzip_jax.coding.state_parts import by_state
from modelzip_jax.errors import FormatError
from modelzip_jax.packed import Bits, Elementwise, PackedArray, packed_kind, static
from modelzip_jax.quantization.trellis.codes import TrellisCodes

__all__ = ["Classed", "by_classes", "element_bits"]


@packed_kind("classed")
class Classed(PackedArray):
    """Codes of a matrix, those of each class of rows and class of columns together.

    codes: the parts, `Bits` of equal bits, one after the other. row_class, column_class: uint8 `(rows,)` and
    `(columns,)`, None where there is one class. parts: the part of each pair of classes, those of the first class
    of rows first. A part holds its pairs in that order, and a pair its codes in C order.
    """

    since = 5

    codes: PackedArray
    row_class: jax.Array | None
    column_class: jax.Array | None
    parts: tuple[int, ...] = static()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.codes.size,)

    @staticmethod
    def of(codes: np.ndarray, bits: int, found: Classes) -> Classed:
        """Codes `(rows, columns)` by the classes that were found for them."""
        rows, columns = (np.argsort(classes, kind="stable") for classes in (found.rows, found.columns))
        codes = codes[rows].take(columns, axis=1)
        pieces: list[list[np.ndarray]] = [[] for _ in range(int(found.parts.max()) + 1)]
        boxes = _boxes(np.bincount(found.rows), np.bincount(found.columns))
        for part, box in zip(found.parts.reshape(-1), boxes, strict=True):
            pieces[part].append(codes[box].reshape(-1))
        joined = Joined.of([Bits.pack(np.concatenate(piece), bits) for piece in pieces])
        row_class, column_class = (x if x.any() else None for x in (found.rows, found.columns))
        return Classed(joined, row_class, column_class, tuple(found.parts.reshape(-1).tolist()))

    def in_order(self) -> Bits:
        """The codes in C order.

        Raises:
          FormatError: classes and parts do not fit together.
        """
        held = Joined.parts(self.codes)
        bits = held[0].bits if isinstance(held[0], Bits) else 0
        if not 2 <= bits <= 8 or not all(isinstance(part, Bits) and part.bits == bits for part in held):
            raise FormatError("codes by classes whose parts are not codes of one width")
        counts = [part.size for part in held]
        rows, columns = _filled(self.row_class, self.column_class, sum(counts))
        heights, widths = np.bincount(rows), np.bincount(columns)
        sizes = np.outer(heights, widths).reshape(-1)
        parts = self.parts
        if (
            max(heights.size, widths.size) > CLASSES
            or not isinstance(parts, tuple)
            or len(parts) != sizes.size
            or not all(type(part) is int and 0 <= part < len(held) for part in parts)
        ):
            raise FormatError(f"{heights.size} x {widths.size} classes with the parts {str(parts)[:80]}")
        wanted = [0] * len(held)
        for part, size in zip(parts, sizes.tolist(), strict=True):
            wanted[part] += size
        if wanted != counts:
            raise FormatError(f"parts of {counts} codes where the classes have {wanted}")
        codes = np.empty((rows.size, columns.size), np.uint8)
        left = [np.asarray(part.unpack_host()) for part in held]
        at = [0] * len(held)
        for part, box in zip(parts, _boxes(heights, widths), strict=True):
            target = codes[box]
            target[...] = left[part][at[part] : at[part] + target.size].reshape(target.shape)
            at[part] += target.size
        from_rows, from_columns = (np.argsort(x, kind="stable") for x in (rows, columns))
        placed = np.empty_like(codes)
        placed[from_rows] = codes.take(np.argsort(from_columns), axis=1)
        return Bits.pack(placed.reshape(-1), bits)


def by_classes(packed: PackedArray) -> PackedArray:
    """The packed array with its codes by classes, if it has any and that makes the file smaller."""
    if not isinstance(packed, Elementwise):
        return packed
    name = packed.element_field
    held: Any = getattr(packed, name)
    if isinstance(held, TrellisCodes):
        return dataclasses.replace(packed, **{name: by_state(held, _height(packed.shape))})  # type: ignore[type-var]
    within = isinstance(held, PackedArray) and not isinstance(held, Bits)
    codes = getattr(held, "codes", None) if within else held
    if not isinstance(codes, Bits):
        return packed
    classed = _classed(codes, packed.shape)
    if classed is None:
        return packed
    value = dataclasses.replace(held, codes=classed) if within else classed
    return dataclasses.replace(packed, **{name: value})  # type: ignore[type-var]


def element_bits(codes: np.ndarray) -> float:
    """Bits that the file takes for a leaf's codes, uint8 in the shape of the leaf, by classes where these pay."""
    if codes.ndim < 2 or not codes.size:
        return float(coded_bits(histograms.count(codes)))
    return fewest_bits(codes.reshape(_height(codes.shape), -1))


def _classed(codes: Bits, shape: tuple[int, ...]) -> Classed | None:
    if codes.bits < 2 or len(shape) < 2 or codes.count != math.prod(shape) or not codes.count:
        return None
    matrix = codes.unpack_host().reshape(_height(shape), -1)
    found = cheapest_classes(matrix)
    return None if found is None else Classed.of(matrix, codes.bits, found)


def _height(shape: tuple[int, ...]) -> int:
    """Rows of a leaf as a matrix: of the axes that come first, as many as make its smaller side the largest.

    >>> _height((3, 3, 64, 32)), _height((64, 32, 3, 3)), _height((12, 384, 384))
    (576, 64, 4608)
    """
    heights = list(itertools.accumulate(shape[:-1], operator.mul))
    return max(reversed(heights), key=lambda height: min(height, math.prod(shape) // height))


def _boxes(heights: np.ndarray, widths: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Where each pair of classes is once rows and columns are sorted by their class."""
    bottoms, rights = np.cumsum(heights), np.cumsum(widths)
    for height, bottom in zip(heights, bottoms, strict=True):
        for width, right in zip(widths, rights, strict=True):
            yield slice(bottom - height, bottom), slice(right - width, right)


def _filled(row_class: Any, column_class: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes of rows and columns; zeros, as many as `count` codes ask for, where they are not told."""
    told = [None if x is None else np.asarray(x) for x in (row_class, column_class)]
    known = [x for x in told if x is not None]
    if not known or not all(x.dtype == np.uint8 and x.ndim == 1 and x.size for x in known):
        raise FormatError("classes of rows and columns that are no bytes, or none")
    product = math.prod(x.size for x in known)
    if not count or (count != product if len(known) == 2 else count % product):
        raise FormatError(f"{count} codes by classes of {' x '.join(str(x.size) for x in known)}")
    rows, columns = (np.zeros(count // product, np.uint8) if x is None else x for x in told)
    return rows, columns
