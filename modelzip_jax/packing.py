"""Packed models: params as packed arrays, the recipe that made them, and how training goes on from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.combinator import check_transform, selected, selects
from modelzip_jax.errors import RecipeError, TransformError, TreeError
from modelzip_jax.host_unpacking import unpacked_on_host
from modelzip_jax.jax_settings import unwatched
from modelzip_jax.leaf_checks import check_arrays, check_finite
from modelzip_jax.leaf_packing import LeafPacking, copied_leaf
from modelzip_jax.metadata import NOTHING, Metadata
from modelzip_jax.packed import Dense, PackedArray, is_packed, static
from modelzip_jax.recipe import opaque_fields
from modelzip_jax.search import Search
from modelzip_jax.transform import Encoded, Transform, dense
from modelzip_jax.tree import PyTree
from modelzip_jax.tree_depth import check_depth

__all__ = ["Packed", "compress", "decoded", "resume", "unpack"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Packed:
    """A compressed model, in memory as it will be in the file.

    params: the params' structure with a packed array a leaf. variables: what travels along
    uncompressed, such as batch statistics. transform: the recipe. step: optimizer steps taken. metadata: plain
    data that files carry along, see `mz.save`.

    >>> import modelzip_jax as mz
    >>> mz.compress({"w": jnp.ones((64, 64))}, mz.quantize(4))
    Packed(1 leaves, 2,304 bytes packed, 16,384 dense, step 0)
    """

    params: PyTree
    variables: PyTree
    transform: Transform = static()
    step: int = static(default=0)
    metadata: Metadata = static(default=NOTHING)

    @property
    def nbytes(self) -> int:
        """Bytes in memory of all packed arrays, side information included."""
        return trees.nbytes(self.params)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the same params unpacked."""
        return sum(unpacked_bytes(p) for p in jax.tree.leaves(self.params, is_leaf=is_packed))

    def __repr__(self) -> str:
        arrays = all(hasattr(x, "dtype") for x in jax.tree.leaves(self.params))
        if not arrays or not all(
            map(is_packed, jax.tree.leaves(self.params, is_leaf=is_packed))
        ):  # In a tree.map.
            return f"Packed({self.params!r:.200})"
        count = len(jax.tree.leaves(self.params, is_leaf=is_packed))
        return f"Packed({count} leaves, {self.nbytes:,} bytes packed, {self.dense_bytes:,} dense, step {self.step})"

    def _repr_html_(self) -> str:
        """The table of `inspect`, as notebooks show it."""
        # Of the core only this looks at files: it is imported by whoever shows a model.
        from modelzip_jax.evaluation.notebook_views import html_of

        return html_of(self)


def unpacked_bytes(packed: PackedArray) -> int:
    """Bytes of a packed array's values, unpacked."""
    if isinstance(packed, Dense):  # which may be a 64-bit NumPy array that a trace would narrow
        return packed.nbytes
    value = jax.eval_shape(lambda p: p.unpack(), packed)
    return int(np.prod(value.shape, dtype=np.int64)) * value.dtype.itemsize


def assembled(packed: PyTree, transform: Transform, step: int, variables: PyTree = None) -> Packed:
    """The packed model of a tree of packed arrays and, where no transform encodes a leaf, arrays."""
    # A copy: the loop may donate its params, and change its host arrays, while the packed model is kept.
    copied = lambda x: x if is_packed(x) else dense(copied_leaf(x))  # noqa: E731
    params = jax.tree.map(copied, packed, is_leaf=is_packed)
    carried = {} if variables is None else jax.tree.map(copied_leaf, trees.plain(variables))
    return Packed(params, carried, transform, step)


