"""Transforms made of others, and the questions that are put to any transform about leaves."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import NonFiniteError, TransformError, TreeError
from modelzip_jax.latents import latent_dtype
from modelzip_jax.naming import nearest_name
from modelzip_jax.search import Search
from modelzip_jax.stacking import check_layer_names
from modelzip_jax.transform import Context, Encoded, Transform
from modelzip_jax.tree import Leaf, PyTree

__all__ = [
    "FROM_DATA",
    "Combinator",
    "OfAllParts",
    "Selected",
    "any_part",
    "check_transform",
    "ends",
    "reads",
    "selected",
    "selects",
    "support_of",
    "told",
    "unknown",
    "wide",
]


class Combinator(Transform):
    """A transform made of others: what it encodes and makes symbols of is a question of each leaf."""

    def selects(self, leaves: list[Leaf], whole: bool) -> list[bool]:
        """Which of the leaves a part encodes; `whole` as in the function."""
        raise TypeError(f"{type(self).__name__} defines no selects()")

    def ends(self, leaves: list[Leaf], whole: bool) -> list[bool]:
        """Which of the leaves a part makes symbols of; `whole` as in the function."""
        raise TypeError(f"{type(self).__name__} defines no ends()")

    def reads(self, leaves: list[Leaf], field: str) -> list[bool]:
        """Of which of the leaves a part needs a field of the context."""
        raise TypeError(f"{type(self).__name__} defines no reads()")


def selects(transform: Transform, leaves: list[Leaf], whole: bool = True) -> list[bool]:
    """Which of the leaves a transform encodes.

    Args:
      leaves: all of the tree, or, if not `whole`, some: of these a path pattern may match none.

    Raises:
      PatternError: a path pattern of it matches none of the whole tree.

    >>> import modelzip_jax as mz
    >>> selects(mz.only("w", mz.identity()), [Leaf("w", 2), Leaf("b", 1)])
    [True, False]
    >>> selects(mz.only("w", mz.identity()), [Leaf("b", 1)], whole=False)
    [False]
    """
    if isinstance(transform, Combinator):
        return transform.selects(leaves, whole)
    if whole:
        check_layer_names(getattr(transform, "layers", ()), [leaf.name for leaf in leaves])
    return [True] * len(leaves)


def ends(transform: Transform, leaves: list[Leaf], whole: bool = True) -> list[bool]:
    """Which of the leaves a transform makes symbols of, so that nothing can encode them further."""
    if isinstance(transform, Combinator):
        return transform.ends(leaves, whole)
    return [getattr(transform, "terminal", False)] * len(leaves)  # A loaded recipe may have an Opaque part.


def any_part(answers: list[list[bool]], count: int) -> list[bool]:
    """For each of `count` leaves whether any part has said so.

    >>> any_part([[True, False, False], [False, False, True]], 3), any_part([], 2)
    ([True, False, True], [False, False])
    """
    return [any(column) for column in zip(*answers, strict=True)] if answers else [False] * count


def reads(transform: Transform, leaves: list[Leaf], field: str) -> list[bool]:
    """Of which of the leaves a transform needs a field of the context: what its strategies name as their `needs`.

    >>> import modelzip_jax as mz
    >>> t = mz.chain(mz.only("w", mz.prune(mz.scores.wanda(), sparsity=0.5)), mz.quantize(4))
    >>> reads(t, [Leaf("w", 2), Leaf("b", 1)], "stats")
    [True, False]
    """
    if isinstance(transform, Combinator):
        return transform.reads(leaves, field)
    return [field in _needs(transform)] * len(leaves)


def _needs(x: Any) -> set[str]:
    """The `needs` of a transform and of all strategies in it."""
    own = getattr(x, "needs", ())
    found = set(own) if isinstance(own, tuple) else set()
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        for f in dataclasses.fields(x):
            found |= _needs(getattr(x, f.name))
    elif isinstance(x, tuple | list):
        for each in x:
            found |= _needs(each)
    return found


def _classes_in(x: Any) -> set[type]:
    """The classes of a transform and of all that it is made of."""
    if isinstance(x, tuple | list):
        return {cls for each in x for cls in _classes_in(each)}
    if not dataclasses.is_dataclass(x) or isinstance(x, type):
        return set()
    return {type(x)} | {cls for f in dataclasses.fields(x) for cls in _classes_in(getattr(x, f.name))}


class Selected(NamedTuple):
    """What a transform encodes of params, and what it is told: what `init` takes.

    weights: the params with `UNSELECTED` where the transform leaves a leaf alone. context: of the same leaves.
    keep: for each leaf of the params whether it is encoded.
    """

    weights: PyTree
    context: Context
    keep: list[bool]


def selected(transform: Transform, params: PyTree, given: Mapping[str, Any], where: str) -> Selected:
    """The leaves that a transform encodes, with what the caller passed by name for them.

    Args:
      params: plain arrays. given: fields of `Context`, and others. where: the caller's name in messages.

    Raises:
      PatternError: a path pattern of the transform matches nothing.
      TreeError: what is given is no tree like the params.
    """
    keep = selects(transform, trees.outlines(params))
    weights = trees.select(params, keep, jax.tree.structure(params))
    _check_given(transform, given, weights, where)
    return Selected(weights, told(params, keep, given, where), keep)


def _check_given(transform: Transform, given: Mapping[str, Any], weights: PyTree, where: str) -> None:
    """Refuses names that nothing can read or that are nearly those of the context, and trees of other shapes."""
    fields = [f.name for f in dataclasses.fields(Context)]
    alone = all(cls.__module__.startswith("modelzip_jax.") for cls in _classes_in(transform))
    for name in sorted(set(given) - set(fields) - _needs(transform)):
        if alone or difflib.get_close_matches(name, fields, n=1, cutoff=0.7):
            raise TransformError(
                f"{where} was given {name!r}, which nothing reads; {nearest_name(name, fields)}"
            )
    for field in _NUMBERS:
        if given.get(field) is None:
            continue
        # Where weights are absent, so is what is aligned with them.
        tree = trees.aligned(given[field], weights, f"{field}= of {where}")
        for (name, x), w in zip(trees.named_leaves(tree), jax.tree.leaves(weights), strict=False):
            if jnp.shape(x) != jnp.shape(w):
                raise TreeError(
                    f"{field}= of {where} has the shape {jnp.shape(x)} at leaf {name!r}, the leaf {jnp.shape(w)}"
                )
            if field == "importance" and not _weighs(x):
                raise NonFiniteError(
                    f"importance= of {where} has NaN, infinite or negative values at leaf {name!r}: it weighs squared "
                    "errors"
                )


_NUMBERS = ("grads", "scores", "importance")
"""Fields of the context that have a number for each weight."""
FROM_DATA = ("stats", *_NUMBERS)
"""Fields of the context that come of running the network, which a transform may need beside the weights."""


def _weighs(x: Any) -> bool:
    """Whether a leaf of importances is one; True of a tracer, which nobody can look at."""
    if isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True):
        return True
    seen = np.asarray(x)
    return bool(np.isfinite(seen.astype(np.float64)).all() and seen.min(initial=0) >= 0)


def told(params: PyTree, keep: Sequence[bool], given: Mapping[str, Any], where: str) -> Context:
    """What the caller passed by name, of the leaves that are encoded; see `selected`."""
    context = Context.of(given)
    aligned = {n: trees.aligned(tree, params, f"{n}= of {where}") for n, tree in context.trees().items()}
    sizes = zip(jax.tree.leaves(params), keep, strict=True)
    frozen = sum(int(np.size(x)) for x, chosen in sizes if not chosen)
    context = context.replace(**aligned, frozen=frozen).select(keep, jax.tree.structure(params))
    return context.replace(**{name: wide(getattr(context, name)) for name in _NUMBERS if name in aligned})


def wide(tree: PyTree) -> PyTree:
    """Half precision as float32: squares of gradients would underflow, and latents are not of half precision either.

    >>> g = jnp.float16(2.0**-14)
    >>> float(g * g), float(wide({"w": g})["w"] ** 2) == 2.0**-28
    (0.0, True)
    """

    def widened(x: Any) -> Any:
        dtype = jnp.result_type(x)
        short = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
        return x.astype(latent_dtype(dtype)) if short else x

    return jax.tree.map(widened, tree)


def support_of(transform: Transform, encoded: Encoded) -> PyTree | None:
    """Which latents reach the weights: a boolean mask a leaf, or None, if all do."""
    return transform.follow(encoded, Context()).support if transform.hides else None


def unknown(name: str, latents: PyTree) -> PyTree:
    """A tree of a `Context` of which a transform says nothing about its latents: none is hidden, all matter alike.

    >>> unknown("support", {"w": jnp.zeros(2)})
    {'w': Array([ True,  True], dtype=bool)}
    """
    if name == "support":
        return jax.tree.map(lambda x: jnp.ones_like(x, bool), latents)
    if name == "importance":
        return jax.tree.map(jnp.ones_like, latents)
    return jax.tree.map(lambda _: trees.UNSELECTED, latents)


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
    if isinstance(value, Search):
        raise TransformError(
            f"{where} takes a transform, not a {type(value).__name__}, which finds one for a whole model: give it to "
            "mz.compress() itself (mz.smallest has only=, keep= and before=), and go on with packed.transform"
        )
    text = repr(value)
    shown = text if len(text) < 80 and "\n" not in text else f"a {type(value).__name__}"
    raise TransformError(f"{where} takes a transform such as mz.quantize(bits=4), not {shown}")


class OfAllParts(Combinator):
    """One whose parts all see the same leaves: what it does to a leaf, any of them does."""

    parts: tuple[Transform, ...]

    @property
    def leafwise(self) -> bool:
        return all(part.leafwise for part in self.parts)

    @property
    def moves_latents(self) -> bool:
        return any(part.moves_latents for part in self.parts)

    @property
    def hides(self) -> bool:
        return any(part.hides for part in self.parts)

    @property
    def remasks(self) -> bool:
        return any(part.remasks for part in self.parts)

    def selects(self, leaves: list[Leaf], whole: bool) -> list[bool]:
        return any_part([selects(part, leaves, whole) for part in self.parts], len(leaves))

    def ends(self, leaves: list[Leaf], whole: bool) -> list[bool]:
        return any_part([ends(part, leaves, whole) for part in self.parts], len(leaves))

    def reads(self, leaves: list[Leaf], field: str) -> list[bool]:
        return any_part([reads(part, leaves, field) for part in self.parts], len(leaves))
