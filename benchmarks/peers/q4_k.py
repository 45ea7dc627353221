"""Q4_K, llama.cpp's format of 4.5 bits a weight: values and bytes.

After the description in ggml's reference quantizer (MIT, github.com/ggml-org/ggml, `quantize_row_q4_K_ref`). 256
weights are a super-block of 144 bytes: two fp16 numbers d and d_min, for each of eight blocks of 32 weights a scale s
and a minimum m of 6 bits, and 4 bits q a weight, of the value

    d · s · q − d_min · m.

For a block x, with weights u = √(mean x²) + |x| in the squared error: q = clip(round((x − min) / a), 0, 15) is tried
for 21 steps a = (max − min) / (14, 14.1 … 16), min being at most 0 and that of the best fit so far. For each q, scale
and minimum are the weighted least-squares fit of x, the minimum at most 0; the best of them and of a = (max − min) / 15
as it stands is kept. d and d_min are the largest of eight scales and minima over 63. Then scales, minima and all q are
rounded with what is stored.

Choice: super-blocks run on over the ends of rows and the last one is padded, while llama.cpp asks for rows of a
multiple of 256 weights and takes a wider format for others: here no file is made larger by that. Left out: weights of
the error from activations ("imatrix").
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.peers.coded import Coded
from modelzip_jax.errors import NonFiniteError

__all__ = ["SUPER_BLOCK_BYTES", "code_by_q4_k", "q4_k"]

SUPER_BLOCK_BYTES = 2 + 2 + 12 + 128
_BLOCK, _BLOCKS, _LAST = 32, 8, 15
_TRIALS = 21
_REACH = 4e6
"""A little less than 63 times fp16's largest number."""


def q4_k(name: str, weights: np.ndarray) -> np.ndarray:
    """Values, float32 in the shape of `weights`, whose rows are outputs, so that blocks are of inputs.

    Raises:
      NonFiniteError: NaN, or weights too large for fp16 scales.
    """
    flat = np.asarray(weights, np.float32).ravel()
    if not np.all(np.abs(flat) < _REACH):
        raise NonFiniteError(f"{name!r} holds NaN or weights beyond {_REACH:g}, which no fp16 scale reaches")
    blocks = np.pad(flat, (0, -flat.size % (_BLOCK * _BLOCKS))).reshape(-1, _BLOCK)
    scale, least = _fitted(blocks)
    d, s = _six_bits(scale)
    d_min, m = _six_bits(least)
    step, shift = (d * s)[:, None], (d_min * m)[:, None]
    codes = np.clip(np.rint((blocks + shift) / np.where(step > 0, step, 1)), 0, _LAST)
    values = step * np.where(step > 0, codes, 0) - shift
    return values.astype(np.float32).ravel()[: flat.size].reshape(np.shape(weights))


def code_by_q4_k(matrices: Mapping[str, np.ndarray]) -> Coded:
    """As `q4_k`; bytes are those of all super-blocks, no header."""
    count = sum(-(-np.size(w) // (_BLOCK * _BLOCKS)) for w in matrices.values())
    return Coded(SUPER_BLOCK_BYTES * count, {name: q4_k(name, w) for name, w in matrices.items()})


def _fitted(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minus the minimum of each block `(blocks, 32)`, both at least 0 and not rounded yet."""
    u = np.sqrt(np.mean(np.square(x), axis=1, keepdims=True)) + np.abs(x)
    low, high = np.minimum(x.min(axis=1), 0), x.max(axis=1)
    flat = high == low
    sums = u.sum(axis=1), (u * x).sum(axis=1)

    def error(codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
        return (u * np.square(scale[:, None] * codes + minimum[:, None] - x)).sum(axis=1)

    def codes_of(levels: float, minimum: np.ndarray) -> np.ndarray:
        width = np.where(flat, 1, high - minimum)
        ratio = np.float32(levels) / width
        return np.clip(np.rint(ratio[:, None] * (x - minimum[:, None])), 0, _LAST)

    scale, minimum = (high - low) / _LAST, low
    best = error(codes_of(_LAST, low), scale, minimum)
    for trial in range(_TRIALS):
        codes = codes_of(_LAST - 1 + 0.1 * trial, minimum)
        fit_scale, fit_minimum, solvable = _least_squares(codes, u, x, *sums)
        found = error(codes, fit_scale, fit_minimum)
        better = solvable & (found < best)
        scale, minimum = np.where(better, fit_scale, scale), np.where(better, fit_minimum, minimum)
        best = np.where(better, found, best)
    return np.where(flat, 0, scale), -np.where(flat, low, minimum)


def _least_squares(
    codes: np.ndarray, u: np.ndarray, x: np.ndarray, sum_u: np.ndarray, sum_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale and minimum, at most 0, of scale · codes + minimum ≈ x with weights u; and where there is a fit."""
    sum_q, sum_qq, sum_xq = ((u * y).sum(axis=1) for y in (codes, codes * codes, codes * x))
    determinant = sum_u * sum_qq - sum_q * sum_q
    solvable = determinant > 0
    below = np.where(solvable, determinant, 1)
    scale, minimum = (sum_u * sum_xq - sum_x * sum_q) / below, (sum_qq * sum_x - sum_q * sum_xq) / below
    through = sum_xq / np.where(sum_qq > 0, sum_qq, 1)
    return np.where(minimum > 0, through, scale), np.minimum(minimum, 0), solvable


def _six_bits(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fp16 unit of each super-block, repeated for its blocks, and multiples of 6 bits of it."""
    of_blocks = numbers.reshape(-1, _BLOCKS)
    largest = np.maximum(of_blocks.max(axis=1, keepdims=True), 0)
    multiples = np.rint(63 / np.where(largest > 0, largest, 1) * of_blocks)
    unit = (largest / 63).astype(np.float16).astype(np.float32)
    return np.repeat(unit, _BLOCKS), np.clip(multiples, 0, 63).ravel()
