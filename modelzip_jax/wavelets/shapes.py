"""Cropping, padding and scaling of coefficients."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from modelzip_jax.errors import LeafError
from modelzip_jax.meshes import spec_of, under_any_mesh
from modelzip_jax.wavelets.bases import Band, Basis

__all__ = ["FEW_BANDS", "crop", "kept_bands", "scale", "synthesize", "viewed"]


FEW_BANDS = 1 << 8
"""More are taken together: a program with an operation for each would take seconds to trace."""


def crop(y: jax.Array, corner: tuple[int, ...]) -> jax.Array:
    """The corner from index 0 on."""
    return y if y.shape == corner else y[tuple(slice(n) for n in corner)]


def kept_bands(basis: Basis, view: tuple[int, ...], corner: tuple[int, ...]) -> list[Band]:
    """The sub-bands within the kept corner; a scalar has none."""
    found = basis.bands(view) if view else ()
    return [b for b in found if all(s < c for s, c in zip(b.start, corner, strict=True))]


def synthesize(
    y: jax.Array, basis: Basis, view: tuple[int, ...], corner: tuple[int, ...], gains: jax.Array | None,
    shape: tuple[int, ...],
) -> jax.Array:  # fmt: skip
    """Latents to weights of `shape`: scaled, padded with zeros behind the corner up to `view`, synthesized."""
    if not view:  # A scalar has no neighbours.
        return y.reshape(shape)

    def synthesis(y: jax.Array) -> jax.Array:
        y = scale(y.reshape(corner), gains, kept_bands(basis, view, corner))
        if corner != view:
            y = jnp.pad(y, [(0, n - k) for n, k in zip(view, corner, strict=True)])
        return basis.synthesis(y).reshape(shape)

    return under_any_mesh(synthesis, (y,), spec_of(y) if y.shape == shape else PartitionSpec())


def scale(y: jax.Array, gains: jax.Array | None, bands: list[Band]) -> jax.Array:
    """Each band times the gain of its frequency; the last gain holds for all higher ones."""
    if gains is None:
        return y
    if len(bands) > FEW_BANDS:
        frequencies = np.zeros(y.shape, np.uint16)
        for band in bands:
            frequencies[band.slices] = min(band.frequency, len(gains) - 1)
        return y * jnp.asarray(gains).astype(y.dtype)[frequencies]
    factors = jnp.ones(y.shape, y.dtype)
    for band in bands:
        factors = factors.at[band.slices].set(gains[min(band.frequency, len(gains) - 1)].astype(y.dtype))
    return y * factors


def viewed(shape: tuple[int, ...], view: tuple[int, ...], name: str) -> tuple[int, ...]:
    """`view` with its -1 resolved for a leaf of `shape`; the shape itself for an empty view.

    Raises:
      LeafError: the leaf cannot be reshaped so.

    >>> viewed((784, 300), (28, 28, -1), "kernel")
    (28, 28, 300)
    """
    if not view:
        return shape
    size, known = math.prod(shape), math.prod(n for n in view if n != -1)
    if view.count(-1) == 1 and known and size % known == 0:
        return tuple(size // known if n == -1 else n for n in view)
    if view.count(-1) or known != size:
        raise LeafError(f"leaf {name!r} of shape {shape} cannot be viewed as {view}")
    return view
