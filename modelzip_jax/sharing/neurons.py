"""Neurons that share their weight vectors, as a transform: one array, read through an index."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.packed import Dense, PackedArray, is_packed, packed_kind, static
from modelzip_jax.recipe import recordable
from modelzip_jax.sharing.grouping import group_means, group_neurons
from modelzip_jax.transform import Encoded, Rate, Transform
from modelzip_jax.tree import Static

__all__ = ["ShareNeurons", "SharedNeurons", "share_neurons"]

PyTree = Any


class SharedState(NamedTuple):
    """A leaf's index, int32 `(neurons,)`: the group of each, and its dtype before encoding (static)."""

    index: jax.Array
    dtype: Static


@packed_kind("neurons")
class SharedNeurons(PackedArray):
    """`inner[..., index]`: the weight vectors of groups, and the group of each neuron, an unsigned integer."""

    inner: PackedArray
    index: jax.Array
    shape: tuple[int, ...] = static()
    dtype: str = static()

    def check(self) -> None:
        super().check()
        groups = self.inner.shape[-1] if self.inner.shape else 0
        if self.inner.shape[:-1] != self.shape[:-1] or self.index.shape != self.shape[-1:] or groups < 1:
            raise ValueError(f"vectors {self.inner.shape} and an index {self.index.shape} for {self.shape}")
        if self.index.size and int(self.index.max()) >= groups:
            raise ValueError(f"a neuron of group {int(self.index.max())} among {groups}")

    def unpack(self) -> jax.Array:
        return jnp.take(self.inner.unpack(), jnp.asarray(self.index), axis=-1).astype(self.dtype)


@recordable
@dataclasses.dataclass(frozen=True)
class ShareNeurons(Transform):
    """See `share_neurons`."""

    factor: int

    def init(self, values: PyTree, **extra: Any) -> Encoded:
        trees.check_floating(values, "share_neurons")

        def begin(name: str, w: jax.Array) -> SharedState:
            if jnp.ndim(w) < 2 or not jnp.size(w):
                raise LeafError(f"leaf {name!r} of shape {jnp.shape(w)} has no neurons; select kernels")
            return SharedState(group_neurons(w, self.factor), Static(str(jnp.result_type(w))))

        state = trees.map_named(begin, values)
        return Encoded(self.analysis(jax.tree.map(trees.latent, values), state), (), state)

    def analysis(self, values: PyTree, state: PyTree) -> PyTree:
        def means(w: jax.Array, s: SharedState) -> jax.Array:
            return group_means(w, s.index, -(-w.shape[-1] // self.factor))

        return jax.tree.map(means, values, state)

    def synthesis(self, values: PyTree, state: PyTree) -> PyTree:
        return jax.tree.map(lambda v, s: jnp.take(v, s.index, axis=-1), values, state)

    def decode(self, values: PyTree, extras: PyTree, state: PyTree) -> PyTree:
        return jax.tree.map(lambda w, s: w.astype(s.dtype.value), self.synthesis(values, state), state)

    def pack(self, values: PyTree, extras: PyTree, state: PyTree, inner: PyTree) -> PyTree:
        def pack(v: jax.Array, s: SharedState, packed: PackedArray) -> SharedNeurons:
            if isinstance(packed, Dense):  # the latents may be wider than what is computed with
                packed = Dense(packed.array.astype(s.dtype.value), packed.shape)
            shape = (*jnp.shape(v)[:-1], s.index.size)
            return SharedNeurons(packed, s.index.astype(_index_dtype(v.shape[-1])), shape, s.dtype.value)

        return jax.tree.map(pack, values, state, inner)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def state(p: SharedNeurons) -> SharedState:
            return SharedState(jnp.asarray(p.index, jnp.int32), Static(p.dtype))

        def inner(p: SharedNeurons) -> PackedArray:
            return (
                Dense(trees.latent(p.inner.array), p.inner.shape) if isinstance(p.inner, Dense) else p.inner
            )

        return (), *(jax.tree.map(f, packed, is_leaf=is_packed) for f in (state, inner))

    def rate(self, values: PyTree, extras: PyTree, state: PyTree, inner: PyTree) -> PyTree:
        def spread(v: jax.Array, s: SharedState, r: Rate) -> Rate:
            weights = (v.size // v.shape[-1]) * s.index.size
            side = s.index.size * jnp.log2(jnp.float32(v.shape[-1]))
            shape = (*v.shape[:-1], s.index.size)
            return Rate(jnp.full(shape, jnp.sum(r.elements) / weights), r.side + side)

        return jax.tree.map(spread, values, state, inner)


def _index_dtype(groups: int) -> Any:
    return jnp.uint8 if groups <= 1 << 8 else jnp.uint16 if groups <= 1 << 16 else jnp.uint32


def share_neurons(factor: int) -> ShareNeurons:
    """Groups of neurons have one weight vector: a `factor` fewer weights to train and to store.

    A leaf `(..., neurons)`, such as a Flax kernel, becomes one array `(..., ceil(neurons / factor))` that is
    read through an index. Groups are of neurons with similar weights: exactly those that
    `sharing.grouping.share_initialization` made alike, or in a trained network the nearest, with their mean.
    Biases and what follows stay each neuron's own. A quantizer or a mask may follow in a chain. On scikit-learn's
    digits, groups from samples were no better than random ones, nor than fewer neurons with as many parameters
    (docs/benchmarks.md).

    Args:
      factor: neurons in a group, at least 2.

    Raises:
      TransformError: a factor below 2.
      LeafError (at `init`): a leaf has fewer than two axes or no floating-point values.

    >>> t = share_neurons(2)
    >>> values, _, state = t.init({"kernel": jnp.array([[1.0, 5.0, 2.0, 6.0]])})
    >>> values["kernel"], t.decode(values, (), state)["kernel"]
    (Array([[1.5, 5.5]], dtype=float32), Array([[1.5, 5.5, 1.5, 5.5]], dtype=float32))
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
        raise TransformError(f"share_neurons() takes a factor of at least 2, not {factor!r}")
    return ShareNeurons(factor)
