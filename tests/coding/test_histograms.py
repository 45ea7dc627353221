"""Frequency tables: they sum to 4,096, cost the least, and survive storage and damage."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax.coding import histograms, logarithms
from modelzip_jax.errors import FormatError

quick = settings(deadline=None, max_examples=60)


@st.composite
def counts(draw):
    values = draw(st.dictionaries(st.integers(0, 255), st.integers(1, 10**12), min_size=1, max_size=256))
    result = np.zeros(256, np.int64)
    result[list(values)] = list(values.values())
    return result


@st.composite
def bells(draw):
    scale = draw(st.floats(0.05, 60))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).normal(size=draw(st.integers(1, 3000))) * scale
    return np.bincount(np.clip(np.round(values) + 128, 0, 255).astype(int), minlength=256)


@quick
@given(st.binary(max_size=400), st.integers(0, 3))
def test_count_counts(data, repeats):
    symbols = np.frombuffer(data * 1000 ** (repeats == 3), np.uint8)
    expected = np.bincount(symbols, minlength=256)
    np.testing.assert_array_equal(histograms.count(symbols), expected)


def test_count_of_many_symbols_and_shapes():
    symbols = np.random.default_rng(0).integers(0, 256, (3, 700_001), np.uint8)
    expected = np.bincount(symbols.reshape(-1), minlength=256)
    np.testing.assert_array_equal(histograms.count(symbols), expected)


@quick
@given(st.one_of(counts(), bells()), st.integers(8, 12))
def test_normalized_frequencies_cover_what_occurs(occurrences, bits):
    frequencies = histograms.normalize_counts(occurrences, bits)
    assert frequencies.dtype == np.uint32
    assert frequencies.sum() == 2**bits
    np.testing.assert_array_equal(frequencies > 0, occurrences > 0)


@quick
@given(st.lists(st.integers(1, 50), min_size=2, max_size=4))
def test_normalize_is_optimal_on_small_cases(occurrences):
    padded = np.array(occurrences + [0] * (256 - len(occurrences)))
    total = 16

    def cost(frequencies):
        return histograms.code_length(padded[: len(occurrences)], np.array(frequencies))

    every = (
        split for split in itertools.product(range(1, total), repeat=len(occurrences)) if sum(split) == total
    )
    found = histograms.normalize_counts(padded, 4)[: len(occurrences)]
    assert cost(found) == pytest.approx(min(map(cost, every)), abs=1e-6)


def test_nothing_counted_still_gives_a_table():
    frequencies = histograms.normalize_counts(np.zeros(256, int))
    assert frequencies[0] == 4096
    assert histograms.entropy(np.zeros(256, int)) == 0


def test_normalize_refuses_what_is_not_a_histogram():
    for wrong in (np.zeros(255, int), np.full(256, -1)):
        with pytest.raises(ValueError, match="256 non-negative"):
            histograms.normalize_counts(wrong)
    with pytest.raises(ValueError, match="do not fit"):
        histograms.normalize_counts(np.ones(256, int), bits=7)


def test_code_length_against_entropy():
    occurrences = np.bincount(np.random.default_rng(0).binomial(60, 0.5, 200_000), minlength=256)
    entropy = histograms.entropy(occurrences)
    assert entropy <= histograms.code_length(occurrences, histograms.normalize_counts(occurrences))
    assert histograms.code_length(occurrences, histograms.normalize_counts(occurrences)) < 1.001 * entropy
    never = np.eye(256, dtype=np.uint32)[255] * 4096
    assert histograms.code_length(occurrences, never) == np.inf


@quick
@given(st.one_of(counts(), bells()), st.booleans(), st.binary(max_size=5), st.binary(max_size=5))
def test_tables_survive_storage(occurrences, coarse, before, after):
    find = histograms.fit_frequencies if coarse else histograms.normalize_counts
    frequencies = find(occurrences)
    stored = histograms.encode_table(frequencies)
    found, end = histograms.decode_table(before + stored + after, len(before))
    np.testing.assert_array_equal(found, frequencies)
    assert end == len(before) + len(stored)
    for cut in range(len(stored)):
        with pytest.raises(FormatError, match="byte"):
            histograms.decode_table(stored[:cut])


@quick
@given(st.binary(max_size=80))
def test_any_bytes_are_a_valid_table_or_an_error(data):
    try:
        frequencies, end = histograms.decode_table(data)
    except FormatError:
        return
    assert frequencies.sum() == 4096
    assert 0 < end <= len(data)


@quick
@given(bells())
def test_fit_never_costs_more_than_any_other_table(occurrences):
    def size(frequencies):
        table = 8 * len(histograms.encode_table(frequencies))
        return table + histograms.code_length(occurrences, frequencies)

    coarsest = max(int(np.count_nonzero(occurrences) - 1).bit_length(), 1)
    found = [histograms.normalize_counts(occurrences, bits) << (12 - bits) for bits in range(coarsest, 13)]
    assert size(histograms.fit_frequencies(occurrences)) == min(map(size, found))


def test_tables_are_compact():
    rng = np.random.default_rng(0)
    for scale, symbols in ((3.0, 27), (16.0, 128), (38.0, 256)):
        values = np.clip(np.round(rng.normal(size=10**6) * scale), -128, 127) + 128
        occurrences = np.bincount(values.astype(int), minlength=256)
        used = np.count_nonzero(occurrences)
        assert used >= symbols
        assert len(histograms.encode_table(histograms.normalize_counts(occurrences))) <= used
    pair = np.zeros(256, np.int64)
    pair[[7, 8]] = 999, 1
    assert len(histograms.encode_table(histograms.normalize_counts(pair))) <= 4
    assert len(histograms.encode_table(histograms.normalize_counts(np.eye(256, dtype=int)[9]))) == 3


def test_the_stored_form_does_not_change():
    occurrences = np.zeros(256, np.int64)
    occurrences[[254, 255, 0, 1, 2, 5]] = 3, 20, 90, 22, 2, 1
    stored = histograms.encode_table(histograms.normalize_counts(occurrences))
    assert stored.hex() == "fe073b27291537911a236320"
    with pytest.raises(ValueError, match="summing to 4096"):
        histograms.encode_table(occurrences)


@quick
@given(st.lists(st.integers(1, 2**52), min_size=1, max_size=200))
def test_logarithms_in_integers(values):
    found = logarithms.log2(np.array(values)) / 2**32
    np.testing.assert_allclose(found, np.log2(np.array(values, float)), atol=2e-8, rtol=0)


def test_logarithms_of_powers_are_exact_and_logarithms_grow():
    np.testing.assert_array_equal(logarithms.log2(2 ** np.arange(53)), np.arange(53) << 32)
    assert (np.diff(logarithms.log2(np.arange(1, 20_000))) > 0).all()


@quick
@given(st.lists(st.one_of(counts(), bells()), min_size=1, max_size=8))
def test_entropies_are_those_of_each(occurrences):
    empty = np.zeros(256, np.int64)
    expected = [histograms.entropy(one) for one in (*occurrences, empty)]
    assert histograms.entropies(np.stack([*occurrences, empty])).tolist() == expected


@quick
@given(counts(), counts())
def test_code_length_is_what_its_formula_says(occurrences, other):
    frequencies = histograms.normalize_counts(occurrences + other)
    used = occurrences > 0
    expected = (occurrences[used] * (12 - np.log2(frequencies[used].astype(float)))).sum()
    assert histograms.code_length(occurrences, frequencies) == pytest.approx(
        expected, abs=2e-8 * occurrences.sum()
    )


def test_code_length_does_not_depend_on_the_machines_logarithm(monkeypatch):
    occurrences = np.random.default_rng(0).integers(0, 2**40, 256)
    before = histograms.code_length(occurrences, histograms.normalize_counts(occurrences))
    for name in ("log2", "log", "log1p", "log10"):
        monkeypatch.delattr(np, name)
    logarithms._log2_table.cache_clear()
    logarithms.small_log2.cache_clear()
    logarithms.log_ratios.cache_clear()
    assert histograms.code_length(occurrences, histograms.normalize_counts(occurrences)) == before
    assert histograms.entropy(occurrences) > 0
