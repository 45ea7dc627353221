"""EntQuant: a step a channel, found without data, for weights that an entropy coder takes well.

Putzky et al. 2026 (Float8@2bits), arXiv:2601.22787; the variant on integers of 8 bits. The steps s minimise

    ‖W − s · q‖₁ / ‖W‖₁ + λ · mean |q| / 128,    q = clip(round(W / s), −127, 127),

over all channels of a tensor together, the mean magnitude standing in for the entropy. Published with it, for any
network: λ = 3.9 gives about 4 bits a weight, 14.5 gives 3, 58 gives 2.

The paper descends by L-BFGS on log s with straight-through gradients (dq/ds = −W / s²). That is where its steps come
from rather than the loss's own minimum, which at large λ is a tensor of zeros. Along that gradient, channels only share
‖W‖₁ and the number N of weights, and a channel's step is where

    s · ‖w − s · q‖₁ = λ / (128 N) · ‖W‖₁ · Σ |w| over q ≠ 0.

The left side rises with s and the right side falls, so it is found here by bisection, to the precision of fp16: L-BFGS
ends at the same loss and entropy. Choices: steps are stored as fp16, codes are rounded with what is stored. Left out:
exempting layers with "super weights", which the paper needs for language models alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.peers.coded import Coded, as_half, code_bits, total_bytes
from modelzip_jax.errors import LeafError, NonFiniteError

__all__ = ["code_by_entquant", "entquant"]

_LAST = 127
_ROUNDS = 24
"""Of bisection: a range of ten octaves to within 1e-6."""


def entquant(
    matrices: Mapping[str, np.ndarray], strength: float, axis: int = -1
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Codes and steps of each tensor; a sweep over `strength` gives the curve.

    Args:
      matrices: float tensors of two axes and more.
      strength: λ, positive.
      axis: of channels: 0 where outputs come first, -1 for Flax kernels.

    Returns:
      by name, codes, int32 in the shape of the tensor, and steps, float32 of fp16's precision, in a shape that
      multiplies them.

    Raises:
      LeafError: a tensor of fewer than two axes. NonFiniteError: NaN or infinite weights.
    """
    found = {}
    for name, tensor in matrices.items():
        w = np.asarray(tensor, np.float32)
        if w.ndim < 2:
            raise LeafError(f"{name!r} has shape {w.shape}; EntQuant takes tensors of two axes and more")
        if not np.isfinite(w).all():
            raise NonFiniteError(f"{name!r} holds NaN or infinite weights")
        rows = np.moveaxis(w, axis, 0)
        steps = as_half(name, _steps(rows.reshape(len(rows), -1), strength))
        broadcast = [1] * w.ndim
        broadcast[axis] = len(rows)
        steps = steps.reshape(broadcast)
        found[name] = _codes(w, steps).astype(np.int32), steps
    return found


def code_by_entquant(matrices: Mapping[str, np.ndarray], strength: float, axis: int = -1) -> Coded:
    """As `entquant`; bytes are ideal code lengths by tensor, as `coded` counts them, and fp16 steps."""
    found = entquant(matrices, strength, axis)
    bits = sum(code_bits(codes) + 16 * steps.size for codes, steps in found.values())
    return Coded(total_bytes(bits), {name: codes * steps for name, (codes, steps) in found.items()})


def _codes(w: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(w / steps), -_LAST, _LAST)


def _steps(rows: np.ndarray, strength: float) -> np.ndarray:
    """The root of the straight-through gradient for each row, `(rows,)`."""
    size = np.abs(rows)
    reach = np.maximum(size.max(axis=1, initial=0.0), 1e-30).astype(np.float64)
    price = strength / 128 * size.mean(dtype=np.float64)
    low, high = np.log2(reach / _LAST / 4), np.log2(2 * reach)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        s = np.exp2(middle)[:, None].astype(np.float32)
        q = _codes(rows, s)
        error = np.abs(rows - s * q).sum(axis=1, dtype=np.float64)
        used = np.where(q != 0, size, 0.0).sum(axis=1, dtype=np.float64)
        too_coarse = s[:, 0] * error > price * used
        low, high = np.where(too_coarse, low, middle), np.where(too_coarse, middle, high)
    return np.exp2((low + high) / 2)
