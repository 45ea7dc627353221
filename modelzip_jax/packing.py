"""Packed models: params as packed arrays, the recipe that made them, and how to train on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import RecipeError, TransformError
from modelzip_jax.host_unpacking import unpacked_on_host
from modelzip_jax.loop.wrapping import WrapState, find_state
from modelzip_jax.packed import Dense, PackedArray, is_packed, static
from modelzip_jax.recipe import opaque_fields
from modelzip_jax.transform import Encoded, Transform, dense, outside, selected_extra

__all__ = ["Packed", "compress", "decoded", "pack", "resume", "unpack"]

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """A compressed model, in memory as it will be in the file.

    params: the params' structure with a packed array a leaf. variables: what travels along
    uncompressed, such as batch statistics. transform: the recipe. step: optimizer steps taken.
    """

    params: PyTree
    variables: PyTree
    transform: Transform = static()
    step: int = static(default=0)

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all packed arrays, side information included."""
        return trees.nbytes(self.params)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the same params unpacked."""
        return sum(unpacked_bytes(p) for p in jax.tree.leaves(self.params, is_leaf=is_packed))


def unpacked_bytes(packed: PackedArray) -> int:
    """Bytes of a packed array's values, unpacked."""
    if isinstance(packed, Dense):  # which may be a 64-bit NumPy array that a trace would narrow
        return packed.nbytes
    value = jax.eval_shape(lambda p: p.unpack(), packed)
    return int(np.prod(value.shape, dtype=np.int64)) * value.dtype.itemsize


def assemble(transform: Transform, encoded: Encoded, params: PyTree, step: int) -> Packed:
    """The packed model of what a transform has encoded; leaves it left alone come from `params`."""
    packed = trees.merge(params, transform.pack(*encoded, dense(encoded.values)))
    # A copy: the loop may donate its params while the packed model is kept.
    copied = lambda x: x if is_packed(x) else dense(x.copy() if hasattr(x, "copy") else x)  # noqa: E731
    packed = jax.tree.map(copied, packed, is_leaf=is_packed)
    return Packed(packed, {}, transform, step)


def pack(transform: Transform, opt_state: PyTree, params: PyTree) -> Packed:
    """Packs a model that `mz.wrap` has trained.

    Args:
      transform: the transform that was given to `mz.wrap`.
      opt_state: the optimizer state, which holds the latents.
      params: the loop's params; leaves that the transform leaves alone are taken from here.

    Returns:
      A `Packed` model; `mz.unpack` of it equals `mz.params(opt_state, params)`.

    Raises:
      TransformError: the state belongs to another transform.
      NonFiniteError: a latent is NaN or infinite: training has diverged.
    """
    state: WrapState = find_state(opt_state)
    if state.transform.value != transform:
        raise TransformError(
            f"this optimizer state was made with {state.transform.value}, not with {transform}"
        )
    trees.check_finite(state.values)
    return assemble(transform, state.encoded, trees.plain(params), int(state.count))


def compress(params: PyTree, transform: Transform, **extra: Any) -> Packed:
    """Compresses trained weights without further training.

    Args:
      params: a pytree of arrays. Leaves that the transform does not select, whatever their dtype,
        are kept as they are and stored lossless.
      transform: what to do with the others.
      **extra: what the transform's `init` reads, such as `grads`, `stats`, `scores` (trees like the
        params) or `key`.

    Raises:
      PatternError: a path pattern of the transform matches nothing.
      LeafError: a selected leaf is not floating-point, or a leaf is no array.
      NonFiniteError: a selected leaf holds NaN or infinity.

    >>> import modelzip_jax as mz
    >>> packed = mz.compress({"w": np.eye(64, dtype=np.float32)}, mz.quantize(bits=2))
    >>> packed.dense_bytes, packed.nbytes
    (16384, 1280)
    """
    params = trees.plain(params)
    trees.check_arrays(params)
    leaves, treedef = jax.tree.flatten(params)
    keep = transform.selects(trees.outlines(params))
    trees.check_finite(trees.select(params, keep, treedef))
    every = [index for index, chosen in enumerate(keep) if chosen]
    packed = [leaf if chosen else dense(leaf) for leaf, chosen in zip(leaves, keep, strict=True)]
    extra = {"frozen": outside(params, keep), **extra}
    # A caller who keeps no reference of its own has each leaf freed once it is packed.
    del params
    for group in _groups(leaves, every) if transform.leafwise else [every]:
        here = [index in group for index in range(len(leaves))]
        values = trees.select(treedef.unflatten(leaves), here, treedef)
        encoded = transform.init(values, **selected_extra(extra, here, treedef))
        del values
        parts = treedef.flatten_up_to(transform.pack(*encoded, dense(encoded.values)))
        del encoded
        for index in group:
            packed[index], leaves[index] = parts[index], 0
    return Packed(treedef.unflatten(packed), {}, transform, 0)


