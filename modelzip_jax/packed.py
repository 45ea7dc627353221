"""Packed arrays: the stored form of a leaf, in device memory and in the file.

A packed array is a pytree of small arrays with static shape information. It nests as its
transforms were chained: `Masked(Quantized(...))`. Each kind lives beside its transform and is
registered under a tag, which the file records.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.latents import latent

__all__ = [
    "Bits",
    "Dense",
    "Elementwise",
    "PackedArray",
    "is_packed",
    "kinds",
    "narrowed",
    "packed_kind",
    "static",
    "widened",
]

Kind = TypeVar("Kind", bound=type)

kinds: dict[str, type[PackedArray]] = {}

_BLOCK = 1 << 14


def static(**options: Any) -> Any:
    """A dataclass field that belongs to a packed array's structure, not to its arrays.

    >>> [field.name for field in dataclasses.fields(Bits) if field.metadata.get("static")]
    ['bits', 'count']
    """
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static,))
def packed_kind(tag: str) -> Callable[[Kind], Kind]:
    """Registers a kind of packed array under the tag that files store.

    The class becomes a frozen dataclass and a pytree node. Fields made with `static` are its
    structure (ints, strings, tuples); all others are arrays or packed arrays.

    >>> @packed_kind("example: one value")
    ... class Constant(PackedArray):
    ...     value: jax.Array
    ...     shape: tuple[int, ...] = static()
    ...
    ...     def unpack(self):
    ...         return jnp.broadcast_to(self.value, self.shape)
    >>> packed = Constant(jnp.float32(2.0), (3,))
    >>> packed.unpack(), packed.nbytes, jax.tree.leaves(packed)
    (Array([2., 2., 2.], dtype=float32), 4, [Array(2., dtype=float32)])
    """

    def register(cls: Kind) -> Kind:
        if tag in kinds and kinds[tag].__qualname__ != cls.__qualname__:
            raise TransformError(f"the packed kind {tag!r} is registered already, by {kinds[tag]}")
        cls = jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))
        cls.tag = tag  # type: ignore[attr-defined]
        kinds[tag] = cls
        return cls

    return register


class PackedArray:
    """The stored form of one leaf. Subclasses have a static `shape` and define `unpack`.

    mask_field: the name of the field, if any, that holds a mask of the leaf, 1-bit `Bits`. The file
    stores it in whichever form is smallest. since: the version of the file format that has the kind.

    >>> packed = Dense(jnp.ones((2, 3)), (2, 3))
    >>> packed.tag, packed.size, packed.nbytes, packed.unpack().shape
    ('dense', 6, 24, (2, 3))
    """

    tag: ClassVar[str]
    mask_field: ClassVar[str | None] = None
    since: ClassVar[int] = 1
    shape: tuple[int, ...]

    def unpack(self) -> jax.Array:
        """The values, of `self.shape`: what the network computes with. Jittable."""
        raise TypeError(f"{type(self).__name__} defines no unpack()")

    def unpack_host(self) -> np.ndarray | None:
        """The same as a NumPy array, bit for bit, without compiling anything; None if this kind defines none."""
        return None

    @classmethod
    def claims(cls, fields: Mapping[str, Any]) -> int:
        """Bytes that `unpack` needs beside the arrays and the unpacked values, by the fields that a file states.

        Asked before anything is made of the file: static fields are as they will be, arrays and packed arrays as their
        description in the header, None where there is none. Raises ValueError for fields out of bounds.
        """
        return 0

    def check(self) -> None:
        """Raises ValueError if the fields of what a file holds do not fit together.

        Override it where `unpack` would make an intermediate much larger than the fields and `shape`.
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if isinstance(inner := getattr(self, field.name), PackedArray):
                inner.check()

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """How treescope shows it in notebooks: how it is stored and how large it is, and its fields on a click."""
        from modelzip_jax.evaluation.notebook_views import treescope_of

        return treescope_of(self, path, subtree_renderer)

    @property
    def size(self) -> int:
        """Number of values, stored or implied."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes in memory, side information included."""
        return trees.nbytes(self)


class Elementwise(PackedArray):
    """A packed array with one stored element a value, so that a mask can leave some out.

    element_field: the name of the field that stores the elements.

    >>> packed = Dense(jnp.array([[1.0, 0.0], [0.0, 2.0]]), (2, 2))
    >>> kept = packed.with_elements(packed.elements()[jnp.array([0, 3])])
    >>> kept.elements(), kept.shape
    (Array([1., 2.], dtype=float32), (2, 2))
    """

    element_field: ClassVar[str]

    def elements(self) -> jax.Array:
        """The stored elements, 1-D, in C order: all of them, or the kept ones after `compact`."""
        raise TypeError(f"{type(self).__name__} defines no elements()")

    def host_elements(self) -> np.ndarray:
        """The stored elements as a NumPy array, without compiling anything."""
        held = getattr(self, self.element_field)
        if isinstance(held, PackedArray):
            held = held.unpack_host()
        return np.asarray(held).reshape(-1)

    def assemble(self, elements: jax.Array) -> jax.Array:
        """The values of `self.shape` from `size` elements in C order."""
        raise TypeError(f"{type(self).__name__} defines no assemble()")

    def assemble_host(self, elements: np.ndarray) -> np.ndarray | None:
        """`assemble` as a NumPy array, bit for bit, without compiling anything; None if this kind defines none."""
        return None

    def with_elements(self, elements: jax.Array) -> Elementwise:
        """This packed array storing other elements, for example only those a mask keeps."""
        raise TypeError(f"{type(self).__name__} defines no with_elements()")

    def unpack(self) -> jax.Array:
        return self.assemble(self.elements())

    def unpack_host(self) -> np.ndarray | None:
        return self.assemble_host(self.host_elements())


