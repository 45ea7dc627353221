"""Tables of many histograms at once are those that are found one by one, unit by unit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax.coding import frequencies, histograms, logarithms
from modelzip_jax.coding.tables import decode_table, encode_table

quick = settings(deadline=None, max_examples=80)


@st.composite
def occurrences(draw):
    """Histograms, most of them with many symbols that occur equally often."""
    kind = draw(st.sampled_from(["few", "bell", "equal", "mirrored", "steep", "large"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = np.zeros(256, np.int64)
    size = draw(st.integers(1, 256))
    where = rng.choice(256, size, replace=False)
    if kind == "few":
        counts[where] = rng.integers(1, draw(st.sampled_from([2, 3, 50])), size)
    elif kind == "bell":
        values = rng.normal(size=draw(st.integers(1, 200_000))) * draw(st.floats(0.1, 60)) + 128
        counts = np.bincount(np.clip(np.round(values), 0, 255).astype(int), minlength=256)
    elif kind == "equal":
        counts[where] = draw(st.sampled_from([1, 7, 10**6]))
    elif kind == "mirrored":
        half = rng.integers(1, 60, (size + 1) // 2)
        counts = np.roll(np.pad(np.concatenate([half, half[::-1]]), (0, 256 - 2 * half.size)), size)
    elif kind == "steep":
        counts[where] = (2 ** rng.uniform(0, 30, size)).astype(np.int64)
    else:
        counts[where] = rng.integers(1, 2**44, size)
    return counts


several = st.lists(occurrences(), min_size=1, max_size=6).map(np.stack)


def unit_by_unit(counts, bits):
    """From rounded shares on: the best unit first, and the first of equals first."""
    (used,) = np.nonzero(counts)
    excess = max(int(counts.sum()).bit_length() - 22, 0)
    weights, total = np.maximum(counts[used] >> excess, 1), 2**bits
    units = np.maximum((weights * 2 * total + weights.sum()) // (2 * weights.sum()), 1)
    logs = logarithms.log_ratios()
    while True:
        gain = weights * logs[units]
        loss = np.where(units > 1, weights * logs[units - 1], np.iinfo(np.int64).max)
        missing = total - units.sum()
        if missing == 0 and gain.max() <= loss.min():
            break
        up, down = gain.argmax(), loss.argmin()
        units[up] += missing >= 0
        units[down] -= missing <= 0
    found = np.zeros(256, np.uint32)
    found[used] = units
    return found


@quick
@given(several, st.integers(0, 4))
def test_many_at_once_are_as_one_by_one(counts, finer):
    most = np.count_nonzero(counts, axis=1).max()
    bits = min(max(int(most - 1).bit_length(), 1) + finer, 12)
    expected = np.stack([unit_by_unit(one, bits) for one in counts])
    np.testing.assert_array_equal(frequencies.normalize_all(counts, bits), expected)


@quick
@given(several)
def test_the_best_precision_is_found(counts):
    fits = frequencies.fit_all(counts)
    for one, table, table_bits, bits in zip(counts, *fits, strict=True):
        assert table_bits == 8 * len(encode_table(table))
        assert bits == histograms.code_length(one, table)
        symbols = np.count_nonzero(one)
        coarsest = 12 if one.sum() >= 2**17 else max(int(symbols - 1).bit_length(), 1)
        tried = [unit_by_unit(one, b).astype(np.int64) << (12 - b) for b in range(12, coarsest - 1, -1)]
        costs = [8 * len(encode_table(t)) + histograms.code_length(one, t) for t in tried]
        np.testing.assert_array_equal(table, tried[int(np.argmin(costs))])


@quick
@given(several, st.integers(0, 4))
def test_the_length_of_a_table_is_known_without_writing_it(counts, shift):
    bits = 12 - shift
    counts = np.stack([np.where(np.cumsum(one > 0) <= 2**bits, one, 0) for one in counts])
    tables = frequencies.normalize_all(counts, bits).astype(np.int64)
    flat = frequencies._flattened(tables)
    shifts = np.full(len(tables), shift)
    found = frequencies.stored_bits(flat.counts, flat.gaps, flat.first, flat.sizes, shifts)
    assert [-(-n // 8) for n in found] == [len(encode_table(table << shift)) for table in tables]


def test_nothing_counted_among_others():
    counts = np.zeros((3, 256), np.int64)
    counts[1, 200] = 5
    fits = frequencies.fit_all(counts)
    assert fits.frequencies.argmax(axis=1).tolist() == [0, 200, 0]
    assert fits.frequencies.max(axis=1).tolist() == [4096] * 3
    assert fits.table_bits.tolist() == [24] * 3
    assert fits.bits.tolist() == [0] * 3


@pytest.mark.parametrize("symbols", [256, 255, 250])
def test_as_many_symbols_as_units(symbols):
    counts = np.zeros((1, 256), np.int64)
    counts[0, :symbols] = 1
    counts[0, 7] = 10**6
    np.testing.assert_array_equal(frequencies.normalize_all(counts, 8)[0], unit_by_unit(counts[0], 8))


def test_tables_can_be_read_back():
    counts = np.random.default_rng(0).integers(0, 3, (40, 256))
    for table in frequencies.fit_all(counts).frequencies:
        np.testing.assert_array_equal(decode_table(encode_table(table))[0], table)