_GROUP_BYTES = 32 << 20


def _groups(leaves: list[Any], indices: list[int]) -> list[list[int]]:
    """The indices, in groups of leaves of some 32 MB together."""
    groups: list[list[int]] = []
    size = _GROUP_BYTES
    for index in indices:
        if size >= _GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(index)
        size += trees.nbytes(leaves[index])
    return groups


def decoded(params: PyTree, transform: Transform, **extra: Any) -> PyTree:
    """The weights as they will be after compression, without packing them.

    >>> import modelzip_jax as mz
    >>> decoded({"w": np.float32([3.0, -1.0])}, mz.prune(sparsity=0.5))
    {'w': Array([3., 0.], dtype=float32)}
    """
    params = trees.plain(params)
    keep, treedef = transform.selects(trees.outlines(params)), jax.tree.structure(params)
    extra = {"frozen": outside(params, keep), **selected_extra(extra, keep, treedef)}
    encoded = transform.init(trees.select(params, keep, treedef), **extra)
    return trees.merge(params, transform.decode(*encoded))


def unpack(packed: PyTree) -> PyTree:
    """The weights that the network computes with, from a `Packed` model or a tree of packed arrays.

    Pure and jittable, so that packed weights can stay packed in device memory. Leaves of a dtype that
    JAX would narrow, such as int64, stay NumPy arrays.
    """
    tree = packed.params if isinstance(packed, Packed) else packed
    return jax.tree.map(_unpack, tree, is_leaf=is_packed)


@jax.jit
def _fused(packed: PackedArray) -> jax.Array:
    """One compilation for each shape and kind, and no intermediate arrays."""
    return packed.unpack()


def _unpack(packed: PackedArray) -> Any:
    if not isinstance(packed, Dense):
        here = unpacked_on_host(packed)
        return _fused(packed) if here is None else here
    values = packed.unpack()
    return trees.on_device(values) if jnp.result_type(values) == values.dtype else values


def resume(packed: Packed, transform: Transform | None = None) -> tuple[Transform, PyTree, PyTree, PyTree]:
    """What training goes on with: `(transform, values, extras, state)`.

    `transform.decode(values, extras, state)` equals `unpack(packed)` on the encoded leaves; others
    are `UNSELECTED`. To go on in a loop: `params, opt_state = mz.start(tx, packed)`.

    Args:
      packed: a compressed model, from `mz.pack`, `mz.compress` or `mz.load`.
      transform: one of the same structure to go on with instead, for example with another schedule;
        needed where the recipe holds a function that a file cannot record.

    Raises:
      RecipeError: the recipe holds such a function and no transform is given.
    """
    transform = transform or packed.transform
    unknown = opaque_fields(transform)
    if unknown:
        raise RecipeError(
            f"the recipe holds a function at {', '.join(unknown)} that the file could not record; pass "
            "the transform: mz.resume(packed, transform)"
        )
    treedef = jax.tree.structure(packed.params, is_leaf=is_packed)
    keep = transform.selects(trees.outlines(packed.params, is_packed))
    extras, state, inner = transform.resume(trees.select(packed.params, keep, treedef))
    return transform, unpack(inner), extras, state
