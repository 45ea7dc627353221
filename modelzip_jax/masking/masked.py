"""The stored form of a pruned leaf: a mask bit a weight, and the kept elements only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.concrete import host_view, placed
from modelzip_jax.packed import Bits, Elementwise, PackedArray, packed_kind, static

__all__ = ["Masked"]


@packed_kind("masked")
class Masked(PackedArray):
    """`inner` where the mask is set, exact zeros elsewhere.

    mask: one bit a weight in C order. inner: stores only the kept elements if it is `Elementwise`,
    all of its own otherwise. dtype: of the unpacked values.
    """

    mask_field = "mask"

    mask: Bits
    inner: PackedArray
    shape: tuple[int, ...] = static()
    dtype: str = static()

    @staticmethod
    def of(mask: np.ndarray, inner: PackedArray, dtype: str) -> Masked:
        """Packs a boolean mask of the leaf's shape around the leaf's packed values (on the host)."""
        flat = np.asarray(mask).reshape(-1)
        if isinstance(inner, Elementwise):
            inner = inner.with_elements(inner.host_elements()[flat])
        return Masked(Bits.pack(flat, 1), inner, tuple(np.shape(mask)), dtype)

    @property
    def kept(self) -> int:
        """Number of weights that the mask keeps."""
        return int(np.sum(np.bitwise_count(np.asarray(self.mask.words)), dtype=np.int64))

    def positions(self) -> jax.Array:
        """The boolean mask, of the leaf's shape."""
        if host_view(self.mask.words) is not None:
            return placed(self._host_positions().reshape(self.shape))
        return self.mask.unpack().astype(bool).reshape(self.shape)

    def _host_positions(self) -> np.ndarray:
        return self.mask.unpack_host().view(bool)

    def _spread(self, inner: Elementwise) -> jax.Array:
        """An element for every weight; those left out are zero symbols."""
        kept = inner.elements()
        if kept.size == 0:
            return jnp.zeros(self.size, kept.dtype)
        # A weight's place among the kept ones: a running sum over words, not weights, then a count of
        # the set bits below its own. Running sums are slow on every backend.
        words = jnp.asarray(self.mask.words)[0]
        counts = jax.lax.population_count(words).astype(jnp.int32)
        starts = jnp.cumsum(counts, dtype=jnp.int32) - counts
        bit = (jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32))[None]
        below = jax.lax.population_count(words[:, None] & (bit - 1)).astype(jnp.int32)
        place = jnp.minimum(starts[:, None] + below, kept.size - 1)
        spread = jnp.where((words[:, None] & bit) != 0, kept[place], jnp.zeros((), kept.dtype))
        return spread.reshape(-1)[: self.size]

    def expanded(self) -> PackedArray:
        """`inner` with an element for every weight (on the host)."""
        if not isinstance(self.inner, Elementwise):
            return self.inner
        kept = self.inner.host_elements()
        # A damaged file may hold more or fewer elements than its mask keeps.
        if kept.size != self.kept:
            return self.inner.with_elements(self._spread(self.inner))
        return self.inner.with_elements(self._host_spread(kept))  # type: ignore[arg-type]

    def _host_spread(self, kept: np.ndarray) -> np.ndarray:
        spread = np.zeros(self.size, kept.dtype)
        spread[self._host_positions()] = kept
        return spread

    def unpack(self) -> jax.Array:
        if isinstance(self.inner, Elementwise):
            values = self.inner.assemble(self._spread(self.inner))
        else:
            values = self.inner.unpack()
        return jnp.where(self.positions(), values, 0).astype(self.dtype)

    def unpack_host(self) -> np.ndarray | None:
        mask = self._host_positions()
        if isinstance(self.inner, Elementwise):
            kept = self.inner.host_elements()
            values = self.inner.assemble_host(self._host_spread(kept)) if kept.size == self.kept else None
        else:
            values = self.inner.unpack_host()
        if values is None:
            return None
        values = np.array(values, jnp.dtype(self.dtype))
        values[~mask.reshape(self.shape)] = 0
        return values
