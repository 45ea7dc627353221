"""Packed arrays of stacked leaves, split into those of their layers: one pytree with a leading axis of layers.

What a kind shares among layers is repeated for each; codes are packed anew, layer by layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from modelzip_jax.errors import TransformError
from modelzip_jax.masking.masked import Masked
from modelzip_jax.packed import Bits, Dense, Elementwise, PackedArray
from modelzip_jax.quantization.granularity import Granularity
from modelzip_jax.quantization.levelled import Levelled
from modelzip_jax.quantization.quantized import Quantized
from modelzip_jax.sharing.clustered import Clustered, LayerClustered, LayerVectors, VectorClustered

__all__ = ["layer_slices"]


def layer_slices(packed: PackedArray, axis: int) -> PackedArray:
    """A packed array whose arrays have a leading axis of layers and whose structure is that of one layer.

    Args:
      packed: of a stacked leaf, its arrays on any device. axis: of the leaf, counting its layers.

    Raises:
      TransformError: the kind cannot be split so, or what layers share is split across them.

    >>> import modelzip_jax as mz
    >>> w = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    >>> each = layer_slices(mz.compress(w, mz.quantize(8, axis=-1)).params, 0)
    >>> each.shape, each.codes.words.shape, each.step.shape
    ((3, 4), (2, 8, 1), (2, 1, 4))
    """
    if isinstance(packed, Masked):
        return _of_masked(packed, axis)
    if isinstance(packed, Elementwise):
        return _of_elementwise(packed, axis, _rows(packed.host_elements(), packed.shape, axis))
    if isinstance(packed, LayerVectors):
        return _of_layer_vectors(packed, axis)
    raise TransformError(_refusal(packed))


def _refusal(packed: PackedArray) -> str:
    advice = "; cluster with layers=0" if isinstance(packed, VectorClustered) else ""
    return (
        f"a leaf of {packed.shape} stored as {type(packed).__name__} has no layers to slice: its symbols belong to "
        f"the whole leaf{advice}. Leave it out of `layers`, and it is unpacked whole"
    )


def _rest(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _rows(elements: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """`(layers, weights of one)`."""
    return np.moveaxis(elements.reshape(shape), axis, 0).reshape(shape[axis], -1)


def _packed_rows(rows: np.ndarray, bits: int) -> Bits:
    words = np.stack([np.asarray(Bits.pack(row, bits).words) for row in rows])
    return Bits(words, bits, rows.shape[1])


def _repeated(x: Any, layers: int) -> np.ndarray:
    x = np.asarray(x)
    return np.broadcast_to(x, (layers, *x.shape)).copy()


def _of_elementwise(packed: Elementwise, axis: int, rows: np.ndarray) -> PackedArray:
    """rows: the stored elements of each layer, `(layers, count)`: all, or as many as a mask keeps."""
    make = _ELEMENTWISE.get(type(packed))
    if make is None:
        raise TransformError(_refusal(packed))
    return make(packed, axis, rows)


def _of_dense(packed: Dense, axis: int, rows: np.ndarray) -> Dense:
    return Dense(rows, _rest(packed.shape, axis))


def _of_quantized(packed: Quantized, axis: int, rows: np.ndarray) -> Quantized:
    own = _own_groups(packed.groups, packed.shape, axis)
    return dataclasses.replace(
        packed,
        codes=_packed_rows(rows, packed.codes.bits),
        step=_scales(packed.step, packed, axis),
        zero=None if packed.zero is None else _scales(packed.zero, packed, axis),
        shape=_rest(packed.shape, axis),
        granularity=own.kind, axis=own.axis, group_size=own.group_size,
    )  # fmt: skip


def _of_levelled(packed: Levelled, axis: int, rows: np.ndarray) -> Levelled:
    own, layers = _own_groups(packed.groups, packed.shape, axis), len(rows)
    return dataclasses.replace(
        packed,
        codes=_packed_rows(rows, packed.codes.bits),
        levels=_repeated(packed.levels, layers),
        scale=_scales(packed.scale, packed, axis),
        gain=None if packed.gain is None else _repeated(packed.gain, layers),
        zero=None if packed.zero is None else _scales(packed.zero, packed, axis),
        shape=_rest(packed.shape, axis),
        granularity=own.kind, axis=own.axis, group_size=own.group_size,
    )  # fmt: skip


def _of_clustered(packed: Clustered, axis: int, rows: np.ndarray) -> Clustered:
    return dataclasses.replace(
        packed,
        codes=_packed_rows(rows, packed.codes.bits),
        codebook=_repeated(packed.codebook, len(rows)),
        shape=_rest(packed.shape, axis),
    )


def _of_layer_clustered(packed: LayerClustered, axis: int, rows: np.ndarray) -> PackedArray:
    if packed.axes != (axis,):
        raise TransformError(f"codebooks are those of axes {packed.axes}, not of {axis} alone")
    codes = _packed_rows(rows, packed.codes.bits)
    return Clustered(codes, np.asarray(packed.codebook), packed.zero, _rest(packed.shape, axis), packed.dtype)


_ELEMENTWISE: dict[type, Callable[[Any, int, np.ndarray], PackedArray]] = {
    Dense: _of_dense,
    Quantized: _of_quantized,
    Levelled: _of_levelled,
    Clustered: _of_clustered,
    LayerClustered: _of_layer_clustered,
}


def _of_layer_vectors(packed: LayerVectors, axis: int) -> PackedArray:
    if packed.axes != (axis,):
        raise TransformError(f"codebooks are those of axes {packed.axes}, not of {axis} alone")
    rows = packed.codes.unpack_host().reshape(len(packed.codebook), -1)
    codes, book = _packed_rows(rows, packed.codes.bits), np.asarray(packed.codebook)
    return VectorClustered(codes, book, packed.axis, _rest(packed.shape, axis), packed.dtype)


def _of_masked(packed: Masked, axis: int) -> Masked:
    mask = _rows(packed.mask.unpack_host(), packed.shape, axis).astype(bool)
    whole = packed.expanded()
    if not isinstance(whole, Elementwise):
        inner = layer_slices(whole, axis)
    else:
        every = _rows(whole.host_elements(), packed.shape, axis)
        # Arrays of one shape for all layers: those that keep fewer end in zeros, which no weight reads.
        rows = np.zeros((len(mask), int(mask.sum(1).max(initial=0))), every.dtype)
        for row, values, kept in zip(rows, every, mask, strict=True):
            row[: kept.sum()] = values[kept]
        inner = _of_elementwise(whole, axis, rows)
    return Masked(_packed_rows(mask, 1), inner, _rest(packed.shape, axis), packed.dtype)


def _own_groups(groups: Granularity, shape: tuple[int, ...], axis: int) -> Granularity:
    """Which weights of one layer share a scale."""
    own = tuple(a - (a > axis) for a in groups.axes(shape) if a != axis)
    if groups.kind == "tensor" or (groups.kind == "channel" and not own):
        return Granularity("tensor", -1, groups.group_size)
    if len(own) == len(shape) - 1 and own:  # A scale for each weight.
        return Granularity("group", (), 1)
    return Granularity(groups.kind, own, groups.group_size)


def _scales(scales: Any, packed: Quantized | Levelled, axis: int) -> np.ndarray:
    """`(layers, groups, channels)` of a layer, from `(groups, channels)` of the leaf."""
    scales, shape, groups = np.asarray(scales), packed.shape, packed.groups
    axes, layers, count = groups.axes(packed.shape), packed.shape[axis], scales.shape[0]
    if axis in axes:
        split = scales.reshape(count, *(shape[a] for a in axes))
        found = np.moveaxis(split, 1 + axes.index(axis), 0).reshape(layers, count, -1)
    elif count == 1:
        found = _repeated(scales, layers)
    else:
        inside = [a for a in range(len(shape)) if a not in axes]
        fan = int(np.prod([shape[a] for a in inside[1:]], dtype=np.int64))
        if inside[0] != axis or fan % groups.group_size:
            raise TransformError(
                f"groups of {groups.group_size} weights cross the layers of a leaf of {shape}; "
                f"quantize with layers={axis}"
            )
        found = scales.reshape(layers, count // layers, -1)
    if _own_groups(groups, shape, axis) == Granularity("group", (), 1):
        found = found.reshape(layers, -1, 1)
    return found
