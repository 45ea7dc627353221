"""What a header claims to stand for, in bytes of memory, and how much of that a file may claim."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from modelzip_jax.coding.symbols import Spec, stored_dtype
from modelzip_jax.errors import FormatError
from modelzip_jax.packed import Bits, PackedArray, kinds

__all__ = ["allowance", "check_claims", "claimed_bytes"]

FLOOR = 1 << 28
"""Bytes that any file may stand for."""
EXPANSION = 1 << 10
"""Bytes that each byte of the file may stand for beside: trained weights take 2 to 100."""
ITEM = 1 << 13
"""Bytes that each packed kind and each array counts for: objects take memory, and time, too."""
_WIDEST = 8


def allowance(file_size: int) -> int:
    """Bytes that a file of that size may stand for, unless a reader is told another limit.

    >>> allowance(0) >> 20
    256
    """
    return FLOOR + EXPANSION * file_size


def check_claims(specs: list[Spec], names: int, limit: int) -> None:
    """Raises `FormatError` where specs, and names of so many characters, claim more than `limit` bytes."""
    total = names
    for index, spec in enumerate(specs):
        total += claimed_bytes(spec)
        if total > limit:
            raise FormatError(
                f"the first {index + 1} tensors claim {total:,} bytes in memory, beyond the limit of {limit:,}; "
                "if you trust the file, give a larger one in bytes: limit=, or --limit of the command"
            )


def claimed_bytes(spec: Spec) -> int:
    """Bytes that a spec stands for: arrays and codes as they are read, unpacked values, and what lies between.

    Nothing is built. The spec must be one of which `stream_lengths` knows the streams.

    Raises:
      FormatError: a kind with fields out of its bounds.

    >>> claimed_bytes(["dense", [0, "float32", 2, 3], [2, 3]]) - 2 * ITEM
    48
    """
    kind = kinds[spec[0]]
    if kind is Bits:
        return ITEM + int(spec[2])
    try:
        return _claimed(kind, spec)
    except FormatError:
        raise
    except Exception as error:  # Fields that are absent, or something else than they should be.
        raise FormatError(f"packed kind {spec[0]!r}: {error}") from error


def _claimed(kind: type[PackedArray], spec: Spec) -> int:
    total, told = ITEM, {}
    for field, item in zip(dataclasses.fields(kind), spec[1:], strict=True):  # type: ignore[arg-type]
        if field.metadata.get("static"):
            told[field.name] = tuple(item) if isinstance(item, list) else item
            continue
        told[field.name] = item
        if item is not None and item[0] == 0:
            total += ITEM + math.prod(item[2:]) * stored_dtype(item[1]).itemsize
        elif item is not None:
            total += claimed_bytes(item)
    if "shape" in told:
        total += math.prod(told["shape"]) * _width(told)
    count = told.get("count", 0)
    total += count if type(count) is int else 0
    return total + kind.claims(told)


def _width(told: dict[str, Any]) -> int:
    """Bytes of an unpacked value."""
    if "dtype" in told:
        return max(stored_dtype(told["dtype"]).itemsize, 4)
    return stored_dtype(told["array"][1]).itemsize if "array" in told else _WIDEST
