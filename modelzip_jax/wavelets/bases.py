"""A basis as plain data: which transform over which axes, and where its sub-bands lie."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax

from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.recipe import recordable
from modelzip_jax.wavelets.block_cosines import dct, idct
from modelzip_jax.wavelets.filters import LIFTING, check_filter
from modelzip_jax.wavelets.multilevel import check_axes, dwt, idwt

__all__ = ["Band", "Basis"]

MAX_SIZE = 1 << 24
MAX_BLOCK = 1 << 12
"""Most samples of a DCT: its matrix has the square of that."""
MAX_PACKET_LEVELS = 8
MAX_BANDS = 1 << 16
MAX_OWN_BANDS = 1 << 12
"""Most sub-bands that have gains, or codes of their own."""
_BAND_BYTES = 1 << 10
KINDS = ("wavelet", "packets", "dct")


class Band(NamedTuple):
    """A box of coefficients of one sub-band.

    frequency: 0 for the coarsest approximation, growing with frequency; what a survey of wavelet coding
    calls k. start, stop: the box, an index an axis.

    >>> import jax.numpy as jnp
    >>> low, high = Basis("wavelet", "haar", 1, (0,)).bands((6,))
    >>> high, jnp.arange(6)[high.slices]
    (Band(frequency=1, start=(3,), stop=(6,)), Array([3, 4, 5], dtype=int32))
    """

    frequency: int
    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """Indexes the coefficients."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))


@recordable
@dataclasses.dataclass(frozen=True)
class Basis:
    """A linear, invertible transform of arrays, coefficients in place and of the array's shape.

    kind: "wavelet", "packets" or "dct". filter: of `FILTERS`; "" for "dct". size: levels, or the block's
    samples for "dct". axes: transformed axes; negative ones count from the last.

    Raises:
      TransformError: an unknown kind or filter, or a size out of range.

    >>> import jax.numpy as jnp
    >>> basis = Basis("wavelet", "haar", 1, (0,))
    >>> basis.synthesis(basis.analysis(jnp.array([1.0, 3.0]))).round(4), basis.bands((2,))[1].frequency
    (Array([1., 3.], dtype=float32), 1)
    """

    kind: str
    filter: str
    size: int
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TransformError(f"a basis is one of {KINDS}, not {self.kind!r}")
        if self.kind != "dct":
            check_filter(self.filter)
        smallest = 1 if self.kind == "dct" else 0
        if (
            isinstance(self.size, bool)
            or not isinstance(self.size, int)
            or not smallest <= self.size < MAX_SIZE
        ):
            what = "block" if self.kind == "dct" else "levels"
            raise TransformError(f"{what} must be an integer of at least {smallest}, not {self.size!r}")
        if not self.axes or not all(isinstance(axis, int) for axis in self.axes):
            raise TransformError(f"axes must be one or more integers, not {self.axes!r}")

    @property
    def orthonormal(self) -> bool:
        """Whether squared errors of coefficients and of weights are equal."""
        return self.filter not in LIFTING

    def __str__(self) -> str:
        name = "" if self.kind == "wavelet" else f"{self.kind} "
        return f"{name}{self.filter or 'block'} {self.size} over {','.join(map(str, self.axes))}"

    def analysis(self, x: jax.Array) -> jax.Array:
        """Weights to coefficients."""
        if self.kind == "dct":
            return dct(x, self.size, self.axes)
        return dwt(x, self.filter, self.size, self.axes, self.kind == "packets")

    def synthesis(self, y: jax.Array) -> jax.Array:
        """Coefficients to weights."""
        if self.kind == "dct":
            return idct(y, self.size, self.axes)
        return idwt(y, self.filter, self.size, self.axes, self.kind == "packets")

    def bands(self, shape: tuple[int, ...]) -> tuple[Band, ...]:
        """All sub-bands of an array of that shape, by growing frequency; together they cover it.

        Bands of equal frequency (the three orientations of a level in 2-D) are neighbours. For packets and
        the DCT a band's frequency is the larger of those along its axes.
        """
        return _bands(self, tuple(shape))

    def work(self, shape: tuple[int, ...], each: bool = False) -> int:
        """Bytes that the transform of an array of that shape needs beside the array: matrices, and lists of bands.

        each: whether something is done with each band by itself, which so many of them do not allow.

        Raises:
          LeafError: an axis that is not there; a block, packets or bands beyond what files may hold.

        >>> Basis("dct", "", 8, (0,)).work((1000,))
        9728
        """
        axes = check_axes(self.axes, len(shape), f"an array of shape {shape}")
        lengths = [shape[axis] for axis in axes]
        if self.kind == "wavelet":
            return _BAND_BYTES * min(self.size, max(lengths).bit_length()) * len(axes) ** 2
        if self.kind == "dct":
            blocks = [min(self.size, n) for n in lengths]
            if max(blocks) > MAX_BLOCK:
                raise LeafError(f"a DCT of {max(blocks)} samples; blocks have at most {MAX_BLOCK}")
            bands, matrices = math.prod(blocks), sum(24 * n * n for n in blocks)
        else:
            depths = [min(self.size, max(n - 1, 0).bit_length()) for n in lengths]
            if max(depths) > MAX_PACKET_LEVELS:
                raise LeafError(f"packets of {max(depths)} levels; they have at most {MAX_PACKET_LEVELS}")
            bands, matrices = (
                math.prod(min(1 << d, max(n, 1)) for d, n in zip(depths, lengths, strict=True)),
                0,
            )
        most = MAX_OWN_BANDS if each else MAX_BANDS
        if bands > most:
            what = " with gains or statistics of their own" if each else ""
            raise LeafError(f"{bands} sub-bands{what}; an array may have {most}")
        return _BAND_BYTES * bands + matrices

    def corner(self, shape: tuple[int, ...], keep: int) -> tuple[int, ...]:
        """The shape of the corner from index 0 on that holds all bands of frequencies below `keep`."""
        kept = [band.stop for band in self.bands(shape) if band.frequency < keep]
        return tuple(max(column) for column in zip(*kept, strict=True)) if kept else tuple(shape)