def compress(
    params: PyTree,
    transform: Transform | Search,
    *,
    variables: PyTree = None,
    calibrate: tuple[Callable[..., Any], Sequence[Any]] | None = None,
    progress: Callable[[str, int], None] | None = None,
    **given: Any,
) -> Packed:
    """Compresses trained weights without further training.

    Args:
      params: a pytree of arrays. Leaves that the transform does not select, whatever their dtype,
        are kept as they are and stored lossless.
      transform: what to do with the others, or what finds that: `mz.smallest`.
      variables: what is to travel along uncompressed, such as batch statistics.
      calibrate: `(apply_fn, batches)`, as of `trace.statistics`, instead of `stats`: layers whose compression needs
        statistics are taken in the order in which the model meets them, each with the inputs that it gets from those
        before once they are compressed, all others being so already. The model runs once over all batches, in pieces,
        which keep the activations of all batches at one depth in memory. Layers of the same inputs go together, and so
        do the layers of a scan, whose inputs are those of the scan with the rest of its body compressed as far.
      progress: called with a leaf's name and its dense bytes, once it is packed.
      **given: what the transform's `init` reads beside the weights: fields of `mz.Context`, such as `grads`, `stats`,
        `scores` (trees like the params) or `key`.

    Raises:
      PatternError: a path pattern of the transform matches nothing.
      LeafError: a selected leaf is not floating-point, or a leaf is no array.
      NonFiniteError: a selected leaf holds NaN or infinity, or would decode to them, being so near the largest number
        of its dtype that a sum or a rounding leaves it.

    >>> import modelzip_jax as mz
    >>> packed = mz.compress({"w": np.eye(64, dtype=np.float32)}, mz.quantize(bits=2))
    >>> packed.dense_bytes, packed.nbytes
    (16384, 1280)
    """
    # A caller who keeps no reference of its own has each leaf freed once it is packed.
    held = [params]
    del params
    with unwatched():
        if isinstance(transform, Search):
            return transform.compressed(
                held.pop(), variables=variables, calibrate=calibrate, progress=progress, given=given
            )
        return _compressed(held, transform, variables, calibrate, progress, given)


def _compressed(
    held: list[PyTree],
    transform: Transform,
    variables: PyTree,
    calibrate: tuple[Callable[..., Any], Sequence[Any]] | None,
    progress: Callable[[str, int], None] | None,
    given: dict[str, Any],
) -> Packed:
    """`compress`; takes the params out of the list."""
    params = held.pop()
    check_transform(transform, "compress()")
    model, params = params if calibrate is not None else None, _checked_weights(params)
    weights, context, keep = selected(transform, params, given, "compress()")
    check_finite(weights)
    calibration = None
    if calibrate is not None:
        # Of the core only this looks into models: it is imported by whoever asks for it.
        from modelzip_jax.calibrating import Calibration

        calibration = Calibration(calibrate, model, transform, keep, list(given))
    packing = LeafPacking(params, keep, transform, calibration, progress)
    # A caller who keeps no reference of its own has each leaf freed once it is packed.
    del model, params, weights
    packing.encode_alone(context)
    packing.encode_in_turns(context)
    return assembled(packing.tree(), transform, 0, variables)


def _checked_weights(params: PyTree) -> PyTree:
    """What `compress` can pack, NNX variables replaced by their arrays."""
    check_depth(params)
    trees.check_not_module(params)
    params = trees.plain(params)
    _check_not_packed(params, "compress()")
    check_arrays(params)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        raise TransformError(
            "compress() packs what the weights are, outside of jit; within it, mz.decoded works"
        )
    return params


def _check_not_packed(params: PyTree, what: str) -> None:
    if any(map(is_packed, jax.tree.leaves(params, is_leaf=is_packed))):
        raise TransformError(
            f"{what} takes weights, and these are packed already; unpack them: mz.unpack(packed)"
        )


