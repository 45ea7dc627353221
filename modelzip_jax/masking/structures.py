"""Which weights are pruned together: single ones, blocks, channels, or n of every m.

A structure turns a leaf's scores into one score for each group, and a choice of groups into a mask.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.given_values import as_whole
from modelzip_jax.meshes import under_any_mesh
from modelzip_jax.recipe import recordable

__all__ = [
    "Block",
    "Channel",
    "NOfM",
    "Structure",
    "Unstructured",
    "block",
    "channel",
    "n_of_m",
    "unstructured",
]


@dataclasses.dataclass(frozen=True)
class Structure:
    """Base of structures.

    Most turn a leaf's scores into one score for each group, and a choice of groups into a mask: `group`, `spread`,
    and for budgets `largest`. One that itself says how many weights go sets `fixes_sparsity` and defines `choose`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Pairs(Structure):
    ...     def group(self, scores):
    ...         return jnp.mean(scores.reshape(-1, 2), axis=1)
    ...
    ...     def spread(self, kept, shape):
    ...         return jnp.repeat(kept, 2).reshape(shape)
    >>> Pairs().group(jnp.array([1.0, 3.0, 5.0, 7.0])), Pairs().spread(jnp.array([True, False]), (4,))
    (Array([2., 6.], dtype=float32), Array([ True,  True, False, False], dtype=bool))
    """

    fixes_sparsity: ClassVar[bool] = False
    """Whether the structure itself says how many weights go."""

    pointwise: ClassVar[bool] = False
    """Whether each weight is a group of its own."""

    def group(self, scores: jax.Array) -> jax.Array:
        """One score for each group, the mean of its weights' scores."""
        raise TransformError(f"{type(self).__name__} defines no group()")

    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The boolean mask of the leaf's shape, from which groups are kept."""
        raise TransformError(f"{type(self).__name__} defines no spread()")

    def largest(self, shape: tuple[int, ...]) -> int:
        """How many weights the largest group of a leaf of this shape has: what a budget counts a group as."""
        raise TransformError(f"{type(self).__name__} defines no `largest`, which a budget needs")

    def choose(self, scores: jax.Array) -> jax.Array:
        """The boolean mask of a leaf, where the structure fixes the sparsity."""
        raise TransformError(f"{type(self).__name__} fixes no sparsity")


@recordable
@dataclasses.dataclass(frozen=True)
class Unstructured(Structure):
    """See `unstructured`."""

    pointwise: ClassVar[bool] = True

    def group(self, scores: jax.Array) -> jax.Array:
        return scores

    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return kept

    def largest(self, shape: tuple[int, ...]) -> int:
        return 1


def unstructured() -> Unstructured:
    """Single weights, wherever they are.

    >>> unstructured()
    Unstructured()
    """
    return Unstructured()


@recordable
@dataclasses.dataclass(frozen=True)
class Channel(Structure):
    """See `channel`."""

    axis: int

    def group(self, scores: jax.Array) -> jax.Array:
        axis = self._axis(scores.shape)
        if not scores.size:  # Channels of no weights have no mean.
            return jnp.zeros(scores.shape[axis], scores.dtype)
        return jnp.mean(scores, axis=tuple(a for a in range(scores.ndim) if a != axis))

    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        axis = self._axis(shape)
        return jnp.broadcast_to(kept.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)

    def largest(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) // max(shape[self._axis(shape)], 1)

    def _axis(self, shape: tuple[int, ...]) -> int:
        if not -len(shape) <= self.axis < len(shape):
            raise LeafError(
                f"a leaf of shape {shape} has no channel axis {self.axis}; select kernels with mz.only"
            )
        return self.axis % len(shape)


def channel(axis: int = -1) -> Channel:
    """All weights of one index of `axis`: a neuron, a filter (-1, the outputs of Flax kernels) or an input.

    The mask leaves the channel in place; `mz.rewrites.shrink` takes it out, with everything coupled to it.

    >>> channel().group(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
    Array([2., 4.], dtype=float32)
    """
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TransformError(f"channel() takes an axis, such as -1, not {axis!r:.100}")
    return Channel(axis)


