"""Escapes: lossless, only where they pay, and then close to the entropy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax.coding import escapes, histograms
from modelzip_jax.errors import FormatError


def size(counts):
    frequencies = histograms.fit_frequencies(counts)
    table = 8 * len(histograms.encode_table(frequencies))
    return table + histograms.code_length(counts, frequencies)


@settings(deadline=None)
@given(st.binary(max_size=300), st.sets(st.integers(0, 255), min_size=1))
def test_extract_and_restore_are_inverse(data, rare):
    symbols = np.frombuffer(data, np.uint8)
    rare = np.array(sorted(rare), np.uint8)
    common, escaped = escapes.extract(symbols, rare)
    np.testing.assert_array_equal(escapes.restore(common, escaped, int(rare[0])), symbols)
    assert not np.isin(common, rare[1:]).any()


@pytest.mark.parametrize("tail", ["normal", "laplace", "standard_t"])
@pytest.mark.parametrize("n", [110_000, 1_000_000])
def test_long_tails_cost_at_most_two_thousandths(tail, n):
    rng = np.random.default_rng(0)
    values = rng.standard_t(4, n) if tail == "standard_t" else getattr(rng, tail)(size=n)
    quantized = np.round(values / np.abs(values).max() * 127)
    symbols = (quantized + 128).astype(np.uint8)
    counts = histograms.count(symbols)
    rare = escapes.rare_symbols(counts)
    sizes = size(counts)
    if rare.size:
        common, escaped = escapes.extract(symbols, rare)
        sizes = size(histograms.count(common)) + size(histograms.count(escaped))
        assert sizes < size(counts)
    assert sizes <= 1.0025 * histograms.entropy(counts)


def test_no_escape_where_it_does_not_pay():
    assert escapes.rare_symbols(np.zeros(256, int)).size == 0
    assert escapes.rare_symbols(np.full(256, 1000)).size == 0
    assert escapes.rare_symbols(np.bincount([1, 1, 1, 2, 3], minlength=256)).size == 0


def test_missing_escapes_are_found():
    with pytest.raises(FormatError, match="2 escapes in a segment, but 1"):
        escapes.restore(np.array([1, 1, 2], np.uint8), np.array([3], np.uint8), 1)
