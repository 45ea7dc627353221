"""CERWU: error feedback in which every rounding also pays for its bits.

Conzelmann & Bamler 2025, arXiv:2505.18758. In units of a layer's one step, with weights w and H = E[x xᵀ] of its inputs
in the units that this makes of it, the loss of codes i is

    ½ (w − i) H (w − i)ᵀ + λ R(i),    R in bits.

What is quadratic in R, γ/2 i² with γ = 1 / (ln 2 · var w), the code length of a Gaussian, goes into the distortion:

    H′ = H + λ γ I,    w′ = w H H′⁻¹,

which leaves a constant and the rest of R. Then columns are rounded one by one, each to the code that minimises

    ½ (w′_q − i)² + λ C_qq² (R(i) − γ/2 i²)

over the grid, C being the upper Cholesky factor of H′⁻¹, and what is wrong with it is made up for by later columns as
Optimal Brain Surgeon and GPTQ do: w′ ← w′ − (w′_q − i) / C_qq · C_q,·. With λ = 0 that is GPTQ. The grid reaches twice
as far as the largest weight, since feedback moves weights.

Choices. H is damped by 0.01 of its mean diagonal; columns come in the layer's own order; the step is fp16. R is a
static table, as the bytes are counted here: counts of w′ rounded to nearest, and one more for every code of the grid,
and after each pass counts of the codes found, `passes` times in all (the authors' static model is one pass; their best
one is DeepCABAC's adaptive model, in which a weight also pays by its neighbours).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import linalg

from benchmarks.peers.coded import Coded, as_half, check_matrix, code_bits, total_bytes
from modelzip_jax.errors import NonFiniteError

__all__ = ["absmax_step", "cerwu", "code_by_cerwu"]


def cerwu(
    weights: np.ndarray,
    gram: np.ndarray,
    step: float,
    price: float,
    damping: float = 0.01,
    passes: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes, int32, and values, float32, of one layer, (outputs, inputs) each.

    Args:
      weights: (outputs, inputs). gram: H, (inputs, inputs).
      step: of the grid; rounded to fp16.
      price: λ, what a bit is worth of ½ (w − ŵ) H (w − ŵ)ᵀ in the weights' own units; 0 for GPTQ.
      damping: as a share of the mean of H's diagonal. passes: see above, at least one.

    Raises:
      LeafError: shapes that do not fit. NonFiniteError: of weights or H, or H too near to singular.
    """
    w, h = check_matrix("weights", weights, gram)
    step = float(as_half("weights", np.asarray(step)))
    w, h = w / step, h * step**2
    h[np.diag_indices_from(h)] += damping * np.mean(np.diagonal(h)) or 1.0
    gamma = 1 / (np.log(2) * max(float(np.var(w)), 1e-12))
    regular = h + price * gamma * np.eye(len(h))
    try:
        moved = linalg.solve(regular, h @ w.T, assume_a="pos").T
        factor = np.linalg.cholesky(np.linalg.inv(regular)).T
    except np.linalg.LinAlgError as error:
        raise NonFiniteError(f"the Gram matrix is too near to singular for a damping of {damping}") from error
    codes = np.rint(moved)
    for _ in range(passes):
        grid, rate = _rates(codes, np.abs(np.rint(w)).max(initial=0))
        codes = _fed_back(moved, factor, grid, price * (rate - gamma / 2 * grid**2))
    return codes.astype(np.int32), (codes * step).astype(np.float32)


def code_by_cerwu(
    weights: Mapping[str, np.ndarray],
    grams: Mapping[str, np.ndarray],
    steps: Mapping[str, float],
    price: float,
    damping: float = 0.01,
    passes: int = 2,
) -> Coded:
    """As `cerwu`, of many layers at one price; bytes are ideal code lengths, as `coded` counts them, and steps."""
    found = {name: cerwu(w, grams[name], steps[name], price, damping, passes) for name, w in weights.items()}
    bits = sum(code_bits(codes) + 16 for codes, _ in found.values())
    return Coded(total_bytes(bits), {name: values for name, (_, values) in found.items()})


def absmax_step(weights: np.ndarray, levels: int) -> float:
    """The authors' step, `levels` // 2 of which reach the largest weight; they sweep both this number and λ.

    >>> absmax_step(np.array([[-1.0, 0.5]]), 8)
    0.25
    """
    return float(np.abs(weights).max()) / (levels // 2)


def _rates(codes: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """The grid, to twice what `codes` and weights need, and bits of each of its codes by their counts and one more."""
    last = 2 * int(max(np.abs(codes).max(initial=0), reach)) + 1
    counts = np.bincount((codes + last).astype(np.int64).ravel(), minlength=2 * last + 1) + 1
    return np.arange(-last, last + 1, dtype=np.float64), np.log2(counts.sum() / counts)


def _fed_back(w: np.ndarray, factor: np.ndarray, grid: np.ndarray, charge: np.ndarray) -> np.ndarray:
    """Codes of each column in turn, `charge` being λ times the rest of the rate of each code of the grid."""
    left = np.array(w.T, order="C")
    codes = np.empty_like(left)
    for q, own in enumerate(np.diagonal(factor)):
        # ½ (w − i)² without ½ w², which is the same for all codes.
        price = grid**2 / 2 + own**2 * charge
        codes[q] = grid[np.argmin(price - left[q][:, None] * grid, axis=1)]
        left[q + 1 :] -= np.outer(factor[q, q + 1 :], (left[q] - codes[q]) / own)
    return codes.T
