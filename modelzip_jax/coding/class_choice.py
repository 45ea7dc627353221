"""Which rows and which columns of a matrix of codes to count apart, so that the file is smallest.

Codes of a trained layer are not spread alike: rows and columns have scales and means of their own. A table for each
class of rows times class of columns follows them, for the price of a few bits a row and column and of the tables. The
classes are found by turns, as in Lloyd's algorithm but with code length for distance (Chou, Lookabaugh & Gray 1989,
"Entropy-constrained vector quantization"): the columns' classes given, each row goes where its codes and the name of
its class are shortest, then the columns, and so on. Classes that do not pay die out.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from modelzip_jax.coding import histograms
from modelzip_jax.coding.entropy import coded_bits
from modelzip_jax.sampling import spread_places

__all__ = ["CLASSES", "Classes", "StateClasses", "cheapest_by_state", "cheapest_classes", "fewest_bits"]

CLASSES = 8
"""Most classes of rows, and of columns."""
_FEWEST = 16
"""Codes that a row must have for a class to be worth its name."""
_LEAST = 2048
"""Codes below which the tables cost more than they save."""
_SAMPLE = 1 << 18
"""Codes that the classes are learned from; then every row and column finds its own."""
_ROUNDS = 4
_GROUPS = 16
"""Groups of neighbouring symbols that classes are learned from, of about equal information."""
_BLOCK = 1 << 17
"""Codes that are counted at a time, so that what they are counted by stays in the cache."""
_SYMBOL_BITS = 5.5
_TABLE_BITS = 8.0 * 24 + 21
"""A part's table and its description, about: as much for itself, as much for each symbol in it."""
_SHARED = 0.1
"""The share of a table that a pair of classes costs, as many pairs have one together in the end."""
_MARGIN = 1 / 256
_MARGIN_BITS = 512.0
"""What has to be saved: this share of the bits, and so many."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """Classes of the rows and columns of a matrix, and the part to which each pair of them belongs.

    rows: uint8 `(rows,)`. columns: uint8 `(columns,)`. parts: int `(classes of rows, classes of columns)`. Of all
    three, every number from 0 to the largest occurs.
    """

    rows: np.ndarray
    columns: np.ndarray
    parts: np.ndarray


@dataclasses.dataclass(frozen=True)
class StateClasses:
    """As `Classes`, of codes of a trellis. parts: int `(classes of rows, classes of columns, quantizers)`."""

    rows: np.ndarray
    columns: np.ndarray
    parts: np.ndarray


def cheapest_by_state(codes: np.ndarray, quantizers: np.ndarray) -> StateClasses | None:
    """Classes with which codes take the fewest bits that have a table for each quantizer, too; None if that saves none.

    Args:
      codes: uint8 `(rows, columns)`. quantizers: the same shape, 0 and 1.
    """
    counts = histograms.count(codes)
    if codes.size < _LEAST or np.count_nonzero(counts) < 2:
        return None
    learned = _learned(codes, counts)
    rows, columns = learned or (np.zeros(n, np.uint8) for n in codes.shape)
    symbols = int(np.flatnonzero(counts)[-1]) + 1
    cells = _cells(codes + quantizers.astype(np.uint16) * symbols, rows, columns, 2 * symbols)
    rows, cells = _fewer(rows, cells)
    columns, cells = _fewer(columns, cells.swapaxes(0, 1))
    cells = np.ascontiguousarray(cells.swapaxes(0, 1))
    flat = cells.reshape(-1, 1, symbols)
    parts = _joined(flat, np.zeros(len(flat)), 1.0)
    if parts.max() == 0:
        return None
    kinds = parts.reshape(*cells.shape[:2], 2)
    rows, part_of = _distinct(rows, kinds.reshape(len(kinds), -1))
    turned = part_of.reshape(len(part_of), -1, 2).swapaxes(0, 1)
    columns, part_of = _distinct(columns, turned.reshape(len(turned), -1))
    return StateClasses(rows, columns, part_of.reshape(len(part_of), -1, 2).swapaxes(0, 1))


def cheapest_classes(codes: np.ndarray) -> Classes | None:
    """The classes of rows and columns with which the codes take the fewest bits; None if one histogram does.

    Args:
      codes: uint8 `(rows, columns)`.

    >>> rng = np.random.default_rng(0)
    >>> spread = np.where(np.arange(64) % 2, 9.0, 1.0)[:, None]
    >>> codes = (128 + np.rint(spread * rng.normal(size=(64, 256)))).astype(np.uint8)
    >>> found = cheapest_classes(codes)
    >>> found.parts.shape, np.unique(found.rows[::2]).size, np.unique(found.rows[1::2]).size
    ((2, 1), 1, 1)
    >>> cheapest_classes(rng.permutation(codes.reshape(-1)).reshape(64, 256)) is None
    True
    """
    return _cheapest(codes)[0]


def fewest_bits(codes: np.ndarray) -> float:
    """Bits that a matrix of codes takes with `cheapest_classes`, tables included.

    >>> codes = np.random.default_rng(0).integers(126, 130, (64, 256), np.uint8)
    >>> round(fewest_bits(codes) / codes.size, 1)
    2.0
    """
    return _cheapest(codes)[1]


def _cheapest(codes: np.ndarray) -> tuple[Classes | None, float]:
    counts = histograms.count(codes)
    whole = float(coded_bits(counts))
    if codes.size < _LEAST or np.count_nonzero(counts) < 2:
        return None, whole
    learned = _learned(codes, counts)
    if learned is None:
        return None, whole
    rows, columns = learned
    cells = _cells(codes, rows, columns, int(np.flatnonzero(counts)[-1]) + 1)
    rows, cells = _fewer(rows, cells)
    columns, cells = _fewer(columns, cells.swapaxes(0, 1))
    cells = cells.swapaxes(0, 1)
    flat = cells.reshape(-1, 1, cells.shape[2])
    parts = _joined(flat, np.zeros(len(flat)), 1.0)
    bits = float(coded_bits(_sums(flat[:, 0], parts)).sum())
    rows, parts = _distinct(rows, parts.reshape(cells.shape[:2]))
    columns, parts = _distinct(columns, parts.T)
    bits += 4.0 * parts.size + sum(_name_bits(classes) for classes in (rows, columns))
    if whole - bits < max(_MARGIN * whole, _MARGIN_BITS):
        return None, whole
    return Classes(rows, columns, parts.T), bits


def _name_bits(classes: np.ndarray) -> float:
    """Bits of the classes themselves in the file."""
    return float(coded_bits(histograms.count(classes))) if classes.any() else 0.0


def _learned(codes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Classes of rows and columns, not fewer than pay; None where a sample has nothing to gain by them."""
    groups, symbols = _grouped(codes, counts)
    height, width = codes.shape
    top = spread_places(height, max(_SAMPLE // width, 512))
    left = spread_places(width, max(_SAMPLE // len(top), 1))
    seen = np.ascontiguousarray(groups[top].take(left, axis=1))
    turned = np.ascontiguousarray(seen.T)
    whole = np.bincount(seen.reshape(-1), minlength=symbols)
    told = _lengths(whole)[seen]
    rows = _ranked(told.sum(1), CLASSES if width >= _FEWEST else 1)
    columns = _ranked(told.sum(0), CLASSES if height >= _FEWEST else 1)
    cells = _cells(seen, rows, columns, symbols)
    for _ in range(_ROUNDS):
        columns, cells = _moved(turned, rows, cells.swapaxes(0, 1), columns)
        rows, cells = _moved(seen, columns, cells.swapaxes(0, 1), rows)
    names = sum(float(_entropies(np.bincount(classes))) for classes in (rows, columns))
    bits = float(_entropies(whole))
    if bits - float(_entropies(cells).sum()) - names < _MARGIN * bits:
        return None
    if len(left) < width:
        columns, cells = _moved(np.ascontiguousarray(groups[top].T), rows, cells.swapaxes(0, 1), columns)
        cells = cells.swapaxes(0, 1)
    if seen.size < codes.size:
        rows, cells = _moved(groups, columns, cells, rows)
    return rows, columns


def _grouped(codes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, int]:
    """The codes by groups of neighbouring symbols, uint8 of the same shape, and the number of groups."""
    (used,) = np.nonzero(counts)
    group = np.arange(used.size)
    if used.size > _GROUPS:
        told = counts[used] * np.log2(counts.sum() / counts[used])
        middle = (np.cumsum(told) - told / 2) / told.sum()
        group = np.unique((middle * _GROUPS).astype(np.intp), return_inverse=True)[1]
    table = np.zeros(256, np.uint8)
    table[used] = group
    # A table of bytes is looked up four times as fast as an array by indices.
    grouped = np.frombuffer(codes.tobytes().translate(table.tobytes()), np.uint8)
    return grouped.reshape(codes.shape), int(group[-1]) + 1


def _ranked(scores: np.ndarray, classes: int) -> np.ndarray:
    """Classes of about equal size by rank: uint8, as the scores."""
    ranks = np.empty(scores.size, np.intp)
    ranks[np.argsort(scores, kind="stable")] = np.arange(scores.size)
    return (ranks * min(classes, scores.size) // scores.size).astype(np.uint8)


def _cells(codes: np.ndarray, rows: np.ndarray, columns: np.ndarray, symbols: int) -> np.ndarray:
    """How often each symbol occurs in each pair of classes: int64 `(of rows, of columns, symbols)`."""
    shape = int(rows.max()) + 1, int(columns.max()) + 1, symbols
    places = columns.astype(np.intp) * symbols
    starts = rows.astype(np.intp)[:, None] * (shape[1] * symbols)
    total = np.zeros(shape[0] * shape[1] * symbols, np.int64)
    step = max(_BLOCK // codes.shape[1], 1)
    for at in range(0, len(codes), step):
        block = codes[at : at + step] + places
        block += starts[at : at + step]
        total += np.bincount(block.reshape(-1), minlength=total.size)
    return total.reshape(shape)


def _lengths(counts: np.ndarray) -> np.ndarray:
    """Bits of each symbol by its share: float32, as the counts, the last axis of which are symbols."""
    shares = counts + 1 / 64  # What a class does not have yet is not out of the question.
    return np.log2(shares.sum(-1, keepdims=True) / shares).astype(np.float32)


def _moved(
    codes: np.ndarray, across: np.ndarray, cells: np.ndarray, before: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each row in the class in which its codes, and the class's name, are shortest.

    Args:
      codes: `(rows, columns)`.
      across: the columns' classes.
      cells: how often symbols occur by now, `(classes of rows, classes of columns, symbols)`.
      before: the rows' classes by now, or those of a sample of them.

    Returns:
      The classes, uint8 `(rows,)`, numbered anew without those that nothing is in any more, and their cells.
    """
    classes, others, symbols = cells.shape
    if classes == 1:
        return np.zeros(len(codes), np.uint8), cells
    names = np.log2(before.size / np.bincount(before)).astype(np.float32)
    width = others * symbols
    table = np.ascontiguousarray(_lengths(cells).reshape(classes, width).T)
    found, total = np.empty(len(codes), np.uint8), np.zeros((classes, width))
    step = max(_BLOCK // max(codes.shape[1], width), 1)
    places = np.arange(step)[:, None] * width + across.astype(np.intp) * symbols
    for at in range(0, len(codes), step):
        block = codes[at : at + step]
        counts = np.bincount((block + places[: len(block)]).reshape(-1), minlength=len(block) * width)
        seen = counts.reshape(-1, width).astype(np.float32)
        found[at : at + step] = nearest = (seen @ table + names).argmin(1)
        # Whole numbers below 2**24, which float32 sums exactly.
        total += (nearest == np.arange(classes)[:, None]).astype(np.float32) @ seen
    kept, dense = np.unique(found, return_inverse=True)
    return dense.astype(np.uint8), total[kept].reshape(-1, others, symbols)


def _fewer(classes: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes, and the cells along the first axis, with those joined that are not worth their names."""
    joined = _joined(cells, np.bincount(classes), _SHARED)
    return joined[classes].astype(np.uint8), _sums(cells, joined)


def _sums(cells: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """Sums of the cells with the same number in `joined`, along the first axis."""
    total = np.zeros((int(joined.max()) + 1, *cells.shape[1:]), np.int64)
    np.add.at(total, joined, cells)
    return total


def _distinct(classes: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes with the same parts as one, and the parts of each that is left."""
    parts, same = np.unique(parts, axis=0, return_inverse=True)
    return same.reshape(-1)[classes].astype(np.uint8), parts


def _joined(cells: np.ndarray, sizes: np.ndarray, share: float) -> np.ndarray:
    """Which histograms to join: for each its number among the joined ones, int `(n,)`.

    The two that save the most together are joined while any do.

    Args:
      cells: `(n, m, symbols)`, of each n, with a table for each of its m.
      sizes: `(n,)`, the members whose names tell that they belong there, 0 for none.
      share: of a table, that each of them costs.
    """
    cells, sizes = cells.astype(np.float64), sizes.astype(np.float64)
    members = max(float(sizes.sum()), 1.0)

    def cost(cells: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        used = np.count_nonzero(cells, axis=-1)
        tables = share * (_SYMBOL_BITS * used + _TABLE_BITS * (used > 0))
        return (_entropies(cells) + tables).sum(-1) + sizes * np.log2(members / np.maximum(sizes, 1.0))

    count = len(cells)
    numbers, costs = np.arange(count), cost(cells, sizes)
    first, second = np.triu_indices(count, 1)
    saved = np.full((count, count), -np.inf)
    saved[first, second] = (
        costs[first] + costs[second] - cost(cells[first] + cells[second], sizes[first] + sizes[second])
    )
    while count > 1:
        a, b = divmod(int(saved.argmax()), count)
        if saved[a, b] <= 0:
            break
        cells[a] += cells[b]
        sizes[a] += sizes[b]
        numbers[numbers == b] = a
        costs[a] = cost(cells[a], sizes[a])
        saved[b], saved[:, b] = -np.inf, -np.inf
        others = np.unique(numbers[numbers != a])
        gains = costs[a] + costs[others] - cost(cells[a] + cells[others], sizes[a] + sizes[others])
        saved[np.minimum(a, others), np.maximum(a, others)] = gains
    return np.unique(numbers, return_inverse=True)[1]


def _entropies(counts: np.ndarray) -> np.ndarray:
    """Total 0-order entropy in bits of histograms along the last axis."""
    total = counts.sum(-1)
    each = (counts * np.log2(np.maximum(counts, 1))).sum(-1)
    return total * np.log2(np.maximum(total, 1)) - each
