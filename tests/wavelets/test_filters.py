import numpy as np
import pytest
import pywt

from modelzip_jax.errors import TransformError
from modelzip_jax.wavelets.filters import FILTERS, LIFTING, check_filter, highpass, lowpass

ORTHONORMAL = [name for name in FILTERS if name not in LIFTING]


@pytest.mark.parametrize("name", ORTHONORMAL)
def test_equals_pywavelets(name):
    reference = pywt.Wavelet(name)
    np.testing.assert_allclose(lowpass(name), reference.rec_lo, atol=1e-8)
    np.testing.assert_allclose(highpass(name), reference.rec_hi, atol=1e-8)


@pytest.mark.parametrize("name", ORTHONORMAL)
def test_orthonormal_to_double_shifts(name):
    h, g = lowpass(name), highpass(name)
    for shift in range(0, h.size, 2):
        expected = float(shift == 0)
        assert abs(h[shift:] @ h[: h.size - shift] - expected) < 1e-11
        assert abs(g[shift:] @ h[: h.size - shift]) < 1e-11
        assert abs(h[shift:] @ g[: h.size - shift]) < 1e-11
    assert abs(h.sum() - np.sqrt(2)) < 1e-12


@pytest.mark.parametrize("name", ORTHONORMAL)
def test_vanishing_moments(name):
    moments = 1 if name == "haar" else int(name.lstrip("dbsymcoif")) * (2 if name.startswith("coif") else 1)
    g = highpass(name)
    place = np.linspace(-1, 1, g.size)
    assert all(abs(g @ place**power) < 1e-9 for power in range(moments))


@pytest.mark.parametrize("order", range(1, 6))
def test_coiflet_scaling_functions_have_vanishing_moments_too(order):
    h = lowpass(f"coif{order}")
    centre = round(float(h @ np.arange(h.size)) / np.sqrt(2))
    place = (np.arange(h.size) - centre) / h.size
    assert all(abs(h @ place**power) < 1e-9 for power in range(1, 2 * order))


def test_filters_cannot_be_changed_by_callers():
    with pytest.raises(ValueError, match="read-only"):
        lowpass("db2")[0] = 0.0


def test_errors():
    with pytest.raises(TransformError, match="did you mean 'db4'"):
        check_filter("db44")
    with pytest.raises(TransformError, match="biorthogonal"):
        lowpass("bior4.4")
