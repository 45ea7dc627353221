"""How the peers' bytes are counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peers import coded
from modelzip_jax.coding import histograms
from modelzip_jax.errors import LeafError, NonFiniteError


def entropy_bits(codes):
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.floats(0.3, 3000.0), st.integers(1, 3000), st.sampled_from([-200, 0, 1000])
)
def test_never_less_than_the_entropy_and_no_more_than_a_table_above_it(seed, scale, count, shift):
    codes = np.rint(np.random.default_rng(seed).normal(size=count) * scale).astype(np.int64) + shift
    found = coded.code_bits(codes)
    # A byte a code, raw, is what is always left; two where the codes need two.
    assert found <= 8 * count * (1 if np.ptp(codes) < 256 else 2) + 64
    assert found >= entropy_bits(codes) * (1 - 1e-9)


@pytest.mark.parametrize("scale", [1.0, 20.0, 400.0])
def test_tables_are_little_of_many_codes(scale):
    codes = np.rint(np.random.default_rng(0).normal(size=300_000) * scale).astype(np.int32)
    assert entropy_bits(codes) < coded.code_bits(codes) < 1.006 * entropy_bits(codes)


def test_a_stream_costs_what_the_library_says_of_its_histogram():
    codes = np.rint(np.random.default_rng(1).normal(size=20_000)).astype(np.int32)
    counts = histograms.count((codes & 255).astype(np.uint8))
    table = histograms.fit_frequencies(counts)
    expected = histograms.code_length(counts, table) + 8 * len(histograms.encode_table(table))
    assert coded.code_bits(codes) <= expected
    assert coded.code_bits(codes) > 0.995 * expected  # rare codes by an escape


def test_codes_beyond_16_bits_are_refused():
    with pytest.raises(LeafError, match="coarser"):
        coded.code_bits(np.array([0, 1 << 15]))


def test_steps_as_fp16():
    kept = coded.as_half("w", np.array([0.1, 1e-12, 0.0]))
    assert kept.dtype == np.float32
    assert kept[0] == np.float32(np.float16(0.1))
    assert kept[1] > 0 == kept[2]
    with pytest.raises(NonFiniteError, match="'w'"):
        coded.as_half("w", np.array([1e6]))