@unwatched()
def decoded(params: PyTree, transform: Transform, **given: Any) -> PyTree:
    """The weights as they will be after compression, without packing them.

    Raises:
      TransformError: the weights are packed already. PatternError, LeafError: as `compress`.

    >>> import modelzip_jax as mz
    >>> decoded({"w": np.float32([3.0, -1.0])}, mz.prune(sparsity=0.5))
    {'w': Array([3., 0.], dtype=float32)}
    """
    check_transform(transform, "decoded()")
    trees.check_not_module(params)
    tree = trees.plain(params)
    _check_not_packed(tree, "decoded()")
    weights, context, _ = selected(transform, tree, given, "decoded()")
    encoded = transform.init(weights, context)
    return trees.restored(trees.merge(tree, transform.decode(encoded)), params)


@unwatched()
def unpack(packed: PyTree) -> PyTree:
    """The weights that the network computes with, from a `Packed` model or a tree of packed arrays.

    Pure and jittable, so that packed weights can stay packed in device memory: put them there once, by
    `jax.device_put(packed)`, as arrays of the host are uploaded anew at every call. Leaves of a dtype that
    JAX would narrow, such as int64, stay NumPy arrays.

    Raises:
      TransformError: what is given is no packed model.

    >>> import modelzip_jax as mz
    >>> unpack(mz.compress({"w": np.float32([3.0, -1.0])}, mz.prune(sparsity=0.5)))
    {'w': Array([3., 0.], dtype=float32)}
    """
    tree = packed.params if isinstance(packed, Packed) else packed
    return jax.tree.map(_unpack, tree, is_leaf=is_packed)


@jax.jit
def _fused(packed: PackedArray) -> jax.Array:
    """One compilation for each shape and kind, and no intermediate arrays."""
    return packed.unpack()


def _kind(x: Any) -> str:
    return f"an array {jnp.result_type(x)}{list(x.shape)}" if trees.is_array(x) else type(x).__name__


def _unpack(packed: PackedArray) -> Any:
    if not is_packed(packed):
        if isinstance(packed, str):
            raise TransformError(
                f"unpack() takes a packed model, not {packed!r:.100}; read a file by mz.load(path)"
            )
        raise TransformError(
            f"unpack() takes a packed model, as mz.compress, mz.pack and mz.load give it, not {_kind(packed)}"
        )
    if not isinstance(packed, Dense):
        here = unpacked_on_host(packed)
        return _fused(packed) if here is None else here
    values = packed.unpack()
    if jnp.result_type(values) != values.dtype:
        return values.copy()
    return jnp.array(values) if isinstance(values, np.ndarray) else values


@unwatched()
def resume(packed: Packed, transform: Transform | None = None) -> tuple[Transform, Encoded]:
    """What training goes on with: the transform, and an encoded model.

    `transform.decode(encoded)` equals `unpack(packed)` on the encoded leaves; others are `UNSELECTED`. To go on in a
    loop: `tx = mz.wrap(optimizer, packed)`.

    Args:
      packed: a compressed model, from `mz.pack`, `mz.compress` or `mz.load`.
      transform: one of the same structure to go on with instead, for example with another schedule;
        needed where the recipe holds a function that a file cannot record.

    Raises:
      RecipeError: the recipe holds such a function and no transform is given, or another recipe packed the model.

    >>> import modelzip_jax as mz
    >>> packed = mz.compress({"w": jnp.array([1.0, -2.0])}, mz.prune(sparsity=0.5))
    >>> transform, encoded = resume(packed)
    >>> transform.decode(encoded)
    {'w': Array([ 0., -2.], dtype=float32)}
    """
    transform = transform or packed.transform
    return transform, _checked(_resumed(packed.params, transform), packed, packed.params, transform)


