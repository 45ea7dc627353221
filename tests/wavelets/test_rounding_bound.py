"""Sums round as each program likes: how far from the exact sum, in units in the last place of the largest weight."""

import jax
import numpy as np
import pytest

from modelzip_jax.testing import SUMS_ULP
from modelzip_jax.testing.comparison import spacing
from modelzip_jax.wavelets.bases import Basis
from modelzip_jax.wavelets.filters import FILTERS
from modelzip_jax.wavelets.host_bases import analysed, synthesized

RNG = np.random.default_rng(0)
FEW = [Basis("wavelet", "haar", 4, (0, 1)), Basis("wavelet", "bior4.4", 3, (1,))]
MANY = [
    *(Basis("wavelet", name, levels, axes) for name in FILTERS for levels, axes in ((1, (0,)), (3, (0, 1)))),
    *(Basis("packets", name, 2, (0, 1)) for name in FILTERS),
    *(Basis("dct", "", size, (0, 1)) for size in (4, 8, 64)),
]


def away(basis, shape):
    """The largest distance of three programs' weights from the sum in float64, in units in the last place."""
    z = analysed(RNG.normal(size=shape).astype(np.float32), basis)
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(basis.synthesis)(z.astype(np.float64)))
    assert exact.dtype == np.float64
    unit = spacing(np.abs(exact).max(), np.float32)
    programs = (basis.synthesis, jax.jit(basis.synthesis), lambda z: synthesized(z, basis))
    return max(float(np.abs(np.asarray(f(z), np.float64) - exact).max() / unit) for f in programs)


@pytest.mark.parametrize(
    "basis", [*FEW, *(pytest.param(basis, marks=pytest.mark.slow) for basis in MANY)], ids=str
)
def test_of_synthesis(basis):
    # Two readers that are each as far away, on either side, agree within `SUMS_ULP`.
    assert away(basis, (32, 48)) <= SUMS_ULP / 2
