"""Wavelet filters in float64: computed by spectral factorization, or tabulated where that has no closed path.

Orthonormal filters are given by their low-pass synthesis filter h of even length F, sum h = √2; the
high-pass one is g[m] = (-1)^m h[F - 1 - m]. Biorthogonal ones are given by lifting steps.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from modelzip_jax.errors import TransformError
from modelzip_jax.naming import nearest_name
from modelzip_jax.wavelets.coiflets import COIFLETS

__all__ = ["FILTERS", "LIFTING", "Lifting", "check_filter", "highpass", "lowpass"]


class Lifting(NamedTuple):
    """A biorthogonal filter pair as lifting steps.

    steps: the weights of alternating predictions of odd samples from the sum of their even neighbours,
    and updates of even samples from the sum of their odd ones. low, high: final scales.
    """

    steps: tuple[float, ...]
    low: float
    high: float


# Cohen, Daubechies & Feauveau 1992: the 5/3 and 9/7 filters. Lifting steps: Daubechies & Sweldens 1998,
# section 7.7 (https://doi.org/10.1007/BF02476026), digits as in JPEG 2000 (ITU-T T.800, table F.4).
# Scales give the low-pass filter the sum √2, so that squared errors of coefficients and weights compare.
_K = 1.230174104914001
LIFTING = {
    "bior2.2": Lifting((-0.5, 0.25), math.sqrt(2.0), -1.0 / math.sqrt(2.0)),
    "bior4.4": Lifting(
        (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971),
        math.sqrt(2.0) / _K,
        -_K / math.sqrt(2.0),
    ),
}

# Which groups of zeros (a real one or a conjugate pair, from the smallest modulus on) the least asymmetric
# filters of Daubechies 1992, table 6.3, take outside of the unit circle.
_REFLECTED = {
    2: (0,), 3: (0,), 4: (0, 1), 5: (1, 0), 6: (1, 0, 1), 7: (1, 0, 0), 8: (0, 1, 0, 1), 9: (0, 1, 1, 0),
    10: (1, 0, 1, 0, 1),
}  # fmt: skip

FILTERS = (
    "haar",
    *(f"db{order}" for order in range(2, 11)),
    *(f"sym{order}" for order in range(2, 11)),
    *(f"coif{order}" for order in range(1, 6)),
    *LIFTING,
)
"""Names of all filters. "haar" is "db1"."""


def check_filter(name: str) -> str:
    """The name, if it is one of `FILTERS`.

    Raises:
      TransformError: it is not; the message names the nearest.
    """
    if name not in FILTERS:
        raise TransformError(f"there is no wavelet filter {name!r}; {nearest_name(str(name), FILTERS)}")
    return name


@functools.cache
def lowpass(name: str) -> Float64[np.ndarray, " taps"]:
    """The low-pass synthesis filter of an orthonormal wavelet: float64 (F,), read-only.

    The analysis filter is its reverse. Daubechies 1988 (https://doi.org/10.1002/cpa.3160410705) and 1992,
    "Ten Lectures on Wavelets", section 6.1 (dbN, N vanishing moments), 6.4 (symN), 8.2 (coifN).

    Args:
      name: of `FILTERS`, but no biorthogonal one.

    Raises:
      TransformError: no such orthonormal filter.

    >>> np.round(lowpass("db2"), 4).tolist()
    [0.483, 0.8365, 0.2241, -0.1294]
    """
    if check_filter(name) in LIFTING:
        raise TransformError(f"{name!r} is biorthogonal: it has lifting steps, not one orthonormal filter")
    if name.startswith("coif"):
        h = np.array(COIFLETS[int(name[4:])])
    elif name.startswith("sym"):
        h = _factor(int(name[3:]), _REFLECTED[int(name[3:])])
    else:
        h = _factor(1 if name == "haar" else int(name[2:]), ())
    h.setflags(write=False)
    return h


def highpass(name: str) -> Float64[np.ndarray, " taps"]:
    """The high-pass synthesis filter of an orthonormal wavelet: float64 (F,).

    >>> np.round(highpass("haar"), 4).tolist()
    [0.7071, -0.7071]
    """
    h = lowpass(name)[::-1]
    return h * (-1.0) ** np.arange(h.size)


def _factor(order: int, reflected: tuple[int, ...]) -> np.ndarray:
    """h from `order` zeros at -1 and one of each pair of zeros z, 1/z of the Daubechies polynomial.

    P(y) = Σ_k C(order - 1 + k, k) y^k with y = (2 - z - 1/z) / 4; zeros inside of the unit circle give the
    minimum-phase filter, `reflected` groups are taken outside.
    """
    groups = _zeros(order)
    zeros = [-1.0 + 0j] * order
    for group, outside in zip(groups, reflected or [0] * len(groups), strict=True):
        zeros += [1 / z for z in group] if outside else group
    h = np.real(np.poly(zeros))
    return h / h.sum() * math.sqrt(2.0)


def _zeros(order: int) -> list[list[complex]]:
    """Zeros inside the unit circle, conjugate pairs together, by growing modulus."""
    polynomial = [math.comb(order - 1 + k, k) for k in range(order)][::-1]
    middle = 1 - 2 * np.roots(polynomial)
    root = np.sqrt(middle**2 - 1 + 0j)
    zeros = [complex(min(pair, key=abs)) for pair in zip(middle + root, middle - root, strict=True)]
    ordered = sorted(zeros, key=lambda z: (abs(z), z.real))
    real = [[complex(z.real)] for z in ordered if abs(z.imag) < 1e-9]
    pairs = [[z, z.conjugate()] for z in ordered if z.imag >= 1e-9]
    return sorted(real + pairs, key=lambda group: abs(group[0]))