@packed_kind("dense")
class Dense(Elementwise):
    """Values as they are, lossless: leaves that no transform selected, and innermost floats.

    NumPy arrays stay such, so that a 64-bit dtype, which JAX would narrow, comes through a file whole.

    >>> Dense(np.array([0.1, 0.2]), (2,)).unpack_host()
    array([0.1, 0.2])
    """

    element_field = "array"

    array: jax.Array
    shape: tuple[int, ...] = static()

    def elements(self) -> jax.Array:
        return self.array.reshape(-1)

    def assemble(self, elements: jax.Array) -> jax.Array:
        return elements.reshape(self.shape)

    def assemble_host(self, elements: np.ndarray) -> np.ndarray:
        return elements.reshape(self.shape)

    def with_elements(self, elements: jax.Array) -> Dense:
        return Dense(elements, self.shape)


@packed_kind("bits")
class Bits(PackedArray):
    """`count` unsigned integers of `bits` bits each, in exactly that many bit planes.

    words: uint32 `(bits, ceil(count / 32))`; bit j of word i of plane b is bit b of integer
    32 i + j. A 2-bit code takes two bits in memory, a mask one.

    >>> packed = Bits.pack(jnp.array([3, 0, 2], jnp.uint8), bits=2)
    >>> packed.unpack(), packed.nbytes
    (Array([3, 0, 2], dtype=uint8), 8)
    """

    words: jax.Array
    bits: int = static()
    count: int = static()

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.count,)

    @staticmethod
    def pack(codes: Any, bits: int) -> Bits:
        """Packs a 1-D array of integers below `2**bits`, on the host; bits from 1 to 8."""
        codes = np.asarray(codes, np.uint8)
        words = np.zeros((bits, -(-codes.size // 32)), np.uint32)
        for b in range(bits):
            plane = np.packbits((codes >> b) & 1, bitorder="little")
            words[b].view(np.uint8)[: plane.size] = plane
        return Bits(words, bits, int(codes.size))

    def unpack(self) -> jax.Array:
        """The integers: uint8 `(count,)`."""
        return _unpack_planes(jnp.asarray(self.words), self.bits, self.count)

    def unpack_host(self) -> np.ndarray:
        size = -(-self.count // 8)
        planes = np.ascontiguousarray(np.asarray(self.words)).view(np.uint8).reshape(self.bits, -1)[:, :size]
        # Eight bits of a plane become the same bit of eight codes at once; blocks stay in the cache.
        codes = np.zeros(size, np.uint64)
        for start in range(0, size, _BLOCK):
            part = slice(start, start + _BLOCK)
            for b, plane in enumerate(planes):
                codes[part] |= _spread_bits()[b].take(plane[part])
        return codes.view(np.uint8)[: self.count]


@functools.cache
def _spread_bits() -> np.ndarray:
    """For each bit b of a code, the eight codes whose bits b a byte holds: uint64 `(8, 256)`."""
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.stack([(ones << b).view(np.uint64)[:, 0] for b in range(8)])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _unpack_planes(words: jax.Array, bits: int, count: int) -> jax.Array:
    place = jnp.arange(32, dtype=jnp.uint32)[None]
    codes = jnp.zeros((words.shape[1], 32), jnp.uint32)
    for b in range(bits):
        codes = codes | (((words[b][:, None] >> place) & 1) << b)
    return codes.astype(jnp.uint8).reshape(-1)[:count]


def is_packed(x: Any) -> bool:
    """Whether `x` is a packed array: the `is_leaf` of trees of them.

    >>> tree = {"w": Dense(jnp.zeros(2), (2,)), "step": 3}
    >>> jax.tree.map(is_packed, tree, is_leaf=is_packed)
    {'step': False, 'w': True}
    """
    return isinstance(x, PackedArray)


def narrowed(packed: PackedArray, dtype: str) -> PackedArray:
    """What is stored of latents: plain floats, which may be wider than what is computed with, in its dtype."""
    return Dense(packed.array.astype(dtype), packed.shape) if isinstance(packed, Dense) else packed


def widened(packed: PackedArray) -> PackedArray:
    """Floats that `narrowed` stored, as latents again."""
    return Dense(latent(packed.array), packed.shape) if isinstance(packed, Dense) else packed
