"""Sums of packed arrays, rounded alike in every program, and their stored form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.packed import PackedArray, packed_kind, static

__all__ = ["Summed", "kept_apart", "rounded_sum"]


@jax.custom_jvp
def kept_apart(x: jax.Array) -> jax.Array:
    """The same finite numbers, which no compiler makes one with the product that they come from.

    XLA contracts a product and the sum after it into one operation that rounds once, in one program and not in another,
    and drops barriers and precisions before it does. Between a product and a sum that are clipped, it cannot.

    >>> kept_apart(jnp.array([1.0, -2.0]))
    Array([ 1., -2.], dtype=float32)
    """
    largest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -largest, largest)


@kept_apart.defjvp
def _kept_apart_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    return kept_apart(primals[0]), tangents[0]


def rounded_sum(terms: Sequence[jax.Array], dtype: str) -> jax.Array:
    """The sum from the first term to the last, each partial sum rounded, converted at the end."""
    total = terms[0]
    for term in terms[1:]:
        total = kept_apart(total) + kept_apart(term)
    return total.astype(dtype)


@packed_kind("sum")
class Summed(PackedArray):
    """`left + right`, each rounded before, then converted to `dtype`; `left` alone where `right` is None.

    Of three terms, `left` is the sum of the first two.
    """

    since = 4

    left: PackedArray
    right: PackedArray | None
    shape: tuple[int, ...] = static()
    dtype: str = static()

    @staticmethod
    def of(terms: Sequence[PackedArray], shape: tuple[int, ...], wide: str, dtype: str) -> Summed:
        """The sum of one or more; `wide` is the dtype in which partial sums are kept."""
        left: PackedArray = terms[0]
        for term in terms[1:-1]:
            left = Summed(left, term, shape, wide)
        return Summed(left, terms[-1] if len(terms) > 1 else None, shape, dtype)

    def terms(self, count: int) -> tuple[PackedArray, ...]:
        """The inverse of `of`, for `count` terms."""
        if count == 1:
            return (self.left,)
        left: Any = self.left
        return (*(left.terms(count - 1) if count > 2 else (left,)), self.right)

    def check(self) -> None:
        super().check()
        for term in (self.left, self.right):
            if term is not None and tuple(term.shape) != tuple(self.shape):
                raise ValueError(f"a term of shape {term.shape} in a sum of {self.shape}")

    def unpack(self) -> jax.Array:
        return rounded_sum([x.unpack() for x in (self.left, self.right) if x is not None], self.dtype)

    def unpack_host(self) -> np.ndarray | None:
        terms = [x.unpack_host() for x in (self.left, self.right) if x is not None]
        found = [x for x in terms if x is not None]
        if len(found) < len(terms):
            return None
        total = found[0]
        if len(found) > 1:
            largest = np.finfo(total.dtype).max
            total = np.clip(total, -largest, largest) + np.clip(found[1], -largest, largest)
            if any(map(_has_subnormal, (*found, total))):
                return None
        return total.astype(jnp.dtype(self.dtype))


def _has_subnormal(x: np.ndarray) -> bool:
    """Whether there are numbers that XLA takes for zeros, on some devices."""
    size = np.abs(x)
    return bool(np.any((size < np.finfo(x.dtype).tiny) & (size > 0)))
