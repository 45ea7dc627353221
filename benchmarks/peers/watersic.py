"""WaterSIC: error feedback with a step for each input, as waterfilling asks for.

Lifar et al. 2026, arXiv:2603.04956. With H = E[x xᵀ] of a layer's inputs, δ a share of its mean diagonal and L Lᵀ = H +
δ I, the error of W (outputs, inputs) is ‖(W − Ŵ) L‖². Y = W L is rounded from the last column to the first, which for
one step for all columns would be GPTQ: column j has the step α_j = c / L_jj, hence

    z_j = round(Y_j / c),    γ_j = ⟨z_j, Y_j⟩ / (c ⟨z_j, z_j⟩),    Y ← Y − γ_j α_j z_j L_j,·

and every column adds the same distortion, c² / 12, whatever its L_jj. Then row factors t and column factors γ, which
minimise ‖(W − diag(t) Z diag(α γ)) L‖² without δ, in turn: each is a least-squares problem,

    t_i = (w_i H ŵ_iᵀ) / (ŵ_i H ŵ_iᵀ),    (H ∘ Ẑᵀ diag(t²) Ẑ) γ = diag(Ẑᵀ diag(t) W H),    Ẑ = Z diag(α).

At high rates, with independent Gaussian weights and an entropy coder, this is ½ log₂(2πe / 12) = 0.2546 bit from the
information-theoretic limit for every H. A single step for all columns takes `waterfilling_gain` bits more.

Choices. δ is 1e-4 of the mean diagonal, columns come in the layer's own order, codes have one table a layer and each
row and column a factor of 16 bits: as the authors count. Where that takes fewer bytes, each of eight classes of columns
of like steps, which the decoder knows, has a table: one table for columns of unlike steps loses part of the gain. Left
out: corrections for inputs and residuals that earlier layers have changed, attention-weighted statistics, the search
for rates and fine-tuning of the factors, which all need the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg

from benchmarks.peers.coded import Coded, as_half, check_matrix, code_bits, total_bytes
from modelzip_jax.errors import NonFiniteError

__all__ = ["WaterSic", "code_by_watersic", "spacing_for", "waterfilling_gain", "watersic"]

_ROUNDS = 50
_ENOUGH = 3e-4
"""Relative change of the error at which the factors stop, the authors' own."""
_RIDGE = 1e-8


class WaterSic(NamedTuple):
    """codes: int32 (outputs, inputs). rows: (outputs,), columns: (inputs,), float32 of fp16's precision."""

    codes: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """float32 (outputs, inputs)."""
        return self.rows[:, None] * self.codes * self.columns

    def bits(self, classes: Sequence[int] = (1, 8)) -> float:
        """Code length and 16 bits a factor: the fewest, with a table for each of so many groups of like columns."""
        order = np.argsort(np.abs(self.columns), kind="stable")
        lengths = [sum(code_bits(self.codes[:, x]) for x in np.array_split(order, k)) for k in classes]
        return min(lengths) + 16 * (self.rows.size + self.columns.size)


def watersic(weights: np.ndarray, gram: np.ndarray, spacing: float, damping: float = 1e-4) -> WaterSic:
    """One layer.

    Args:
      weights: (outputs, inputs). gram: H, (inputs, inputs).
      spacing: c: column j has the step c / L_jj. With c² the mean of s² L_jj² it has the distortion of one step s.
      damping: δ, as a share of the mean of H's diagonal.

    Raises:
      LeafError: shapes that do not fit. NonFiniteError: of weights, H, its factor or the factors found.
    """
    w, h = check_matrix("weights", weights, gram)
    factor = _factor(h, damping)
    diagonal = np.diagonal(factor)
    codes, gamma = _cancelled(w @ factor, factor, spacing)
    steps = spacing / diagonal
    rows, gamma = _rescaled(w, h, codes * steps, gamma)
    return WaterSic(codes.astype(np.int32), as_half("weights", rows), as_half("weights", gamma * steps))


