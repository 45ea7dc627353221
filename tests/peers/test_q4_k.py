"""Q4_K: errors that ggml's reference quantizer has on the same numbers, and its own test's limit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peers.q4_k import code_by_q4_k, q4_k
from modelzip_jax.errors import NonFiniteError


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize(
    ("kind", "reference"), [("normal", 0.07071834), ("laplace", 0.11917621), ("half-normal", 0.04066428)]
)
def test_the_error_is_the_reference_quantizers(kind, reference):
    # Measured with ggml's quantize_row_q4_K_ref of August 2026 on these numbers.
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(64, 256))
    w = {"normal": normal, "laplace": rng.laplace(size=(64, 1024)), "half-normal": np.abs(normal[:16])}[kind]
    w = w.astype(np.float32)
    assert rms(w - q4_k("w", w)) == pytest.approx(reference, rel=5e-4)


def test_the_limit_of_ggmls_own_test():
    w = (0.1 + 2 * np.cos(np.arange(4096))).astype(np.float32)
    error = np.sqrt(np.sum(np.square(w - q4_k("w", w)))) / w.size
    assert error < 0.002  # MAX_QUANTIZATION_TOTAL_ERROR


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(-3.0, 3.0))
def test_blocks_have_sixteen_evenly_spaced_values(seed, scale, shift):
    w = (scale * (np.random.default_rng(seed).normal(size=(3, 256)) + shift)).astype(np.float32)
    for block in q4_k("w", w).reshape(-1, 32).astype(np.float64):
        levels = np.unique(block)
        assert len(levels) <= 16
        gaps = np.diff(levels)
        if len(gaps):
            # No common step is larger than the smallest gap: all gaps are whole multiples of a 15th of the range.
            multiples = gaps / gaps.min()
            assert np.ptp(block) / gaps.min() < 15.5
            assert np.abs(multiples * 6 - np.rint(multiples * 6)).max() < 0.02
    # Half a step of a range of 15, were it not for 6 bits of each scale and minimum.
    assert rms(w - q4_k("w", w)) < 0.12 * np.std(w) + 0.02 * abs(shift * scale)


def test_four_and_a_half_bits_a_weight():
    rng = np.random.default_rng(0)
    coded = code_by_q4_k({"a": rng.normal(size=(30, 256)), "b": rng.normal(size=(3, 100))})
    assert coded.bytes == 144 * (30 + 2)
    assert 8 * 144 / 256 == 4.5
    assert coded.values["b"].shape == (3, 100)
    assert coded.values["b"].dtype == np.float32


def test_zeros_and_equal_weights_are_kept():
    assert not q4_k("w", np.zeros((2, 300))).any()
    for value in (0.75, -0.3):
        np.testing.assert_allclose(q4_k("w", np.full((1, 256), value)), value, rtol=5e-4)


def test_what_it_cannot_take_is_named():
    with pytest.raises(NonFiniteError, match="'w'"):
        q4_k("w", np.array([[np.nan]]))
    with pytest.raises(NonFiniteError, match="fp16"):
        q4_k("w", np.full((1, 256), 1e30))
