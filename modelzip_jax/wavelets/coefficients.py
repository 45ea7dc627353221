"""The stored form of a leaf whose latents are wavelet coefficients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.coding import histograms
from modelzip_jax.coding.contexts import element_bits
from modelzip_jax.coding.entropy import cheapest_cuts, coded_bits
from modelzip_jax.coding.joined import Joined
from modelzip_jax.errors import ModelzipError
from modelzip_jax.packed import Bits, Elementwise, PackedArray, packed_kind, static
from modelzip_jax.wavelets.bases import MAX_OWN_BANDS, Band, Basis
from modelzip_jax.wavelets.shapes import FEW_BANDS, kept_bands, synthesize

__all__ = ["Coefficients", "spectral_parts"]


@packed_kind("coefficients")
class Coefficients(PackedArray):
    """The weights whose coefficients `inner` holds: scaled by their band's gain, padded, synthesized, reshaped.

    inner: the coefficients, of the kept corner's shape or, if all are kept, of the leaf's. codes: its elements
    by sub-bands instead of in C order, of growing frequency, then C order within each box, so that every
    part of the spectrum has its own statistics; None where one histogram costs less. gains: float32, see
    `wavelet`; None for none. shape, dtype: of the unpacked values. view: the shape that is transformed.
    corner: of the kept coefficients. kind, filter, levels, axes: the basis.
    """

    inner: PackedArray
    codes: PackedArray | None
    gains: jax.Array | None
    shape: tuple[int, ...] = static()
    dtype: str = static()
    view: tuple[int, ...] = static()
    corner: tuple[int, ...] = static()
    kind: str = static()
    filter: str = static()
    levels: int = static()
    axes: tuple[int, ...] = static()

    @property
    def basis(self) -> Basis:
        """What the coefficients are coefficients of."""
        return Basis(self.kind, self.filter, self.levels, self.axes)

    def with_inner(self, inner: PackedArray) -> Coefficients:
        """The same around another packed array, sorted by sub-bands where that makes the file smaller."""
        codes: PackedArray | None = None
        boxes = kept_bands(self.basis, self.view, self.corner)
        few = len(boxes) <= MAX_OWN_BANDS
        if (
            few
            and isinstance(inner, Elementwise)
            and isinstance(bits := getattr(inner, inner.element_field), Bits)
        ):
            elements = inner.host_elements()
            inside = element_bits(elements.reshape(inner.shape))
            parts, _ = spectral_parts(elements.reshape(self.corner), boxes, inside)
            codes = Joined.of([Bits.pack(part, bits.bits) for part in parts]) if parts else None
        if codes is not None:
            inner = inner.with_elements(np.zeros(0, np.uint8))  # type: ignore[attr-defined]
        return Coefficients(
            inner, codes, self.gains, self.shape, self.dtype, self.view, self.corner, self.kind, self.filter,
            self.levels, self.axes,
        )  # fmt: skip

    def _elements(self) -> jax.Array:
        """The sorted codes, in C order again."""
        codes = self.codes.unpack()  # type: ignore[union-attr]
        placed, at = jnp.zeros(self.corner, codes.dtype), 0
        bands = kept_bands(self.basis, self.view, self.corner)
        if len(bands) > FEW_BANDS:
            places = np.arange(placed.size, dtype=np.int32 if placed.size < 1 << 31 else np.int64)
            places = places.reshape(self.corner)
            order = np.concatenate([places[band.slices].reshape(-1) for band in bands])
            return placed.reshape(-1).at[order].set(codes, unique_indices=True)
        for band in bands:
            box = placed[band.slices]
            placed = placed.at[band.slices].set(codes[at : at + box.size].reshape(box.shape))
            at += box.size
        return placed.reshape(-1)

    def gathered(self) -> PackedArray:
        """`inner` with its elements in C order (on the host)."""
        if self.codes is None:
            return self.inner
        return self.inner.with_elements(self._elements())  # type: ignore[attr-defined]

    def unpack(self) -> jax.Array:
        inner: Any = self.inner
        values = inner.unpack() if self.codes is None else inner.assemble(self._elements())
        weights = synthesize(values, self.basis, self.view, self.corner, self.gains, self.shape)
        return weights.astype(self.dtype)

    @classmethod
    def claims(cls, fields: Mapping[str, Any]) -> int:
        view, axes, size = fields["view"], fields["axes"], fields["levels"]
        if not all(isinstance(x, tuple) and all(type(n) is int for n in x) for x in (view, axes)):
            raise ValueError(f"coefficients of the view {view} along {axes}")
        if math.prod(view) != math.prod(fields["shape"]) or any(n < 0 for n in view):
            raise ValueError(f"the view {view} of a leaf of {fields['shape']}")
        each = fields["codes"] is not None or fields["gains"] is not None
        basis = Basis(fields["kind"], fields["filter"], size, axes)
        return 8 * math.prod(view) + (basis.work(view, each) if view else 0)

    def check(self) -> None:
        super().check()
        kept = math.prod(self.corner)
        try:
            bands = self.basis.bands(self.view) if self.view else ()
        except ModelzipError as error:
            raise ValueError(str(error)) from error
        fits = bool(bands) or not self.view or math.prod(self.view) == 0
        fits = fits and math.prod(self.view) == math.prod(self.shape) and len(self.corner) == len(self.view)
        fits = fits and all(a <= b for a, b in zip(self.corner, self.view, strict=True))
        fits = fits and math.prod(self.inner.shape) == kept
        fits = fits and (
            self.codes is None or (isinstance(self.inner, Elementwise) and self.codes.size == kept)
        )
        fits = fits and (self.gains is None or (self.gains.ndim == 1 and self.gains.size > 0))
        if not fits:
            raise ValueError(f"coefficients {self.corner} of {self.inner.shape} for a leaf of {self.shape}")


def spectral_parts(codes: np.ndarray, boxes: Sequence[Band], inside: float) -> tuple[list[np.ndarray], float]:
    """The codes by growing frequency, in as many parts as pay, and the bits of what is cheaper.

    inside: bits of the codes in C order. Where these are no more, there are no parts.
    """
    groups = [list(group) for _, group in itertools.groupby(boxes, key=lambda band: band.frequency)]
    if len(groups) < 2:  # of an empty leaf none
        return [], inside
    counts = np.stack([sum(histograms.count(codes[band.slices]) for band in group) for group in groups])
    cuts = cheapest_cuts(counts)
    bits = float(coded_bits(np.stack([counts[a:b].sum(0) for a, b in cuts])).sum())
    if len(cuts) < 2 or bits >= inside:
        return [], inside
    parts = [itertools.chain.from_iterable(groups[a:b]) for a, b in cuts]
    return [np.concatenate([codes[band.slices].reshape(-1) for band in part]) for part in parts], bits