def code_by_watersic(
    weights: Mapping[str, np.ndarray],
    grams: Mapping[str, np.ndarray],
    spacing: float | Mapping[str, float],
    damping: float = 1e-4,
    classes: Sequence[int] = (1, 8),
) -> Coded:
    """As `watersic`, of many layers; bytes are ideal code lengths, as `coded` counts them, and fp16 factors.

    Args:
      weights, grams: by name, see `watersic`.
      spacing: one for all layers, so that each adds the same distortion an output, or by name: the authors give each
        layer the same rate, `spacing_for`.
      classes: see `WaterSic.bits`; `(1,)` counts as the authors do.
    """
    found = {
        name: watersic(w, grams[name], spacing[name] if isinstance(spacing, Mapping) else spacing, damping)
        for name, w in weights.items()
    }
    bits = sum(f.bits(classes) for f in found.values())
    return Coded(total_bytes(bits), {name: f.values for name, f in found.items()})


def spacing_for(weights: np.ndarray, gram: np.ndarray, bits: float, damping: float = 1e-4) -> float:
    """c for about `bits` a weight: 2^(−bits) times the geometric mean of √12 σ_j L_jj, σ_j² a column's mean square."""
    w, h = check_matrix("weights", weights, gram)
    power = np.mean(np.square(w), axis=0) * np.square(np.diagonal(_factor(h, damping)))
    return float(2.0**-bits * np.sqrt(12 * np.exp(np.mean(np.log(power[power > 0])))))


def waterfilling_gain(gram: np.ndarray, damping: float = 1e-4, order: bool = False) -> float:
    """Bits a weight that unequal steps save over one step, at high rates: ½ log₂(mean L_jj² / geometric mean L_jj²).

    Args:
      gram, damping: see `watersic`.
      order: for inputs by rising mean square, the largest rounded first, instead of as they come.

    >>> round(waterfilling_gain(np.diag([4.0, 1.0]), damping=0.0), 6)  # ½ log₂(2.5 / 2)
    0.160964
    """
    h = np.asarray(gram, np.float64)
    if order:
        place = np.argsort(np.diagonal(h), kind="stable")
        h = h[place][:, place]
    squares = np.square(np.diagonal(_factor(h, damping)))
    return float(0.5 * (np.log2(np.mean(squares)) - np.mean(np.log2(squares))))


def _factor(h: np.ndarray, damping: float) -> np.ndarray:
    """L, lower triangular."""
    try:
        return np.linalg.cholesky(h + damping * np.mean(np.diagonal(h)) * np.eye(len(h)))
    except np.linalg.LinAlgError as error:
        raise NonFiniteError(f"the Gram matrix is too near to singular for a damping of {damping}") from error


def _cancelled(y: np.ndarray, factor: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Codes of Y = W L, from the last column to the first, and each column's least-squares factor, 0 for zeros."""
    left = np.array(y.T, order="C")
    codes, gamma = np.zeros_like(left), np.zeros(len(left))
    for j in range(len(left) - 1, -1, -1):
        codes[j] = np.rint(left[j] / spacing)
        power = codes[j] @ codes[j]
        if power:
            gamma[j] = codes[j] @ left[j] / power / spacing
            left[: j + 1] -= np.outer(gamma[j] * spacing / factor[j, j] * factor[j, : j + 1], codes[j])
    return codes.T, gamma


def _rescaled(
    w: np.ndarray, h: np.ndarray, found: np.ndarray, gamma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Factors of rows and of columns that the error with Ẑ = `found` is least for; columns of zeros keep 0."""
    goal = w @ h
    whole = np.sum(goal * w)
    rows, live = np.ones(len(w)), np.any(found != 0, axis=0)
    inner, kept = h[np.ix_(live, live)], found[:, live]
    gamma, before = gamma.copy(), np.inf
    for _ in range(_ROUNDS if live.any() else 0):
        scaled = kept * gamma[live]
        power = np.sum(scaled @ inner * scaled, axis=1)
        rows = np.where(power > 0, np.sum(goal[:, live] * scaled, axis=1) / np.where(power > 0, power, 1), 1)
        scale = np.mean(np.abs(rows))
        rows = rows / scale
        scaled = kept * rows[:, None]
        matrix = inner * (scaled.T @ scaled)
        matrix[np.diag_indices_from(matrix)] += _RIDGE * np.mean(np.diagonal(matrix))
        cross = np.sum(scaled * goal[:, live], axis=0)
        gamma[live] = linalg.solve(matrix, cross, assume_a="pos")
        error = whole - gamma[live] @ cross
        if before - error < _ENOUGH * error:
            break
        before = error
    return rows, gamma
