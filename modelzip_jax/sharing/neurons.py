"""Neurons that share their weight vectors, as a transform: one array, read through an index."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.errors import LeafError
from modelzip_jax.given_values import as_whole
from modelzip_jax.linear import Linear, LinearState
from modelzip_jax.packed import PackedArray, is_packed, narrowed, packed_kind, static, widened
from modelzip_jax.recipe import recordable
from modelzip_jax.sharing.grouping import group_means, group_neurons
from modelzip_jax.transform import Encoded, Rate
from modelzip_jax.tree import PyTree, Static

__all__ = ["ShareNeurons", "SharedNeurons", "share_neurons"]


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
class ShareNeurons(Linear):
    """See `share_neurons`."""

    factor: int

    def prepare(self, name: str, w: jax.Array) -> jax.Array:
        """The group of each neuron: int32 `(neurons,)`."""
        if jnp.ndim(w) < 2 or not jnp.size(w):
            raise LeafError(f"leaf {name!r} of shape {jnp.shape(w)} has no neurons; select kernels")
        return group_neurons(w, self.factor)

    def analysis(self, w: jax.Array, leaf: jax.Array) -> jax.Array:
        return group_means(w, leaf, -(-w.shape[-1] // self.factor))

    def synthesis(self, z: jax.Array, leaf: jax.Array) -> jax.Array:
        return jnp.take(z, leaf, axis=-1)

    def importance(self, z: jax.Array, weights: jax.Array, leaf: jax.Array) -> jax.Array:
        """The sum over the neurons that share a vector, exactly."""
        columns = jnp.moveaxis(jnp.broadcast_to(weights, (*z.shape[:-1], leaf.size)), -1, 0)
        return jnp.moveaxis(jax.ops.segment_sum(columns, leaf, z.shape[-1]), 0, -1).astype(z.dtype)

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def pack(z: jax.Array, index: jax.Array, dtype: Static, packed: PackedArray) -> SharedNeurons:
            shape = (*jnp.shape(z)[:-1], index.size)
            stored = index.astype(_index_dtype(z.shape[-1]))
            return SharedNeurons(narrowed(packed, dtype.value), stored, shape, dtype.value)

        return jax.tree.map(pack, encoded.latents, encoded.state.maps, encoded.state.dtypes, inner)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        def over(function: Callable[[SharedNeurons], Any]) -> PyTree:
            return jax.tree.map(function, packed, is_leaf=is_packed)

        maps = over(lambda p: jnp.asarray(p.index, jnp.int32))
        return (), LinearState(maps, over(lambda p: Static(p.dtype))), over(lambda p: widened(p.inner))

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        def indexed(z: jax.Array, index: jax.Array, r: Rate) -> Rate:
            return r._replace(side=r.side + index.size * jnp.log2(jnp.float32(z.shape[-1])))

        spread = super().rate(encoded, inner)
        return jax.tree.map(indexed, encoded.latents, encoded.state.maps, spread)


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

    >>> import modelzip_jax as mz
    >>> mz.decoded({"kernel": jnp.array([[1.0, 5.0, 2.0, 6.0]])}, share_neurons(2))["kernel"]
    Array([[1.5, 5.5, 1.5, 5.5]], dtype=float32)
    """
    return ShareNeurons(as_whole(factor, "factor of share_neurons()", 2))
