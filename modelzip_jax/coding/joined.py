"""Integers in several parts, each with statistics of its own in a file."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from modelzip_jax.packed import PackedArray, packed_kind

__all__ = ["Joined"]


@packed_kind("joined")
class Joined(PackedArray):
    """Integers in two parts, one after the other, each with statistics of its own in a file.

    first: `Bits`. rest: `Bits`, or `Joined` again.

    >>> from modelzip_jax.packed import Bits
    >>> joined = Joined.of([Bits.pack([3], 2), Bits.pack([0, 1], 2), Bits.pack([2], 2)])
    >>> joined.unpack().tolist(), [part.count for part in Joined.parts(joined)]
    ([3, 0, 1, 2], [1, 2, 1])
    """

    first: PackedArray
    rest: PackedArray

    @staticmethod
    def of(parts: Sequence[PackedArray]) -> PackedArray:
        """The parts one after the other; a single one as it is."""
        joined = parts[-1]
        for part in reversed(parts[:-1]):
            joined = Joined(part, joined)
        return joined

    @staticmethod
    def parts(packed: PackedArray) -> list[PackedArray]:
        """The inverse of `of`."""
        found = []
        while isinstance(packed, Joined):
            found.append(packed.first)
            packed = packed.rest
        return [*found, packed]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.first.size + self.rest.size,)

    def unpack(self) -> jax.Array:
        return jnp.concatenate([self.first.unpack(), self.rest.unpack()])
