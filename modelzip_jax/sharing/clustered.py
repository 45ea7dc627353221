"""The stored forms of a clustered leaf: indices of exactly ceil(log2 k) bits, and their codebook."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.packed import Bits, Elementwise, PackedArray, packed_kind, static
from modelzip_jax.sharing import vectors
from modelzip_jax.stacking import stacked, unstacked

__all__ = ["Clustered", "LayerClustered", "LayerVectors", "VectorClustered", "index_bits"]


def index_bits(k: int) -> int:
    """Bits of an index into k entries, at least 1.

    >>> index_bits(16), index_bits(17), index_bits(1)
    (4, 5, 1)
    """
    return max((k - 1).bit_length(), 1)


def _check(codes: Bits, codebook: jax.Array, shape: tuple[int, ...]) -> None:
    entries = codebook.shape[0] if codebook.ndim and codebook.shape[0] else 0
    if codebook.shape != (entries, *shape) or not 1 <= entries <= 256 or codes.bits != index_bits(entries):
        raise ValueError(f"a codebook of {codebook.shape} for codes of {codes.bits} bits")
    if codes.count and int(codes.unpack_host().max()) >= entries:
        raise ValueError(f"a code beyond the {entries} entries of its codebook")


@packed_kind("clustered")
class Clustered(Elementwise):
    """`codebook[code]`.

    codes: C order. codebook: `(k,)`, the dtype of the latents. zero: whether entry 0 is 0 and stays so in
    training. dtype: of the unpacked values.
    """

    element_field = "codes"

    codes: Bits
    codebook: jax.Array
    zero: bool = static()
    shape: tuple[int, ...] = static()
    dtype: str = static()

    def elements(self) -> jax.Array:
        return self.codes.unpack()

    def with_elements(self, elements: jax.Array) -> Clustered:
        return Clustered(
            Bits.pack(elements, self.codes.bits), self.codebook, self.zero, self.shape, self.dtype
        )

    def check(self) -> None:
        super().check()
        _check(self.codes, self.codebook, ())

    def assemble(self, elements: jax.Array) -> jax.Array:
        return jnp.asarray(self.codebook)[elements].reshape(self.shape).astype(self.dtype)

    def assemble_host(self, elements: np.ndarray) -> np.ndarray:
        return np.asarray(self.codebook)[elements].reshape(self.shape).astype(jnp.dtype(self.dtype))


@packed_kind("vectors")
class VectorClustered(PackedArray):
    """`codebook[code]`, each entry a block of consecutive values along an axis.

    codes: one a block, in the order of `vectors.to_blocks`. codebook: `(k, block)`.
    """

    codes: Bits
    codebook: jax.Array
    axis: int = static()
    shape: tuple[int, ...] = static()
    dtype: str = static()

    def check(self) -> None:
        super().check()
        _check(self.codes, self.codebook, self.codebook.shape[1:2])
        if (
            self.codebook.ndim != 2
            or vectors.count_blocks(self.shape, self.codebook.shape[1]) != self.codes.count
        ):
            raise ValueError(f"{self.codes.count} blocks of {self.codebook.shape[1:]} for {self.shape}")

    def unpack(self) -> jax.Array:
        blocks = jnp.asarray(self.codebook)[self.codes.unpack()]
        return vectors.from_blocks(blocks, self.axis, self.shape).astype(self.dtype)


@packed_kind("layers")
class LayerClustered(Elementwise):
    """`codebook[layer, code]`: a codebook for each layer of a stacked leaf.

    codes: C order. codebook: `(layers, k)`. axes: those that count layers, whose C order the codebooks are in.
    """

    element_field = "codes"

    codes: Bits
    codebook: jax.Array
    zero: bool = static()
    axes: tuple[int, ...] = static()
    shape: tuple[int, ...] = static()
    dtype: str = static()

    def elements(self) -> jax.Array:
        return self.codes.unpack()

    def with_elements(self, elements: jax.Array) -> LayerClustered:
        codes = Bits.pack(elements, self.codes.bits)
        return LayerClustered(codes, self.codebook, self.zero, self.axes, self.shape, self.dtype)

    def check(self) -> None:
        super().check()
        _check_layers(self.codebook, self.axes, self.shape, 2)
        _check(self.codes, self.codebook[0], ())

    def assemble(self, elements: jax.Array) -> jax.Array:
        codes = stacked(elements.reshape(self.shape), self.axes)
        values = jax.vmap(lambda book, code: book[code])(jnp.asarray(self.codebook), codes)
        return unstacked(values, self.axes, self.shape).astype(self.dtype)


@packed_kind("layer_vectors")
class LayerVectors(PackedArray):
    """`VectorClustered` with a codebook for each layer of a stacked leaf.

    codes: layer by layer. codebook: `(layers, k, block)`. axis: of a layer's tensor.
    """

    codes: Bits
    codebook: jax.Array
    axis: int = static()
    axes: tuple[int, ...] = static()
    shape: tuple[int, ...] = static()
    dtype: str = static()

    def _tensor(self) -> tuple[int, ...]:
        return tuple(n for axis, n in enumerate(self.shape) if axis not in self.axes)

    def check(self) -> None:
        super().check()
        _check_layers(self.codebook, self.axes, self.shape, 3)
        _check(self.codes, self.codebook[0], self.codebook.shape[2:])
        blocks = len(self.codebook) * vectors.count_blocks(self._tensor(), self.codebook.shape[2])
        if blocks != self.codes.count:
            raise ValueError(f"{self.codes.count} blocks of {self.codebook.shape[2:]} for {self.shape}")

    def unpack(self) -> jax.Array:
        codes = self.codes.unpack().reshape(len(self.codebook), -1)
        blocks = jax.vmap(lambda book, code: book[code])(jnp.asarray(self.codebook), codes)
        values = jax.vmap(lambda rows: vectors.from_blocks(rows, self.axis, self._tensor()))(blocks)
        return unstacked(values, self.axes, self.shape).astype(self.dtype)


def _check_layers(codebook: jax.Array, axes: tuple[int, ...], shape: tuple[int, ...], rank: int) -> None:
    inside = all(isinstance(axis, int) and 0 <= axis < len(shape) for axis in axes)
    layers = math.prod(shape[axis] for axis in axes) if inside else 0
    if len(set(axes)) != len(axes) or codebook.ndim != rank or not 1 <= layers == len(codebook):
        raise ValueError(f"codebooks of {codebook.shape} for layers along {axes} of {shape}")
