"""Stacked leaves, packed layer by layer: a scan hands each step one layer's packed array."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.compute.layer_slicing import layer_slices
from modelzip_jax.errors import LeafError, TransformError
from modelzip_jax.packed import PackedArray, is_packed, static
from modelzip_jax.packing import Packed
from modelzip_jax.patterns import matches
from modelzip_jax.stacking import as_layers, check_layer_names, stacked_axes
from modelzip_jax.tree import PyTree

__all__ = ["Layered", "layered"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Layered(PackedArray):
    """A stacked leaf as packed arrays of its layers; in memory only, files hold what it was made of.

    each: a packed array of one layer's shape, all of whose arrays have a leading axis of layers: what `jax.lax.scan`
    slices. axis: of the leaf, counting layers.

    >>> import modelzip_jax as mz
    >>> leaf = mz.layered(mz.compress(jnp.ones((3, 4, 4)), mz.quantize(4)).params)
    >>> leaf.shape, leaf.each.shape, leaf.each.codes.words.shape
    ((3, 4, 4), (4, 4), (3, 4, 1))
    """

    each: PackedArray
    axis: int = static()
    shape: tuple[int, ...] = static()

    def unpack(self) -> jax.Array:
        return jnp.moveaxis(jax.vmap(lambda layer: layer.unpack())(self.each), 0, self.axis)


def layered(packed: PyTree, layers: int | Mapping[str, int] = 0) -> PyTree:
    """A packed model whose stacked leaves are packed layer by layer, so that a scan decodes one layer a step.

    Use it with `mz.rewrites.decode_inside`, or in a scan of your own over `leaf.each`, whose steps call `unpack()`.
    Where layers share a scale, a codebook or levels, each gets its own copy; layers of a masked leaf are padded to
    the one that keeps the most. Values are the same, bit for bit.

    Args:
      packed: a `Packed` model, a tree of packed arrays, or one of them.
      layers: the axis that counts layers, of all leaves, or of those of each path pattern: `{"blocks/**": 0}`.

    Returns:
      The same structure with a `Layered` for each such leaf, its arrays on the host: see `mz.to_device`.

    Raises:
      TransformError: what is given is not packed; or a leaf's kind (vector codebooks or wavelets of the whole leaf)
        or groups that cross layers cannot be split.
      LeafError: a leaf has no such axis, or no layers along it.
      PatternError: a pattern matches no leaf.

    >>> import modelzip_jax as mz
    >>> weights = jax.random.normal(jax.random.key(0), (3, 4, 4))
    >>> leaf = mz.layered(mz.compress(weights, mz.quantize(4)).params)
    >>> total, _ = jax.lax.scan(lambda s, layer: (s + layer.unpack(), None), jnp.zeros((4, 4)), leaf.each)
    >>> bool(jnp.allclose(total, mz.unpack(leaf).sum(0)))
    True
    """
    if isinstance(packed, Packed):
        return dataclasses.replace(packed, params=layered(packed.params, layers))
    chosen = as_layers(layers)
    if any(len(axes) != 1 for _, axes in chosen):
        raise TransformError(f"layers are scanned along one axis, not {layers!r}")
    found = trees.named_leaves(packed, is_packed)
    check_layer_names(chosen, [name for name, _ in found])
    treedef = jax.tree.structure(packed, is_leaf=is_packed)
    return treedef.unflatten([_layered(name, leaf, chosen) for name, leaf in found])


def _layered(name: str, leaf: Any, chosen: Any) -> Any:
    if not is_packed(leaf):
        raise TransformError(
            f"layered() takes a packed model, as mz.compress, mz.pack and mz.load give it; {name!r} is a "
            f"{type(leaf).__name__}"
        )
    if not any(matches(pattern, name) for pattern, _ in chosen) or isinstance(leaf, Layered):
        return leaf
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(leaf)):
        raise TransformError("layered() packs codes anew, on the host: call it before jit")
    (axis,) = stacked_axes(chosen, name, leaf.shape)
    if not leaf.shape[axis]:
        raise LeafError(f"leaf {name!r} of {leaf.shape} has no layers along axis {axis}")
    try:
        return Layered(layer_slices(leaf, axis), axis, leaf.shape)
    except TransformError as error:
        raise TransformError(f"leaf {name!r}: {error}") from error
