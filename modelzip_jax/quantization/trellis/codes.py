"""The stored form of integers that a trellis allows: half of each, and the states tell the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.packed import Bits, PackedArray, packed_kind, static
from modelzip_jax.quantization.integers import LARGEST
from modelzip_jax.quantization.trellis.lines import Lines
from modelzip_jax.quantization.trellis.machine import POLYNOMIALS, following, index_of, integer_of

__all__ = ["LONGEST", "TrellisCodes"]

LONGEST = 1 << 10
"""The longest run that a file may have: each number of a run takes a step."""
_LOW = -127
_EVEN, _ODD = 255, 254
"""Codes of indices that are told apart: `code + _LOW` has their parity, by which states follow."""


@functools.partial(jax.jit, static_argnums=1)
def _integers(index: jax.Array, along: Lines) -> jax.Array:
    """What indices along lines stand for, 1-D as they are."""
    room = along.runs * along.run
    cube = jnp.pad(index.reshape(along.cube), ((0, 0), (0, room - along.length), (0, 0)))
    turned = jnp.moveaxis(cube.reshape(along.before, along.runs, along.run, along.behind), 2, 0)

    def step(state: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        return following(state, k & 1, along.states), integer_of(k, state)

    found = jax.lax.scan(step, jnp.zeros(turned.shape[1:], jnp.int32), turned)[1]
    return jnp.moveaxis(found, 0, 2).reshape(along.before, room, along.behind)[:, : along.length].reshape(-1)


@packed_kind("trellis")
class TrellisCodes(PackedArray):
    """`count` integers along the lines of a leaf: each `2 k - sign(k)` in odd states, `2 k` in even ones.

    codes: `k - low`, C order; where there are wide ones, the two last codes stand for the next of these, 255 for an
    even one and 254 for an odd one. wide: int32 indices k, in their order. lines: `(before, length, behind)`, the
    leaf's shape with the axis in the middle along which states follow each other. run: numbers after which the state
    is 0 again. states: of `machine.POLYNOMIALS`.

    >>> lines = Lines(1, 4, 1, 128, 4)
    >>> packed = TrellisCodes.pack(np.array([2, 1, 3, 0]), lines)  # Indices 1, 1, 2, 0 in states 0, 1, 3, 2.
    >>> packed.unpack(), packed.codes.bits
    (Array([2, 1, 3, 0], dtype=int32), 2)
    """

    since = 6

    codes: PackedArray
    wide: jax.Array
    low: int = static()
    lines: tuple[int, int, int] = static()
    run: int = static()
    states: int = static()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (math.prod(self.lines),)

    @property
    def along(self) -> Lines:
        """The lines and what the trellis is."""
        return Lines(*self.lines, self.run, self.states)

    @staticmethod
    def pack(values: Any, lines: Lines) -> TrellisCodes:
        """Packs integers that the trellis allows, C order, on the host."""
        index = index_of(np.asarray(values).reshape(-1).astype(np.int32, copy=False))
        low, high = (int(index.min()), int(index.max())) if index.size else (0, 0)
        static_ = (lines.cube, lines.run, lines.states)
        if high - low < 256:
            bits = max((high - low).bit_length(), 1)
            codes = Bits.pack((index - low).astype(np.uint8), bits)
            return TrellisCodes(codes, np.zeros(0, np.int32), low, *static_)
        wide = (index < _LOW) | (index >= _ODD + _LOW)
        codes = (index - _LOW).astype(np.uint8)
        codes[wide] = np.where(index[wide] & 1, _ODD, _EVEN)
        return TrellisCodes(Bits.pack(codes, 8), index[wide], _LOW, *static_)

    def unpack(self) -> jax.Array:
        """The integers: int32 `(count,)`."""
        codes = self.codes.unpack().astype(jnp.int32)
        index = codes + self.low
        if self.wide.shape[0]:
            escaped = codes >= _ODD
            index = jnp.where(
                escaped, jnp.asarray(self.wide)[jnp.cumsum(escaped, dtype=jnp.int32) - 1], index
            )
        return _integers(index, self.along)

    def unpack_host(self) -> np.ndarray:
        codes = self.codes.unpack_host()
        index = codes.astype(np.int32) + np.int32(self.low)  # type: ignore[union-attr]
        if self.wide.shape[0]:
            index[codes >= _ODD] = np.asarray(self.wide)  # type: ignore[operator]
        cube, along = index.reshape(self.lines), self.along
        state = np.zeros((along.before, along.runs, along.behind), np.int8)
        for reach, at in along.positions():
            k, now = cube[at], state[:, :reach]
            odd = (k & 1).astype(np.int8)
            cube[at] = integer_of(k, now)
            state[:, :reach] = following(now, odd, self.states)
        return cube.reshape(-1)

    def quantizers(self) -> np.ndarray:
        """Which quantizer each code is of, 0 or 1: uint8 `(count,)`, C order."""
        odd = (self.codes.unpack_host() + np.uint8(self.low % 2)).reshape(self.lines) & 1  # type: ignore[operator]
        found, along = np.empty(self.lines, np.uint8), self.along
        state = np.zeros((along.before, along.runs, along.behind), np.int8)
        for reach, at in along.positions():
            now = state[:, :reach]
            found[at] = now & 1
            state[:, :reach] = following(now, odd[at].view(np.int8), self.states)
        return found.reshape(-1)

    @classmethod
    def claims(cls, fields: Mapping[str, Any]) -> int:
        lines, run, states = fields["lines"], fields["run"], fields["states"]
        fits = isinstance(lines, tuple) and len(lines) == 3 and all(type(n) is int and n >= 0 for n in lines)
        if not fits or states not in POLYNOMIALS or type(run) is not int or not 0 < run <= LONGEST:
            raise ValueError(f"a trellis of {states!r:.20} states, runs of {run!r:.20}, along {lines!r:.80}")
        # Codes, integers, classes and states, and what tells their order.
        return 24 * math.prod(lines)

    def check(self) -> None:
        super().check()
        wide, count = np.asarray(self.wide), self.size
        if not isinstance(self.codes, Bits) or wide.dtype != np.int32 or wide.ndim != 1:
            raise ValueError(f"a trellis of {type(self.codes).__name__} and {wide.dtype}{list(wide.shape)}")
        if self.codes.count != count:
            raise ValueError(f"{self.codes.count} indices along {self.lines}")
        if type(self.low) is not int or max(abs(self.low), int(np.abs(wide).max(initial=0))) > LARGEST // 2:
            raise ValueError(f"indices from {self.low!r}, or apart, beyond {LARGEST // 2}")
        if wide.size:
            codes = self.codes.unpack_host()
            held = codes[codes >= _ODD]
            if (
                self.codes.bits != 8
                or self.low != _LOW
                or held.size != wide.size
                or ((held ^ wide) & 1 == 0).any()
            ):
                raise ValueError(f"{wide.size} wide indices for other places")
