"""WaterSIC: the published gap to the information-theoretic limit, and what equal steps cost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peers.watersic import code_by_watersic, spacing_for, waterfilling_gain, watersic
from modelzip_jax.errors import LeafError, NonFiniteError

GAP = 0.5 * np.log2(2 * np.pi * np.e / 12)


def gram_of(n, decay, correlation=0.8):
    """Neighbouring inputs are alike, and the last are exp(-decay) times the first."""
    i = np.arange(n)
    scale = np.exp(-decay * i / n)
    return correlation ** np.abs(i[:, None] - i) * np.outer(scale, scale)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def distortion(w, values, gram):
    off = w - values
    return np.sum(off @ gram * off) / w.size


def column_bits(codes):
    """Mean entropy of the columns, with Miller and Madow's correction for counting few symbols."""
    found = []
    for column in codes.T:
        counts = np.unique(column, return_counts=True)[1]
        p = counts / counts.sum()
        found.append(-np.sum(p * np.log2(p)) + (len(counts) - 1) / (2 * np.log(2) * counts.sum()))
    return np.mean(found)


def by_gptq(w, gram, step):
    """Codes of GPTQ with one step, from the last column to the first."""
    w, codes = w.copy(), np.zeros(w.shape)
    for j in range(w.shape[1] - 1, -1, -1):
        inverse = np.linalg.inv(gram[: j + 1, : j + 1])
        codes[:, j] = np.rint(w[:, j] / step)
        error = (w[:, j] - codes[:, j] * step) / inverse[j, j]
        w[:, : j + 1] -= np.outer(error, inverse[j])
    return codes


@pytest.mark.parametrize(("decay", "correlation"), [(0.0, 0.0), (0.0, 0.95), (2.0, 0.8)])
def test_a_quarter_of_a_bit_from_the_limit_whatever_the_inputs(decay, correlation):
    n = 64
    gram, w = gram_of(n, decay, correlation), normal(10_000, n)
    found = watersic(w, gram, spacing_for(w, gram, 5.0, 1e-9), 1e-9)
    # A factor for each row, of n weights, takes 1/n off the distortion: those 16 bits are not counted here.
    error = distortion(w, found.values, gram) / (1 - 1 / n)
    limit = 0.5 * (np.linalg.slogdet(gram)[1] / n / np.log(2) - np.log2(error))
    assert 4.9 < limit < 5.1
    assert abs(column_bits(found.codes) - limit - GAP) < 0.01


@pytest.mark.parametrize("decay", [1.0, 2.0])
def test_one_step_for_all_columns_takes_the_gain_more(decay):
    n = 64
    gram, w = gram_of(n, decay), normal(5_000, n)
    gain = waterfilling_gain(gram, 0.0)
    assert gain > 0.14
    step = 0.05
    squares = np.square(np.diagonal(np.linalg.cholesky(gram)))
    found = watersic(w, gram, step * np.sqrt(np.mean(squares)), 1e-12)
    codes = by_gptq(w, gram, step)
    same = distortion(w, codes * step, gram) * (1 - 1 / n) / distortion(w, found.values, gram)
    assert abs(same - 1) < 0.01
    assert abs(column_bits(codes) - column_bits(found.codes) - gain) < 0.01


def test_columns_in_order_leave_less_to_gain():
    scales = np.exp(1.5 * normal(32, seed=5))
    gram = gram_of(32, 0.5) * np.outer(scales, scales)
    assert waterfilling_gain(gram, order=True) < waterfilling_gain(gram[::-1, ::-1]) + 1e-12
    assert waterfilling_gain(np.eye(5)) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 6.0))
def test_no_factor_of_a_row_or_column_could_be_better(seed, bits):
    gram, w = gram_of(8, 1.0), normal(30, 8, seed=seed)
    found = watersic(w, gram, spacing_for(w, gram, bits))
    error = distortion(w, found.values, gram)
    for axis, count in ((0, 8), (1, 30)):
        for i in range(count):
            for factor in (0.98, 1.02):
                changed = np.array(np.moveaxis(found.values.astype(np.float64), 1 - axis, 0))
                changed[i] *= factor
                # fp16 is good to a thousandth, and the rounds stop where they gain little.
                assert distortion(w, np.moveaxis(changed, 0, 1 - axis), gram) > 0.999 * error


def test_least_squares_factors_lower_the_error_of_few_bits():
    gram, w = gram_of(24, 2.0), normal(200, 24)
    spacing = spacing_for(w, gram, 1.0)
    found = watersic(w, gram, spacing)
    steps = spacing / np.diagonal(np.linalg.cholesky(gram + 1e-4 * np.mean(np.diagonal(gram)) * np.eye(24)))
    plain = distortion(w, found.codes * steps, gram)
    assert distortion(w, found.values, gram) < 0.9 * plain


def test_bytes_are_codes_and_16_bits_a_row_and_a_column():
    gram, w = gram_of(64, 4.0), normal(300, 64)
    spacing = spacing_for(w, gram, 3.0)
    found = watersic(w, gram, spacing)
    coded = code_by_watersic({"a": w, "b": w}, {"a": gram, "b": gram}, spacing)
    assert coded.bytes == -(-2 * found.bits() // 8)
    np.testing.assert_array_equal(coded.values["b"], found.values)
    counts = np.unique(found.codes, return_counts=True)[1]
    entropy = -np.sum(counts * np.log2(counts / counts.sum()))
    assert 16 * 364 + entropy < found.bits((1,)) < 16 * 364 + 1.05 * entropy
    assert found.bits() < found.bits((1,))  # columns of unlike steps, in classes
    by_name = code_by_watersic({"a": w}, {"a": gram}, {"a": spacing})
    np.testing.assert_array_equal(by_name.values["a"], found.values)


def test_inputs_that_are_never_there_take_no_bits():
    gram, w = gram_of(6, 0.0), normal(50, 6)
    gram[2], gram[:, 2] = 0, 0
    found = watersic(w, gram, 0.3)
    assert not found.codes[:, 2].any()
    assert np.isfinite(found.values).all()
    assert not watersic(w, gram, 1e3).values.any()


def test_what_it_cannot_take_is_named():
    with pytest.raises(LeafError, match="outputs, inputs"):
        watersic(np.ones((2, 3)), np.eye(2), 1.0)
    with pytest.raises(NonFiniteError, match="singular"):
        watersic(np.ones((2, 3)), -np.eye(3), 1.0)
