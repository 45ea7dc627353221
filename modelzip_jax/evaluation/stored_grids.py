"""The grid that the values of a stored leaf lie on, as far as one can be drawn."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from modelzip_jax.masking.masked import Masked
from modelzip_jax.packed import PackedArray
from modelzip_jax.quantization.levelled import Levelled
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.quantization.scaled import ScaledCodes, computed_in
from modelzip_jax.sharing.clustered import Clustered

__all__ = ["StoredGrid", "stored_grid"]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredGrid:
    """Values v of a leaf lie where `v / unit + shift` is one of the levels.

    levels: float64 `(k,)`, ascending, from the least to the largest that occurs. unit: positive, broadcasts to the
    leaf's shape; shape `()` where one unit holds for all, and then 1, so that levels are values. shift: the same, in
    units.
    """

    levels: np.ndarray
    unit: np.ndarray
    shift: np.ndarray

    @property
    def is_of_values(self) -> bool:
        """Whether levels are in the unit of the weights, and not each weight's own step."""
        return self.unit.ndim == 0


def stored_grid(packed: PackedArray) -> StoredGrid | None:
    """The grid of a packed array, behind its mask if it has one; None of what is lossless or has no grid of weights.

    >>> import numpy as np, modelzip_jax as mz
    >>> weights = np.float32([[-3.0, 1.0, 3.0]])
    >>> stored_grid(mz.compress({"w": weights}, mz.quantize(2, granularity="tensor")).params["w"]).levels
    array([-3.,  0.,  3.])
    """
    if isinstance(packed, Masked):
        return stored_grid(packed.inner)
    if isinstance(packed, Clustered):
        levels = np.sort(np.asarray(packed.codebook, np.float64))
        return StoredGrid(levels, np.ones(()), np.zeros(()))
    found = _in_units(packed)
    if found is None or not found.levels.size:
        return None
    if found.unit.size == 1 and found.shift.size == 1:
        levels = (found.levels - float(found.shift.reshape(()))) * float(found.unit.reshape(()))
        return StoredGrid(levels, np.ones(()), np.zeros(()))
    return found


def _in_units(packed: PackedArray) -> StoredGrid | None:
    if isinstance(packed, ScaledCodes):
        codes = np.asarray(packed.elements())
        dtype = computed_in(packed.dtype)
        unit = np.asarray(packed.rows).astype(dtype)
        if packed.columns is not None:
            unit = unit * np.asarray(packed.columns).astype(dtype)
        levels = np.arange(int(codes.min(initial=0)), int(codes.max(initial=0)) + 1, dtype=np.float64)
        return StoredGrid(levels, unit, np.zeros((1,) * unit.ndim))
    if isinstance(packed, Quantized):
        codes = np.unique(np.asarray(packed.codes.unpack_host()))
        levels = (
            np.arange(int(codes.min(initial=255)), int(codes.max(initial=0)) + 1, dtype=np.float64)
            + packed.low
        )
        return StoredGrid(levels, *_spread(packed, packed.step, packed.zero))
    if isinstance(packed, Levelled):
        levels = np.asarray(packed.levels, np.float64)
        return StoredGrid(levels, *_spread(packed, packed.scales(), packed.zero))
    return None


def _spread(packed: Any, scale: Any, zero: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero, in shapes that broadcast against the leaf."""
    unit = jnp.asarray(scale)
    shift = jnp.zeros_like(unit) if zero is None else jnp.asarray(zero).astype(unit.dtype)
    expanded = (np.asarray(packed.groups.expand(x, packed.shape), np.float64) for x in (unit, shift))
    return next(expanded), next(expanded)