@recordable
@dataclasses.dataclass(frozen=True)
class Block(Structure):
    """See `block`."""

    shape: tuple[int, ...]

    def group(self, scores: jax.Array) -> jax.Array:
        def means(scores: jax.Array) -> jax.Array:
            return self._sums(scores) / self._sums(jnp.ones_like(scores))

        return under_any_mesh(means, (scores,), PartitionSpec())

    def spread(self, kept: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        for axis, size in zip(range(-len(self.shape), 0), self.shape, strict=True):
            kept = jnp.repeat(kept, size, axis=axis)
        return kept[tuple(slice(n) for n in shape)]

    def largest(self, shape: tuple[int, ...]) -> int:
        tail = shape[len(shape) - len(self.shape) :]
        return math.prod(min(n, b) for n, b in zip(tail, self.shape, strict=True))

    def _sums(self, x: jax.Array) -> jax.Array:
        if x.ndim < len(self.shape):
            raise LeafError(
                f"a leaf of shape {x.shape} has no blocks of {self.shape}; select kernels with mz.only"
            )
        lead = x.shape[: x.ndim - len(self.shape)]
        tail = x.shape[len(lead) :]
        pads = [(0, 0)] * len(lead) + [(0, -n % b) for n, b in zip(tail, self.shape, strict=True)]
        x = jnp.pad(x, pads)
        split = [m for n, b in zip(x.shape[len(lead) :], self.shape, strict=True) for m in (n // b, b)]
        return x.reshape(*lead, *split).sum(axis=tuple(range(len(lead) + 1, len(lead) + len(split), 2)))


def block(*shape: int) -> Block:
    """Blocks of the last axes; at the end of an axis they may be smaller, and count as one all the same.

    >>> block(1, 2).group(jnp.array([[1.0, 3.0, 5.0]]))
    Array([[2., 5.]], dtype=float32)
    """
    if not shape:
        raise TransformError("block() takes the sizes of the last axes, such as block(4, 4)")
    return Block(tuple(as_whole(n, "a side of block()", 1) for n in shape))


@recordable
@dataclasses.dataclass(frozen=True)
class NOfM(Structure):
    """See `n_of_m`."""

    n: int
    m: int
    axis: int

    fixes_sparsity: ClassVar[bool] = True

    def choose(self, scores: jax.Array) -> jax.Array:
        """The n largest of each m, the first ones of equal scores."""
        if not -scores.ndim <= self.axis < scores.ndim:
            raise LeafError(
                f"a leaf of shape {scores.shape} has no axis {self.axis}; select kernels with mz.only"
            )
        rows = jnp.moveaxis(scores, self.axis, -1)
        length = rows.shape[-1]
        padded = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -length % self.m)], constant_values=-jnp.inf)
        groups = padded.reshape(*rows.shape[:-1], padded.shape[-1] // self.m, self.m)
        # m is small: a rank by comparisons, without a sort.
        rank = jnp.zeros(groups.shape, jnp.int32)
        for other in range(self.m):
            theirs = groups[..., other : other + 1]
            earlier = jax.lax.broadcasted_iota(jnp.int32, groups.shape, groups.ndim - 1) > other
            rank += ((theirs > groups) | ((theirs == groups) & earlier)).astype(jnp.int32)
        # Of a shorter last group the same share, rounded up.
        rest = length % self.m
        keep = jnp.full(groups.shape[-2], self.n)
        keep = keep.at[-1].set(math.ceil(self.n * rest / self.m)) if rest else keep
        keep = keep.reshape(*[1] * (groups.ndim - 2), -1, 1)
        mask = (rank < keep).reshape(padded.shape)[..., :length]
        return jnp.moveaxis(mask, -1, self.axis)


def n_of_m(n: int, m: int, axis: int = -2) -> NOfM:
    """Exactly n of every m neighbours along `axis` stay: 2:4 is what sparse tensor cores compute with.

    It fixes the sparsity, 1 - n / m, so `mz.prune` takes none. A shorter last group keeps the same share, rounded
    up. Mishra et al. 2021, arXiv:2104.08378.

    Args:
      axis: -2, the inputs of Flax kernels.

    >>> n_of_m(2, 4, axis=-1).choose(jnp.array([1.0, 4.0, 2.0, 3.0, 9.0]))
    Array([False,  True, False,  True,  True], dtype=bool)
    """
    if not 0 < n <= m <= 64:
        raise TransformError(f"n_of_m keeps n of m with 0 < n <= m <= 64, not {n} of {m}")
    return NOfM(n, m, axis)