def resumed(packed: Packed, transform: Transform, params: PyTree) -> Encoded:
    """What training goes on with, for params that may be some of the packed leaves, in another container."""
    stored = dict(trees.named_leaves(packed.params, is_packed))
    leaves = trees.named_leaves(params)
    missing = [name for name, _ in leaves if name not in stored]
    if missing:
        raise TreeError(
            f"the packed model has no leaf {missing[0]!r}; its leaves are {', '.join(list(stored)[:12])}"
        )
    for name, leaf in leaves:
        if tuple(jnp.shape(leaf)) != tuple(stored[name].shape):
            raise TreeError(
                f"leaf {name!r} has the shape {jnp.shape(leaf)}, the packed one {stored[name].shape}"
            )
    treedef = jax.tree.structure(params)
    inside = treedef.unflatten([stored[name] for name, _ in leaves])
    keep = selects(transform, trees.outlines(params))
    _check_others([(name, x, stored[name]) for (name, x), k in zip(leaves, keep, strict=True) if not k])
    return _checked(_resumed(inside, transform), packed, inside, transform)


def _check_others(leaves: list[tuple[str, Any, PackedArray]]) -> None:
    """Refuses leaves that no transform selects and that are others than the packed model's: those it was trained with.

    Raises:
      TreeError: one differs.
    """
    for name, leaf, packed in leaves:
        if isinstance(leaf, jax.core.Tracer):
            continue
        here, there = np.asarray(leaf), np.asarray(unpack(packed))
        if not np.array_equal(here, there.astype(here.dtype), equal_nan=here.dtype.kind in "fc"):
            raise TreeError(
                f"leaf {name!r}, which the transform leaves alone, is another one in the packed model, such as a bias "
                "trained since; begin with the packed model's own: params = mz.unpack(packed)"
            )


def _short(transform: Transform, length: int = 160) -> str:
    text = repr(transform)
    return text if len(text) <= length else f"{text[: length - 2]} …"


def _checked(encoded: Encoded, packed: Packed, inside: PyTree, transform: Transform) -> Encoded:
    """Refuses a recipe other than the model's own under which its weights would be others.

    Raises:
      RecipeError: it decodes a leaf differently, by more than sums are rounded.
    """
    arrays = jax.tree.leaves((encoded, inside))
    if transform == packed.transform or any(isinstance(x, jax.core.Tracer) for x in arrays):
        return encoded
    advice = (
        f"resume with the recipe that packed it, in which schedules may differ: {_short(packed.transform)}"
    )
    try:
        decoded = trees.named_leaves(transform.decode(encoded))
        again = trees.named_leaves(transform.pack(encoded, dense(encoded.latents)), is_packed)
    except (AttributeError, TypeError, ValueError) as error:
        raise RecipeError(f"this recipe cannot decode the packed model; {advice}") from error
    forms = {name: jax.tree.structure(x) for name, x in trees.named_leaves(inside, is_packed)}
    for name, x in again:
        if jax.tree.structure(x) != forms[name]:
            raise RecipeError(
                f"this recipe would store leaf {name!r} of the packed model otherwise; {advice}"
            )
    weights = dict(trees.named_leaves(unpack(inside)))
    for name, leaf in decoded:
        was = np.asarray(weights[name], np.float32)
        largest = np.abs(was).max(initial=0.0)
        if np.abs(np.asarray(leaf, np.float32) - was).max(initial=0.0) > 1e-5 * largest:
            raise RecipeError(
                f"under this recipe leaf {name!r} of the packed model has other values; {advice}"
            )
    return encoded


def _resumed(params: PyTree, transform: Transform) -> Encoded:
    unknown = opaque_fields(transform)
    if unknown:
        raise RecipeError(
            f"the recipe holds something at {', '.join(unknown)} that the file could not record or this session does "
            "not know; pass the transform: mz.wrap(optimizer, transform, resume=packed)"
        )
    treedef = jax.tree.structure(params, is_leaf=is_packed)
    keep = selects(transform, trees.outlines(params, is_packed))
    try:
        offsets, state, inner = transform.resume(trees.select(params, keep, treedef))
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise RecipeError(
            f"the packed model was not made by {_short(transform)}; pass the transform that packed it, in which "
            "schedules may differ"
        ) from error
    return Encoded(unpack(inner), offsets, state)
