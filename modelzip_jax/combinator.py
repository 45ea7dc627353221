"""Transforms made of others, and the questions that are put to any transform about leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.transform import Context, Encoded, Transform
from modelzip_jax.tree import Leaf, PyTree

__all__ = ["Combinator", "check_transform", "ends", "outside", "selected", "selects", "support_of"]


class Combinator(Transform):
    """A transform made of others: what it encodes and makes symbols of is a question of each leaf."""

    def selects(self, leaves: list[Leaf]) -> list[bool]:
        """Which of the leaves a part encodes."""
        raise TypeError(f"{type(self).__name__} defines no selects()")

    def ends(self, leaves: list[Leaf]) -> list[bool]:
        """Which of the leaves a part makes symbols of."""
        raise TypeError(f"{type(self).__name__} defines no ends()")


def selects(transform: Transform, leaves: list[Leaf]) -> list[bool]:
    """Which of the leaves a transform encodes.

    >>> import modelzip_jax as mz
    >>> selects(mz.only("w", mz.identity()), [Leaf("w", 2), Leaf("b", 1)])
    [True, False]
    """
    return transform.selects(leaves) if isinstance(transform, Combinator) else [True] * len(leaves)


def ends(transform: Transform, leaves: list[Leaf]) -> list[bool]:
    """Which of the leaves a transform makes symbols of, so that nothing can encode them further."""
    if isinstance(transform, Combinator):
        return transform.ends(leaves)
    return [getattr(transform, "terminal", False)] * len(leaves)  # A loaded recipe may have an Opaque part.


def selected(transform: Transform, params: PyTree) -> PyTree:
    """`params` with `UNSELECTED` where the transform does not encode the leaf."""
    return trees.select(params, selects(transform, trees.outlines(params)), jax.tree.structure(params))


def support_of(transform: Transform, encoded: Encoded) -> PyTree | None:
    """Which latents reach the weights: a boolean mask a leaf, or None, if all do."""
    return transform.follow(encoded, Context()).support if transform.hides else None


def outside(params: PyTree, keep: Sequence[bool]) -> int:
    """How many elements the leaves have that a transform does not encode: `frozen` of a `Context`."""
    return sum(int(np.size(x)) for x, chosen in zip(jax.tree.leaves(params), keep, strict=True) if not chosen)


def check_transform(value: Any, where: str) -> None:
    """Raises `TransformError` unless the value is a transform.

    >>> import modelzip_jax as mz
    >>> check_transform(mz.quantize, "chain()")
    Traceback (most recent call last):
    modelzip_jax.errors.TransformError: chain() takes a transform, not the function quantize: call it, quantize(...)
    """
    if isinstance(value, Transform):
        return
    if isinstance(value, type) or (callable(value) and hasattr(value, "__name__")):
        raise TransformError(
            f"{where} takes a transform, not the function {value.__name__}: call it, {value.__name__}(...)"
        )
    raise TransformError(f"{where} takes a transform such as mz.quantize(bits=4), not {value!r:.200}")
