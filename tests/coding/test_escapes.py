"""Escapes: lossless, only where they pay, and then close to the entropy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax.coding import escapes, histograms
from modelzip_jax.errors import FormatError

RNG = np.random.default_rng(4)


def size(counts):
    frequencies = histograms.fit_frequencies(counts)
    table = 8 * len(histograms.encode_table(frequencies))
    return table + histograms.code_length(counts, frequencies)


def divided(counts, rare):
    escaped = np.where(rare, counts, 0)
    common = counts - escaped
    common[escaped.argmax()] = escaped.sum()
    return common, escaped


@st.composite
def histograms_with_tails(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_t(3, draw(st.integers(1, 60_000))) * draw(st.floats(0.3, 25))
    return np.bincount(np.clip(np.round(values) + 128, 0, 255).astype(int), minlength=256)


@settings(deadline=None)
@given(st.binary(max_size=300), st.sets(st.integers(0, 255), min_size=1))
def test_extract_and_restore_are_inverse(data, rare):
    symbols = np.frombuffer(data, np.uint8)
    rare = np.array(sorted(rare), np.uint8)
    escaped = escapes.extract(symbols, rare)
    np.testing.assert_array_equal(escaped, symbols[np.isin(symbols, rare)])
    common = np.where(np.isin(symbols, rare), rare[0], symbols)
    np.testing.assert_array_equal(escapes.restore(common, escaped, int(rare[0])), symbols)


def test_extract_finds_every_symbol_of_long_streams():
    symbols = RNG.integers(0, 256, 5003, np.uint8)
    for rare in (np.arange(256), [0], [255], [0, 255], np.arange(100, 140), np.arange(0, 256, 2)):
        rare = np.array(rare, np.uint8)
        np.testing.assert_array_equal(escapes.extract(symbols, rare), symbols[np.isin(symbols, rare)])


@settings(deadline=None, max_examples=40)
@given(st.lists(histograms_with_tails(), min_size=1, max_size=5))
def test_no_set_of_rare_symbols_is_better(several):
    for occurrences, found in zip(several, escapes.divide(np.stack(several)), strict=True):
        total = occurrences.sum()
        assert found.plain_bits == size(occurrences)
        taken = size(occurrences)
        if found.rare.size:
            parts = divided(occurrences, np.isin(np.arange(256), found.rare))
            assert [int(part.sum()) for part in parts] == list(found.lengths)
            taken = sum(map(size, parts))
            assert taken < found.plain_bits
        for eighths in (2, 4, 8, 16, 32):
            rare = (occurrences > 0) & (occurrences * 8 * 4096 <= total * eighths)
            if rare.sum() > 1:
                assert taken <= sum(map(size, divided(occurrences, rare)))


@pytest.mark.parametrize("tail", ["normal", "laplace", "standard_t"])
@pytest.mark.parametrize("n", [110_000, 1_000_000])
def test_long_tails_cost_at_most_two_thousandths(tail, n):
    rng = np.random.default_rng(0)
    values = rng.standard_t(4, n) if tail == "standard_t" else getattr(rng, tail)(size=n)
    quantized = np.round(values / np.abs(values).max() * 127)
    symbols = (quantized + 128).astype(np.uint8)
    counts = histograms.count(symbols)
    rare = escapes.divide(counts[None])[0].rare
    sizes = size(counts)
    if rare.size:
        sizes = sum(map(size, divided(counts, np.isin(np.arange(256), rare))))
        assert sizes < size(counts)
    assert sizes <= 1.0025 * histograms.entropy(counts)


def test_no_escape_where_it_does_not_pay():
    counts = [np.zeros(256, int), np.full(256, 1000), np.bincount([1, 1, 1, 2, 3], minlength=256)]
    assert all(found.rare.size == 0 for found in escapes.divide(np.stack(counts)))


def test_missing_escapes_are_found():
    with pytest.raises(FormatError, match="2 escapes in a segment, but 1"):
        escapes.restore(np.array([1, 1, 2], np.uint8), np.array([3], np.uint8), 1)
