"""Integers without a range: most of them in a few bits each, the rare large ones apart."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.packed import Bits, PackedArray, packed_kind, static

__all__ = ["LARGEST", "Integers"]

LARGEST = 1 << 22
"""The largest magnitude: float32 holds it, and its product with a step, without loss of the integer."""
_HALF = 127


@packed_kind("integers")
class Integers(PackedArray):
    """`count` integers: `low + code`, but where there are wide ones the last code stands for the next of these.

    codes: 1 to 8 bits each. wide: int32 `(k,)`, in their order, k = 0 for most leaves.

    >>> packed = Integers.pack(np.array([0, -1, 1000, 1]))
    >>> packed.unpack(), packed.codes.bits, packed.wide
    (Array([   0,   -1, 1000,    1], dtype=int32), 8, array([1000], dtype=int32))
    """

    since = 5

    codes: Bits
    wide: jax.Array
    low: int = static()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.codes.count,)

    @staticmethod
    def pack(values: Any) -> Integers:
        """Packs a 1-D array of integers, on the host: in the bits of their range, or in eight and the others apart."""
        values = np.asarray(values).astype(np.int32, copy=False)
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if high - low < 256:
            bits = max((high - low).bit_length(), 1)
            # Modulo 256, in which the differences are small enough, rather than in four times the memory.
            return Integers(
                Bits.pack(values.astype(np.uint8) - np.uint8(low % 256), bits), np.zeros(0, np.int32), low
            )
        wide = (values < -_HALF) | (values > _HALF)
        codes = values.astype(np.uint8) + np.uint8(_HALF)
        codes[wide] = 255
        return Integers(Bits.pack(codes, 8), values[wide], -_HALF)

    @property
    def _escape(self) -> int:
        return (1 << self.codes.bits) - 1

    def unpack(self) -> jax.Array:
        """The integers: int32 `(count,)`."""
        codes = self.codes.unpack().astype(jnp.int32)
        if self.wide.shape[0] == 0:
            return codes + self.low
        escaped = codes == self._escape
        place = jnp.cumsum(escaped, dtype=jnp.int32) - 1
        return jnp.where(escaped, jnp.asarray(self.wide)[place], codes + self.low)

    def unpack_host(self) -> np.ndarray:
        codes = self.codes.unpack_host()
        values = codes.astype(np.int32) + np.int32(self.low)
        if self.wide.shape[0]:
            values[codes == self._escape] = np.asarray(self.wide)
        return values

    def check(self) -> None:
        super().check()
        wide = np.asarray(self.wide)
        if not isinstance(self.codes, Bits) or wide.dtype != np.int32 or wide.ndim != 1:
            raise ValueError(f"integers of {type(self.codes).__name__} and {wide.dtype}{list(wide.shape)}")
        if type(self.low) is not int or max(abs(self.low), int(np.abs(wide).max(initial=0))) > LARGEST:
            raise ValueError(f"integers from {self.low!r}, or apart, beyond {LARGEST}")
        if wide.size and np.count_nonzero(self.codes.unpack_host() == self._escape) != wide.size:
            raise ValueError(f"{wide.size} wide integers for another number of places")
