"""How a packed array is stored, in a few words: every kind within every other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
    inner = _inner(packed)
    if inner is None:
        return words
    name, value = inner
    return f"{words} + {describe(value, _spec_of(packed, name, spec))}"


def sparsity(packed: PackedArray) -> float:
    """Share of the values of a leaf, or of what stands for it (coefficients, shared neurons), that masks set to zero.

    >>> import numpy as np
    >>> from modelzip_jax.packed import Dense
    >>> sparsity(Dense(np.zeros(3), (3,)))
    0.0
    """
    inner = _inner(packed)
    within = sparsity(inner[1]) if inner else 0.0
    if isinstance(packed, Masked) and packed.size:
        # Masks within a mask can only be of the same zeros or of more.
        return max(1.0 - packed.kept / packed.size, within)
    return within


def _quantized(packed: Any) -> str:
    group = f"({packed.group_size})" if packed.granularity == "group" else ""
    sign = "u" if packed.zero is not None else ""
    return f"{sign}int{packed.codes.bits} {packed.granularity}{group}"


def _levelled(packed: Any) -> str:
    group = f"({packed.group_size})" if packed.granularity == "group" else ""
    scale = str(packed.scale.dtype).removeprefix("float8_") if packed.scale.dtype.itemsize == 1 else ""
    return f"{len(packed.levels)} levels {packed.granularity}{group}" + (f", {scale} scales" if scale else "")


def _coefficients(packed: Any) -> str:
    kept, of = ("×".join(map(str, shape)) for shape in (packed.corner, packed.view))
    return f"{packed.filter or packed.kind} coefficients" + ("" if kept == of else f" {kept} of {of}")


# By tag: what is not imported here, such as a kind of the user's, is told by its tag alone.
_FORMS: dict[str, Callable[[Any], str]] = {
    "dense": lambda packed: "lossless",
    "quantized": _quantized,
    "levels": _levelled,
    "clustered": lambda packed: f"{len(packed.codebook)} values",
    "vectors": lambda packed: "{} vectors of {}".format(*packed.codebook.shape),
    "layers": lambda packed: "{} layers of {} values".format(*packed.codebook.shape),
    "layer_vectors": lambda packed: "{} layers of {} vectors of {}".format(*packed.codebook.shape),
    "masked": lambda packed: "mask",
    "neurons": lambda packed: f"{packed.inner.shape[-1]} neurons for {packed.shape[-1]}",
    "coefficients": _coefficients,
    "linear": lambda packed: "linear transform",
}


def _inner(packed: PackedArray) -> tuple[str, PackedArray] | None:
    """The field that holds the packed array inside, if there is one: neither codes nor a mask."""
    for field in dataclasses.fields(packed):  # type: ignore[arg-type]
        value = getattr(packed, field.name)
        is_inner = isinstance(value, PackedArray) and not isinstance(value, Bits)
        if is_inner and field.name not in (packed.mask_field, "codes"):
            return field.name, value
    return None


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
