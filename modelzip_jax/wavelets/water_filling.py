"""Reverse water-filling: how bits are best divided among sub-bands of different variance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelzip_jax.errors import TransformError

__all__ = ["reverse_water_filling"]


def reverse_water_filling(
    variances: Sequence[float] | np.ndarray, sizes: Sequence[int] | np.ndarray, bits: float
) -> tuple[float, np.ndarray]:
    """The common squared error of Gaussian sub-bands, and the bits that each coefficient gets.

    minimize Σ n_k D_k  subject to  Σ n_k ½ log2(σ²_k / D_k) = bits:  D_k = min(θ, σ²_k), and sub-bands of a
    variance below θ get no bits at all. A uniform quantizer with one step size √(12 θ) for all sub-bands
    of an orthonormal basis comes within a quarter bit a coefficient of it; the first frequency
    without bits is the `keep` of `wavelet`.

    Args:
      variances: σ²_k of each sub-band. sizes: n_k, its coefficients. bits: for all of them together.

    Returns:
      (θ, float64 bits a coefficient of each sub-band).

    Raises:
      TransformError: negative or non-finite variances, negative bits, or lists of different lengths.

    Cover & Thomas 2006, "Elements of Information Theory", theorem 10.3.3.

    >>> level, bits = reverse_water_filling([16.0, 4.0, 0.1], [1, 1, 2], bits=3.0)
    >>> round(level, 6), bits.round(6).tolist()
    (1.0, [2.0, 1.0, 0.0])
    """
    variance, size = np.asarray(variances, np.float64), np.asarray(sizes, np.float64)
    if (
        variance.shape != size.shape
        or variance.ndim != 1
        or not np.all(np.isfinite(variance) & (variance >= 0))
    ):
        raise TransformError("variances must be finite and not negative, one for each size")
    if not bits >= 0.0:
        raise TransformError(f"bits must be 0 or more, not {bits!r}")
    order = [k for k in np.argsort(-variance) if variance[k] > 0 and size[k] > 0]
    level = 0.0
    for count in range(len(order), 0, -1):  # As many of the largest as stay above the water.
        wet = order[:count]
        logs = np.log2(variance[wet])
        level = float(2.0 ** ((size[wet] @ logs - 2.0 * bits) / size[wet].sum()))
        if level <= variance[wet[-1]]:
            break
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.where(variance > level, 0.5 * np.log2(variance / level), 0.0) if level else 0.0 * variance
    return level, rates
