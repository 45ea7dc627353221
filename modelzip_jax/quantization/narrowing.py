"""A smaller model out of a larger one: the upper bits of its codes, with steps that are fitted anew."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.masking.masked import Masked
from modelzip_jax.packed import Bits, Elementwise, PackedArray, is_packed
from modelzip_jax.packing import Packed
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.grids.fitted_levels import Quantile
from modelzip_jax.quantization.levelled import Levelled
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.recipe import from_plain, to_plain

__all__ = ["narrow"]


def narrow(packed: Packed, bits: int) -> Packed:
    """The model with codes of fewer bits: the upper ones of those that it has.

    One file serves several widths: an 8-bit code's upper half is a 4-bit code. The lower bits are dropped, and each
    group's step and zero point fitted anew, by least squares, to the values that the longer codes stand for; of a grid
    of levels, each level becomes the mean of those it replaces, by how often they occur (of floats these are many: the
    upper bits are the exponent). Leaves with no more bits, and
    those that are not quantized, stay as they are. No data is needed, and none of the original weights.

    Args:
      packed: a model, as `mz.load` gives it. bits: of its codes at most, 1 to 7.

    Returns:
      A packed model that can be saved and trained further: its recipe has the new bits, and an offset or levels of its
      own.

    Raises:
      TransformError: bits out of range, or no leaf that has more.

    Nested widths trained together: Nair et al. 2025 (Matryoshka quantization), arXiv:2502.06786.

    >>> import modelzip_jax as mz
    >>> packed = mz.compress({"w": np.linspace(-1, 1, 256, dtype=np.float32)[:, None]}, mz.quantize(8))
    >>> small = narrow(packed, bits=4)
    >>> small.params["w"].codes.bits, float(np.abs(mz.unpack(small)["w"] - mz.unpack(packed)["w"]).max()) < 0.07
    (4, True)
    """
    bits = as_whole(bits, "bits of narrow()", 1, 7)
    if not isinstance(packed, Packed):
        raise TransformError(
            f"narrow() takes a packed model, such as mz.load(path), not a {type(packed).__name__}"
        )
    done: list[bool] = []

    def narrowed_leaf(p: PackedArray) -> PackedArray:
        new = _narrowed(p, bits, None)
        done.append(new is not p)
        return new

    params = jax.tree.map(narrowed_leaf, packed.params, is_leaf=is_packed)
    if not any(done):
        raise TransformError(f"the model has no codes of more than {bits} bits")
    return dataclasses.replace(
        packed, params=params, transform=from_plain(_recipe(to_plain(packed.transform), bits))
    )


def _narrowed(packed: PackedArray, bits: int, mask: np.ndarray | None) -> PackedArray:
    """mask: which values a mask around keeps, whose codes alone are stored; of others nothing is known."""
    if isinstance(packed, Quantized | Levelled):
        if packed.codes.bits <= bits:
            return packed
        codes = packed.codes.unpack_host()
        small = codes >> (packed.codes.bits - bits)
        fit = _fit_steps if isinstance(packed, Quantized) else _fit_levels
        return fit(packed, codes, small, bits, mask)  # type: ignore[arg-type]
    if isinstance(packed, Masked):
        kept = packed.mask.unpack_host().astype(bool) if isinstance(packed.inner, Elementwise) else None
        return _replaced(packed, "inner", _narrowed(packed.inner, bits, kept))
    for field in dataclasses.fields(packed):  # type: ignore[arg-type]
        value = getattr(packed, field.name)
        if isinstance(value, PackedArray) and not isinstance(value, Bits):
            packed = _replaced(packed, field.name, _narrowed(value, bits, None))
    return packed


def _replaced(packed: Any, name: str, new: Any) -> Any:
    return packed if new is getattr(packed, name) else dataclasses.replace(packed, **{name: new})


def _places(groups: Granularity, shape: tuple[int, ...], mask: np.ndarray | None) -> np.ndarray:
    """The number of each stored value's group, in the order of steps."""
    rows, channels = groups.steps_shape(shape)
    numbers = np.arange(rows * channels, dtype=np.int32).reshape(rows, channels)
    spread = np.broadcast_to(np.asarray(groups.expand(numbers, shape)), shape).reshape(-1)  # type: ignore[arg-type]
    return spread if mask is None else spread[mask]


def _fit_steps(
    p: Quantized, codes: np.ndarray, small: np.ndarray, bits: int, mask: np.ndarray | None
) -> Quantized:
    step = np.asarray(p.step, np.float64)
    zero = np.zeros_like(step) if p.zero is None else np.asarray(p.zero, np.float64)
    place = _places(p.groups, p.shape, mask)
    low = -(1 << (bits - 1)) if p.low < 0 else 0
    x = small.astype(np.float64) + low
    y = (codes.astype(np.float64) + p.low - zero.reshape(-1)[place]) * step.reshape(-1)[place]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, values, step.size) / count

    count = np.maximum(np.bincount(place, minlength=step.size), 1)
    mx, my = mean(x), mean(y)
    variance = mean(np.square(x - mx[place]))
    slope = mean((x - mx[place]) * (y - my[place])) / np.where(variance > 0, variance, 1.0)
    coarse = step.reshape(-1) * (1 << (p.codes.bits - bits))
    slope = np.where((variance > 0) & (slope > 0), slope, coarse).astype(p.step.dtype)
    new = (mx - my / slope).astype(p.step.dtype)
    return dataclasses.replace(
        p, codes=Bits.pack(small, bits), step=slope.reshape(step.shape), zero=new.reshape(step.shape), low=low
    )


def _fit_levels(
    p: Levelled, codes: np.ndarray, small: np.ndarray, bits: int, mask: np.ndarray | None
) -> Levelled:
    levels = np.asarray(p.levels, np.float64)
    used = (
        np.bincount(codes, minlength=levels.size) + 1e-3
    )  # A level that is not used stays among its neighbours.
    owner = np.arange(levels.size) >> (p.codes.bits - bits)
    merged = np.bincount(owner, used * levels) / np.bincount(owner, used)
    # Levels of its own, no longer those of the grid, stored as of a leaf that has such: with scales that are floats.
    scale = np.asarray(p.scales())
    return dataclasses.replace(
        p, codes=Bits.pack(small, bits), levels=merged.astype(np.float32), scale=scale, gain=None
    )


def _recipe(plain: Any, bits: int) -> Any:
    """The recipe with fewer bits wherever it quantizes with more."""
    if isinstance(plain, list):
        return [_recipe(item, bits) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.get("type") == "Quantize" and plain["fields"]["bits"] > bits:
        fields = {**plain["fields"], "bits": bits, "learned": False, "range": "max"}
        fields.pop("discretization", None)  # Steps are those that were fitted, and stay.
        fields |= {"grid": to_plain(Quantile())} if "grid" in fields else {"offset": True}
        return {**plain, "fields": fields}
    return {name: _recipe(item, bits) for name, item in plain.items()}
