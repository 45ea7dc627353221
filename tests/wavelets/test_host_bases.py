import numpy as np
import pytest

from modelzip_jax.coding import histograms
from modelzip_jax.coding.entropy import _PART_BITS, coded_bits
from modelzip_jax.coding.tables import encode_table
from modelzip_jax.wavelets.bases import Basis
from modelzip_jax.wavelets.basis_choice import candidates
from modelzip_jax.wavelets.host_bases import analysed, synthesized

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(16, 9), (3, 3, 8, 5)])
def test_coefficients_of_all_candidates_are_those_of_the_transform(shape):
    x = RNG.normal(size=shape).astype(np.float32)
    for basis, view in candidates(shape):
        whole = x.reshape(view or shape)
        y = analysed(whole, basis)
        np.testing.assert_allclose(y, basis.analysis(whole), atol=2e-6 * np.abs(x).max() * 8)
        np.testing.assert_allclose(synthesized(y, basis), whole, atol=1e-5)


@pytest.mark.parametrize(
    "basis",
    [
        Basis("wavelet", "haar", 4, (0, 1)), Basis("wavelet", "db4", 3, (1,)), Basis("wavelet", "bior2.2", 3, (0, 1)),
        Basis("wavelet", "bior4.4", 2, (0,)), Basis("packets", "sym4", 2, (0, 1)), Basis("packets", "bior4.4", 2, (1,)),
        Basis("dct", "", 4, (0, 1)), Basis("dct", "", 64, (1,)), Basis("wavelet", "coif1", 0, (0,)),
    ],
    ids=str,
)  # fmt: skip
def test_odd_short_and_empty_axes(basis):
    for shape in [(7, 13), (1, 9), (2, 3), (0, 4)]:
        x = RNG.normal(size=shape).astype(np.float32)
        y = analysed(x, basis)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        np.testing.assert_allclose(y, basis.analysis(x), atol=1e-5)
        np.testing.assert_allclose(synthesized(y, basis), x, atol=1e-5)


def test_costs_are_those_of_tables_as_they_are_written():
    for size in (0, 1, 40, 900, 30_000, 200_000):
        for scale in (0.2, 2.0, 30.0):
            codes = np.clip(np.rint(scale * RNG.normal(size=size)) + 128, 1, 255).astype(np.uint8)
            counts = histograms.count(codes)
            table = histograms.fit_frequencies(counts)
            exact = histograms.code_length(counts, table) + 8.0 * len(encode_table(table)) + _PART_BITS
            assert coded_bits(counts) == pytest.approx(exact, rel=2e-3, abs=40.0)
