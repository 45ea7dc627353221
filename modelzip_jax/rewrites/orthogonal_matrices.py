"""Random orthogonal matrices that spread every channel over all others."""

from __future__ import annotations

import numpy as np

__all__ = ["random_hadamard"]


def random_hadamard(size: int, rng: np.random.Generator, keeps_ones: bool = False) -> np.ndarray:
    """A random orthogonal matrix, float64 `(size, size)`: Hadamard's with random signs where there is one.

    For size 2^k m with m odd it is the Kronecker product of Sylvester's matrix of order 2^k and a random orthogonal
    matrix of order m (of the QR decomposition of normal numbers), then random signs of its rows; m = 1 gives entries
    ±1/√size. keeps_ones: followed by the reflection that puts the image of the vector of ones back on it, so that
    Q 1 = 1 and sums over a vector stay as they are.

    >>> q = random_hadamard(8, np.random.default_rng(0))
    >>> bool(np.allclose(np.abs(q), 8**-0.5)), bool(np.allclose(q @ q.T, np.eye(8)))
    (True, True)
    >>> random_hadamard(6, np.random.default_rng(0), keeps_ones=True).sum(axis=0).round(12)
    array([1., 1., 1., 1., 1., 1.])
    """
    odd = size // (size & -size)
    q, r = np.linalg.qr(rng.normal(size=(odd, odd)))
    matrix = q * np.sign(np.diag(r))  # Uniform among the orthogonal matrices.
    while len(matrix) < size:
        matrix = np.kron([[1.0, 1.0], [1.0, -1.0]], matrix) / np.sqrt(2.0)
    matrix = rng.choice([-1.0, 1.0], size=(size, 1)) * matrix
    if keeps_ones and size > 1:
        ones = np.full(size, size**-0.5)
        image = ones @ matrix
        away = image - ones
        length = np.linalg.norm(away)
        if length > 1e-12:
            away /= length
            matrix = matrix - 2.0 * np.outer(matrix @ away, away)
    return matrix
