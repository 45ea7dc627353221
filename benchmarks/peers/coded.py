"""What every peer of the rate-distortion benchmark gives: bytes and decoded values, counted alike.

Algorithms that define no file of their own are charged as our own writer charges a stream: an ideal coder of order
zero with a static table for each tensor, the table itself included, and fp16 for steps and whatever else is needed to
decode. No header, names or flush of a coder: a real file has them, NNCodec's does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from modelzip_jax.coding import histograms, streams
from modelzip_jax.errors import LeafError, NonFiniteError

__all__ = ["Coded", "as_half", "check_matrix", "code_bits", "total_bytes"]


class Coded(NamedTuple):
    """bytes: of all tensors together, side information included. values: float32 by name, as they decode."""

    bytes: int
    values: dict[str, np.ndarray]


def code_bits(codes: np.ndarray) -> float:
    """Bits of an ideal coder of order zero for one tensor's codes, its tables included.

    Up to 256 neighbouring codes are one stream, planned as `modelzip_jax.coding.streams` plans those of a file. More
    are told in two parts, c = 256 h + l: a stream of h, then one of l for each value of h. By the chain rule that
    loses nothing but the further tables.

    Args:
      codes: integers of any shape, within -32,768 … 32,767.

    Raises:
      LeafError: codes beyond.

    >>> code_bits(np.zeros(1000, np.int32))  # a table of three bytes
    24.0
    """
    flat = np.asarray(codes).ravel().astype(np.int64)
    if flat.size == 0:
        return 0.0
    low, high = int(flat.min()), int(flat.max())
    if high - low < 256:
        return _stream_bits((flat & 255).astype(np.uint8))
    if low < -(1 << 15) or high >= 1 << 15:
        raise LeafError(f"codes from {low} to {high} do not fit in 16 bits; take a coarser step")
    upper = (flat >> 8).astype(np.int8).view(np.uint8)
    lower = (flat & 255).astype(np.uint8)
    return _stream_bits(upper) + sum(_stream_bits(lower[upper == h]) for h in np.unique(upper))


def _stream_bits(stream: np.ndarray) -> float:
    plan = streams.plan(stream)
    if plan.coding == streams.RAW:
        return 8.0 * plan.length
    return sum(plan.bits) + 8 * sum(len(histograms.encode_table(table)) for table in plan.tables)


def total_bytes(bits: float) -> int:
    """Whole bytes for a number of bits."""
    return math.ceil(bits / 8)


def as_half(name: str, numbers: np.ndarray) -> np.ndarray:
    """What fp16 keeps of steps or factors, as float32; a positive one stays positive.

    Raises:
      NonFiniteError: some are not finite, or too large for fp16.
    """
    with np.errstate(over="ignore"):
        kept = np.asarray(numbers).astype(np.float16)
    if not np.isfinite(kept).all():
        raise NonFiniteError(f"the steps or factors of {name!r} are not finite in fp16; scale the matrix")
    least = np.finfo(np.float16).smallest_subnormal
    return np.where((kept == 0) & (np.asarray(numbers) > 0), least, kept).astype(np.float32)


def check_matrix(name: str, weights: np.ndarray, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights, (outputs, inputs), and their inputs' Gram matrix as float64.

    Raises:
      LeafError: shapes that do not fit. NonFiniteError: NaN or infinite numbers.
    """
    w, h = np.asarray(weights, np.float64), np.asarray(gram, np.float64)
    if w.ndim != 2 or h.shape != (w.shape[1], w.shape[1]):
        raise LeafError(
            f"{name!r} has shape {w.shape} and a Gram matrix of {h.shape}; give (outputs, inputs) and (inputs, inputs)"
        )
    if not (np.isfinite(w).all() and np.isfinite(h).all()):
        raise NonFiniteError(f"{name!r} or its Gram matrix holds NaN or infinite numbers")
    return w, h
