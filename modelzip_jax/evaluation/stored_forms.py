"""How a packed array is stored, in a few words: every kind within every other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from modelzip_jax.masking.masked import Masked
from modelzip_jax.packed import Bits, PackedArray

__all__ = ["describe", "sparsity"]

MASKS = {"bits": "bitmap", "gaps": "gaps"}
AMONG_CODES = "among codes"


def describe(packed: PackedArray, spec: Any = None) -> str:
    """How a packed array is stored, in a few words; with its spec, how the file stores its masks, too.

    >>> import numpy as np
    >>> from modelzip_jax.packed import Dense
    >>> describe(Dense(np.zeros(3), (3,)))
    'lossless'
    """
    told = _FORMS.get(packed.tag)
    words = told(packed) if told else packed.tag
    if packed.mask_field is not None:
        words += _mask_form(packed, spec)
    inner = [describe(value, _spec_of(packed, name, spec)) for name, value in _inner(packed)]
    if len(inner) < 2:
        return " + ".join([words, *inner])
    return f"{words} ({'; '.join(inner)})"


def sparsity(packed: PackedArray) -> float:
    """Share of the values of a leaf, or of what stands for it (coefficients, factors, terms), that masks set to zero.

    >>> import numpy as np
    >>> from modelzip_jax.packed import Dense
    >>> sparsity(Dense(np.zeros(3), (3,)))
    0.0
    """
    inner = [value for _, value in _inner(packed)]
    total = sum(value.size for value in inner)
    within = sum(sparsity(value) * value.size for value in inner) / total if total else 0.0
    if isinstance(packed, Masked) and packed.size:
        # Masks within a mask can only be of the same zeros or of more.
        return max(1.0 - packed.kept / packed.size, within)
    return within


def _quantized(packed: Any) -> str:
    group = f"({packed.group_size})" if packed.granularity == "group" else ""
    sign = "u" if packed.zero is not None else ""
    return f"{sign}int{packed.codes.bits} {packed.granularity}{group}"


def _scaled(packed: Any) -> str:
    rows = "one step" if packed.rows.size == 1 else "steps of rows"
    trellis = f"trellis of {packed.codes.states}" if packed.codes.tag == "trellis" else "integers"
    return f"{trellis}, {rows}" + ("" if packed.columns is None else " and columns")


def _levelled(packed: Any) -> str:
    group = f"({packed.group_size})" if packed.granularity == "group" else ""
    scale = str(packed.scale.dtype).removeprefix("float8_") if packed.scale.dtype.itemsize == 1 else ""
    return f"{len(packed.levels)} levels {packed.granularity}{group}" + (f", {scale} scales" if scale else "")


def _coefficients(packed: Any) -> str:
    kept, of = ("×".join(map(str, shape)) for shape in (packed.corner, packed.view))
    return f"{packed.filter or packed.kind} coefficients" + ("" if kept == of else f" {kept} of {of}")


def _factored(packed: Any) -> str:
    return "no factors" if packed.right is None else f"rank {packed.left.shape[-1]}"


# By tag: what is not imported here, such as a kind of the user's, is told by its tag alone.
_FORMS: dict[str, Callable[[Any], str]] = {
    "dense": lambda packed: "lossless",
    "quantized": _quantized,
    "scaled": _scaled,
    "levels": _levelled,
    "clustered": lambda packed: f"{len(packed.codebook)} values",
    "vectors": lambda packed: "{} vectors of {}".format(*packed.codebook.shape),
    "layers": lambda packed: "{} layers of {} values".format(*packed.codebook.shape),
    "layer_vectors": lambda packed: "{} layers of {} vectors of {}".format(*packed.codebook.shape),
    "masked": lambda packed: "mask",
    "neurons": lambda packed: f"{packed.inner.shape[-1]} neurons for {packed.shape[-1]}",
    "coefficients": _coefficients,
    "factored": _factored,
    "sum": lambda packed: "sum" if packed.right is not None else "alone",
    "linear": lambda packed: "linear transform",
}


def _inner(packed: PackedArray) -> Iterator[tuple[str, PackedArray]]:
    """The fields that hold the packed arrays inside: neither codes nor a mask."""
    for field in dataclasses.fields(packed):  # type: ignore[arg-type]
        value = getattr(packed, field.name)
        is_inner = isinstance(value, PackedArray) and not isinstance(value, Bits)
        if is_inner and field.name not in (packed.mask_field, "codes"):
            yield field.name, value


def _spec_of(packed: PackedArray, name: str, spec: Any) -> Any:
    """The spec of a field: a spec is the tag and then a part for each field."""
    return None if spec is None else spec[1 + _place(packed, name)]


def _place(packed: PackedArray, name: str) -> int:
    return [field.name for field in dataclasses.fields(packed)].index(name)  # type: ignore[arg-type]


def _mask_form(packed: PackedArray, spec: Any) -> str:
    if spec is None:
        return ""
    mask = _spec_of(packed, str(packed.mask_field), spec)
    return f" ({AMONG_CODES if mask is None else MASKS.get(mask[0], mask[0])})"
