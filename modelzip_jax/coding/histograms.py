"""Static byte histograms: counting, normalizing to a power of two, and a compact stored form.

Only integers decide a frequency and what costs less, so the same counts give the same bytes on every
machine (a logarithm of floats may differ in its last bit between two of them). The stored table is what
makes small tensors expensive, so `fit_frequencies` may trade precision for table bytes.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int64, Integer, UInt8, UInt32

from modelzip_jax.coding.tables import BITS, decode_table, encode_table, table_sizes

__all__ = [
    "BITS",
    "code_length",
    "count",
    "decode_table",
    "encode_table",
    "entropy",
    "fit_frequencies",
    "fitted_bits",
    "normalize_counts",
]

_BLOCK = 1 << 20
_LOG_BITS = 40
_FRACTION_BITS = 32
_INDEX_BITS = 12


def count(symbols: UInt8[np.ndarray, " ..."]) -> Int64[np.ndarray, " 256"]:
    """Counts each byte value.

    Args:
        symbols: uint8 array of any shape.

    Returns:
        int64[256], the number of occurrences of each value.

    >>> count(np.array([3, 3, 7], np.uint8))[[3, 7]].tolist()
    [2, 1]
    """
    flat = np.ascontiguousarray(symbols, np.uint8).reshape(-1)
    totals = np.zeros(256, np.int64)
    # Blocks: bincount widens its input to int64. Pairs of bytes: half as many increments.
    for start in range(0, flat.size - flat.size % 2, _BLOCK):
        block = flat[start : min(start + _BLOCK, flat.size - flat.size % 2)]
        if block.size < 1 << 16:
            totals += np.bincount(block, minlength=256)
            continue
        pairs = np.bincount(block.view(np.uint16), minlength=1 << 16).reshape(256, 256)
        totals += pairs.sum(axis=0) + pairs.sum(axis=1)
    if flat.size % 2:
        totals[flat[-1]] += 1
    return totals


@functools.cache
def _log_ratios(bits: int) -> np.ndarray:
    """ln((f + 1) / f) in fixed point for f in 1 .. 2**bits, by an all-integer series.

    ln(1 + 1/f) = 2 * sum over odd k of 1 / (k * (2 f + 1)**k). Entry 0 is unused.
    """
    odd = 2 * np.arange(2**bits + 1, dtype=np.int64) + 1
    power = (2 << _LOG_BITS) // odd
    total = np.zeros_like(odd)
    for k in range(1, 2 * _LOG_BITS, 2):
        total += power // k
        power //= odd * odd
    return total


def normalize_counts(counts: Integer[np.ndarray, " 256"], bits: int = BITS) -> UInt32[np.ndarray, " 256"]:
    """Frequencies summing to `2**bits` with the smallest coded size for these counts.

    The coded size, sum of `counts * log2(2**bits / frequencies)`, is separable and convex, so
    exchanging single units until no exchange helps reaches the optimum (up to the 40 bits that
    its logarithms carry). Every occurring symbol gets at least 1, every other one 0. Without
    any occurrence all of the mass goes to symbol 0.

    Args:
        counts: int[256], occurrences, not negative.
        bits: log2 of the sum.

    Returns:
        uint32[256].

    Raises:
        ValueError: wrong shape, a negative count, or more symbols than units.

    >>> normalize_counts(np.bincount([0, 0, 0, 1], minlength=256))[:2].tolist()
    [3072, 1024]
    """
    counts = np.asarray(counts)
    if counts.shape != (256,) or (counts < 0).any():
        raise ValueError(f"counts must be 256 non-negative integers, got shape {counts.shape}")
    result = np.zeros(256, np.uint32)
    (used,) = np.nonzero(counts)
    if used.size == 0:
        result[0] = 2**bits
        return result
    if used.size > 2**bits:
        raise ValueError(f"{used.size} symbols do not fit in 2**{bits} units")
    occurrences = counts[used].astype(np.int64)
    # 22 bits of count times 40 bits of logarithm stay inside an int64.
    excess = max(int(occurrences.sum()).bit_length() - 22, 0)
    weights = np.maximum(occurrences >> excess, 1)
    # Rounded shares are a few exchanges away from the optimum.
    total = int(weights.sum())
    units = np.maximum((weights * 2 ** (bits + 1) + total) // (2 * total), 1)
    result[used] = _exchange(weights, units, 2**bits)
    return result


def _exchange(weights: np.ndarray, units: np.ndarray, total: int) -> np.ndarray:
    """Adds, removes, then swaps single units by their exact marginal cost."""
    logs = _log_ratios(total.bit_length() - 1)
    never = np.iinfo(np.int64).max
    gain = weights * logs[units]
    loss = np.where(units > 1, weights * logs[units - 1], never)
    balance = total - int(units.sum())

    def move(symbol: int, by: int) -> None:
        units[symbol] += by
        unit = units[symbol]
        gain[symbol] = weights[symbol] * logs[unit]
        loss[symbol] = weights[symbol] * logs[unit - 1] if unit > 1 else never

    while True:
        up, down = int(gain.argmax()), int(loss.argmin())
        if balance > 0:
            move(up, 1)
            balance -= 1
        elif balance < 0:
            move(down, -1)
            balance += 1
        elif up != down and gain[up] > loss[down]:
            move(up, 1)
            move(down, -1)
        else:
            return units


@functools.cache
def _log2_table() -> np.ndarray:
    """log2(i / 4096) for i in 4096 .. 8192 in fixed point of 32 bits: one bit at a time, by squaring."""
    mantissa = np.arange(1 << _INDEX_BITS, (2 << _INDEX_BITS) + 1, dtype=np.uint64) << np.uint64(
        31 - _INDEX_BITS
    )
    logs = np.zeros(mantissa.size, np.int64)
    one = np.uint64(1)
    for _ in range(_FRACTION_BITS):
        mantissa = (mantissa * mantissa) >> np.uint64(31)
        carry = mantissa >> np.uint64(32)
        logs = 2 * logs + carry.astype(np.int64)
        mantissa = np.where(carry == one, mantissa >> one, mantissa)
    logs[-1] = 1 << _FRACTION_BITS  # of 2, whose first bit is before the point
    return logs


def _log2(values: np.ndarray) -> np.ndarray:
    """log2 of int64 values of 1 .. 2**52 in fixed point of 32 bits, to about 1e-8, in integers alone."""
    values = np.asarray(values, np.int64)
    if values.size and int(values.max()) <= 2**BITS:
        return _small_logs()[values]
    return _any_log2(values)


@functools.cache
def _small_logs() -> np.ndarray:
    """The logarithms of 0 (as if it were 1) to 2**BITS: those of all frequencies."""
    return _any_log2(np.maximum(np.arange(2**BITS + 1), 1))


def _any_log2(values: np.ndarray) -> np.ndarray:
    exponent = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1  # exact below 2**53
    scaled = values << (52 - exponent)
    index, rest = scaled >> (52 - _INDEX_BITS), scaled & ((1 << (52 - _INDEX_BITS)) - 1)
    table, at = _log2_table(), index - (1 << _INDEX_BITS)
    step = table[at + 1] - table[at]
    # 20 bits of what lies between two entries suffice: a step has at most 21.
    between = (step * (rest >> (32 - _INDEX_BITS))) >> 20
    return (exponent << _FRACTION_BITS) + table[at] + between


def code_length(counts: Integer[np.ndarray, " 256"], frequencies: Integer[np.ndarray, " 256"]) -> float:
    """Bits that an ideal coder spends on `counts` symbols under `frequencies`.

    The same on every machine, to the last bit. Infinite if a symbol occurs whose frequency is 0.

    Args:
        counts: int[256], occurrences below 2**52.
        frequencies: int[256], their sum below 2**52.

    >>> code_length(np.bincount([0, 0, 0, 1], minlength=256), np.array([2048] * 2 + [0] * 254))
    4.0
    """
    counts, frequencies = np.asarray(counts, np.int64), np.asarray(frequencies, np.int64)
    used = counts > 0
    if not frequencies[used].all():
        return float("inf")
    return _code_lengths(counts[used], frequencies[None, used], int(frequencies.sum()))[0]


def _code_lengths(counts: np.ndarray, tables: np.ndarray, total: int) -> list[float]:
    """Bits of symbols that occur, int64 `(n,)`, under each of several tables, int64 `(k, n)`, of one sum."""
    lengths = _log2(np.array([total])) - _log2(tables)
    # 256 products of 16 bits of a count and a logarithm below 52 * 2**32 sum to an int64.
    sums, shift = [0] * len(tables), 0
    while counts.any():
        sums = [s + (t << shift) for s, t in zip(sums, (lengths @ (counts & 0xFFFF)).tolist(), strict=True)]
        counts, shift = counts >> 16, shift + 16
    return [s / (1 << _FRACTION_BITS) for s in sums]


def entropy(counts: Integer[np.ndarray, " 256"]) -> float:
    """Total 0-order entropy of the counted symbols, in bits (not bits a symbol).

    >>> entropy(np.bincount([0, 1, 2, 3], minlength=256))
    8.0
    """
    return code_length(counts, counts) if np.any(counts) else 0.0


def fit_frequencies(counts: Integer[np.ndarray, " 256"]) -> UInt32[np.ndarray, " 256"]:
    """Frequencies with the fewest bytes for symbols *and* table together.

    A coarse table (multiples of a power of two) is shorter, which pays for small tensors; from
    2**17 symbols on the finest one always wins and is the only one tried.

    Returns:
        uint32[256] summing to `2**BITS`, read-only.

    >>> tiny = np.zeros(256, np.int64)
    >>> tiny[:8] = [1, 2, 6, 9, 8, 5, 2, 1]
    >>> len(encode_table(fit_frequencies(tiny))) < len(encode_table(normalize_counts(tiny)))
    True
    """
    return _fit(np.asarray(counts, np.int64).tobytes())[0]


def fitted_bits(counts: Integer[np.ndarray, " 256"]) -> tuple[int, float]:
    """What symbols take with the table of `fit_frequencies`: the bits of the table, then those of the code.

    >>> fitted_bits(np.array([3, 3] + [0] * 254))
    (32, 6.0)
    """
    return _fit(np.asarray(counts, np.int64).tobytes())[1:]


@functools.lru_cache(maxsize=16)
def _fit(counts_bytes: bytes) -> tuple[np.ndarray, int, float]:
    # Whether coding pays, whether escapes pay, and the table itself ask for the same counts in a row.
    counts = np.frombuffer(counts_bytes, np.int64)
    symbols = max(int(np.count_nonzero(counts)), 1)
    coarsest = BITS if counts.sum() >= 1 << 17 else max((symbols - 1).bit_length(), 1)
    candidates = np.stack(
        [normalize_counts(counts, bits) << np.uint32(BITS - bits) for bits in range(BITS, coarsest - 1, -1)]
    )
    used = counts > 0
    lengths = _code_lengths(counts[used], candidates[:, used].astype(np.int64), 1 << BITS)
    sizes = 8 * table_sizes(candidates)
    at = int(np.argmin(sizes + np.array(lengths)))
    best = candidates[at].copy()
    best.setflags(write=False)
    return best, int(sizes[at]), lengths[at]