@functools.lru_cache(maxsize=4096)
def _bands(basis: Basis, shape: tuple[int, ...]) -> tuple[Band, ...]:
    axes = check_axes(basis.axes, len(shape), f"an array of shape {shape}")
    if basis.kind == "wavelet":
        found = _mallat(shape, basis.size, axes)
    else:
        lengths = {axis: _lengths(basis, shape[axis]) for axis in axes}
        found = [Band(0, (0,) * len(shape), shape)]
        for axis in axes:
            found = [piece for band in found for piece in _sliced(band, axis, lengths[axis])]
    return tuple(sorted((band for band in found if _size(band)), key=lambda band: band.frequency))


def _size(band: Band) -> int:
    return math.prod(b - a for a, b in zip(band.start, band.stop, strict=True))


def _mallat(shape: tuple[int, ...], levels: int, axes: tuple[int, ...]) -> list[Band]:
    """Each level's corner, cut once along every axis that is longer than one."""
    zero = (0,) * len(shape)
    corner, cuts = shape, []
    for _ in range(levels):
        live = [axis for axis in axes if corner[axis] > 1]
        if not live:
            break
        cuts.append((corner, live))
        corner = tuple(-(-n // 2) if axis in live else n for axis, n in enumerate(corner))
    found = [Band(0, zero, corner)]
    for frequency, (outer, live) in enumerate(reversed(cuts), 1):
        pieces = [Band(frequency, zero, outer)]
        for axis in live:
            half = -(-outer[axis] // 2)
            pieces = [p for band in pieces for p in _parts(band, axis, [half, outer[axis] - half])]
        found += pieces[1:]  # The first one is the corner that the next level has split.
    return found


def _parts(band: Band, axis: int, lengths: list[int]) -> list[Band]:
    pieces, at = [], 0
    for length in lengths:
        start, stop = list(band.start), list(band.stop)
        start[axis], stop[axis] = at, at + length
        pieces.append(Band(band.frequency, tuple(start), tuple(stop)))
        at += length
    return pieces


def _sliced(band: Band, axis: int, lengths: list[int]) -> list[Band]:
    return [
        piece._replace(frequency=max(band.frequency, k))
        for k, piece in enumerate(_parts(band, axis, lengths))
    ]


def _lengths(basis: Basis, n: int) -> list[int]:
    """Coefficients of each frequency along one axis."""
    if basis.kind == "dct":
        blocks, rest = divmod(n, basis.size)
        return [blocks + (k < rest) for k in range(min(basis.size, n))]
    return _packet_lengths(n, basis.size, False)


def _packet_lengths(n: int, levels: int, mirrored: bool) -> list[int]:
    if levels == 0 or n < 2:
        return [n]
    low = _packet_lengths(n - n // 2, levels - 1, mirrored)
    high = _packet_lengths(n // 2, levels - 1, not mirrored)
    return high + low if mirrored else low + high
