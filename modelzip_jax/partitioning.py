"""Transforms by leaf path: `only` and `partition`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.packed import is_packed
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Encoded, Transform
from modelzip_jax.tree import Leaf, Static

__all__ = ["Partition", "only", "partition"]

PyTree = Any


@recordable
@dataclasses.dataclass(frozen=True)
class Partition(Transform):
    """Each leaf goes to the transform of the first pattern that matches it.

    parts: `(label, transform)` pairs. labels: `(pattern, label)` pairs, in order of precedence.
    min_ndim: leaves of fewer axes are left alone. floating: others than floating-point are, too.
    See `only` and `partition`.
    """

    parts: tuple[tuple[str, Transform], ...]
    labels: tuple[tuple[str, str], ...]
    min_ndim: int = 0
    floating: bool = False

    @property
    def leafwise(self) -> bool:
        return all(part.leafwise for _, part in self.parts)

    def _check(self, leaves: list[Leaf]) -> None:
        trees.require_matches([pattern for pattern, _ in self.labels], [leaf.name for leaf in leaves])

    def _place(self, leaf: Leaf) -> int:
        label = next((label for pattern, label in self.labels if trees.matches(pattern, leaf.name)), None)
        if label is None or leaf.ndim < self.min_ndim or (self.floating and not leaf.floating):
            return -1
        return [name for name, _ in self.parts].index(label)

    def _ask(self, method: str, leaves: list[Leaf]) -> list[bool]:
        """A question about each leaf, put to the part that it belongs to."""
        answers = [False] * len(leaves)
        self._check(leaves)
        places = [self._place(leaf) for leaf in leaves]
        for index, (_, part) in enumerate(self.parts):
            where = [i for i, place in enumerate(places) if place == index]
            for i, yes in zip(where, getattr(part, method)([leaves[i] for i in where]), strict=True):
                answers[i] = yes
        return answers

    def selects(self, leaves: list[Leaf]) -> list[bool]:
        return self._ask("selects", leaves)

    def ends(self, leaves: list[Leaf]) -> list[bool]:
        return self._ask("ends", leaves)

    def _split(self, tree: PyTree, labels: PyTree) -> list[PyTree]:
        """One tree a part (and a last one for leaves of no part), others being `UNSELECTED`."""
        found, treedef = jax.tree.flatten(labels, is_leaf=_is_label)
        places = [*range(len(self.parts)), -1]
        return [trees.select(tree, [x.value == i for x in found], treedef) for i in places]

    def _join(self, split: list[PyTree], labels: PyTree) -> PyTree:
        found, treedef = jax.tree.flatten(labels, is_leaf=_is_label)
        parts = [treedef.flatten_up_to(tree) for tree in split]
        return treedef.unflatten([parts[x.value][i] for i, x in enumerate(found)])

    def _per_part(self, method: str, encoded: Encoded, inner: PyTree) -> PyTree:
        labels, states = encoded.state
        values, inners = self._split(encoded.values, labels), self._split(inner, labels)
        out = [
            getattr(part, method)(v, e, s, i)
            for (_, part), v, e, s, i in zip(
                self.parts, values[:-1], encoded.extras, states, inners[:-1], strict=True
            )
        ]
        return self._join([*out, inners[-1]], labels)

    def _extra(self, extra: dict[str, Any], labels: PyTree, values: list[PyTree]) -> list[dict[str, Any]]:
        """`extra` for each part: trees that follow the weights are split as they are.

        Leaves of other parts are frozen to a part, as those outside of all are.
        """
        split = {
            name: self._split(extra[name], labels)
            for name in ("grads", "importance", "scores", "stats", "support")
            if extra.get(name) is not None
        }
        sizes = [sum(jnp.size(x) for x in jax.tree.leaves(part)) for part in values]
        frozen = extra.get("frozen", 0) + sum(sizes)
        return [
            {**extra, "frozen": frozen - sizes[i], **{name: t[i] for name, t in split.items()}}
            for i in range(len(self.parts))
        ]

    def init(self, values: PyTree, **extra: Any) -> Encoded:
        treedef, leaves = jax.tree.structure(values), trees.outlines(values)
        # Whoever left leaves out has asked `selects`, which checks the patterns, about all of them.
        if not trees.has_unselected(values):
            self._check(leaves)
        labels = treedef.unflatten([Static(self._place(leaf)) for leaf in leaves])
        split = self._split(values, labels)
        extras_for = self._extra(extra, labels, split)
        encoded = [
            part.init(v, **x) for (_, part), v, x in zip(self.parts, split[:-1], extras_for, strict=True)
        ]
        joined = self._join([*(e.values for e in encoded), split[-1]], labels)
        extras, states = tuple(e.extras for e in encoded), tuple(e.state for e in encoded)
        return Encoded(joined, extras, (labels, states))

    def decode(self, values: PyTree, extras: PyTree, state: PyTree) -> PyTree:
        labels, states = state
        split = self._split(values, labels)
        out = [
            part.decode(v, e, s)
            for (_, part), v, e, s in zip(self.parts, split[:-1], extras, states, strict=True)
        ]
        return self._join([*out, split[-1]], labels)

    def update(self, values: PyTree, extras: PyTree, state: PyTree, **extra: Any) -> Encoded:
        labels, states = state
        split = self._split(values, labels)
        out = [
            part.update(v, e, s, **x)
            for (_, part), v, e, s, x in zip(
                self.parts, split[:-1], extras, states, self._extra(extra, labels, split), strict=True
            )
        ]
        unchanged = all(new.values is old for new, old in zip(out, split, strict=False))
        joined = values if unchanged else self._join([*(e.values for e in out), split[-1]], labels)
        return Encoded(joined, tuple(e.extras for e in out), (labels, tuple(e.state for e in out)))

    def _linear(self, method: str, values: PyTree, state: PyTree) -> PyTree:
        labels, states = state
        split = self._split(values, labels)
        out = [
            getattr(part, method)(v, s)
            for (_, part), v, s in zip(self.parts, split[:-1], states, strict=True)
        ]
        return self._join([*out, split[-1]], labels)

    def analysis(self, values: PyTree, state: PyTree) -> PyTree:
        return self._linear("analysis", values, state)

    def synthesis(self, values: PyTree, state: PyTree) -> PyTree:
        return self._linear("synthesis", values, state)

    def support(self, values: PyTree, state: PyTree, before: PyTree | None) -> PyTree | None:
        labels, states = state
        every = jax.tree.map(lambda x: jnp.ones(jnp.shape(x), bool), values)
        split, known = self._split(values, labels), self._split(every if before is None else before, labels)
        found = [
            part.support(v, s, None if before is None else b)
            for (_, part), v, s, b in zip(self.parts, split[:-1], states, known[:-1], strict=True)
        ]
        if before is None and all(f is None for f in found):
            return None
        full = self._split(every, labels)
        masks = [full[i] if f is None else f for i, f in enumerate(found)]
        return self._join([*masks, known[-1]], labels)

    def pack(self, values: PyTree, extras: PyTree, state: PyTree, inner: PyTree) -> PyTree:
        return self._per_part("pack", Encoded(values, extras, state), inner)

    def rate(self, values: PyTree, extras: PyTree, state: PyTree, inner: PyTree) -> PyTree:
        return self._per_part("rate", Encoded(values, extras, state), inner)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        treedef = jax.tree.structure(packed, is_leaf=is_packed)
        leaves = trees.outlines(packed, is_packed)
        labels = treedef.unflatten([Static(self._place(leaf)) for leaf in leaves])
        split = self._split(packed, labels)
        resumed = [part.resume(p) for (_, part), p in zip(self.parts, split[:-1], strict=True)]
        extras, states, inner = zip(*resumed, strict=True) if resumed else ((), (), ())
        return extras, (labels, states), self._join([*inner, split[-1]], labels)

    def metrics(self, values: PyTree, extras: PyTree, state: PyTree) -> dict[str, jax.Array]:
        labels, states = state
        split = self._split(values, labels)
        found: dict[str, jax.Array] = {}
        for (label, part), v, e, s in zip(self.parts, split[:-1], extras, states, strict=True):
            prefix = f"{label}:" if len(self.parts) > 1 else ""
            found.update({prefix + name: x for name, x in part.metrics(v, e, s).items()})
        return found


def _is_label(x: Any) -> bool:
    return isinstance(x, Static)


def only(
    pattern: str | tuple[str, ...], transform: Transform, *, min_ndim: int = 0, floating: bool = False
) -> Partition:
    """Applies a transform to the leaves whose path matches; the others are left alone.

    Args:
      pattern: a path pattern, or several: `*` stays within a segment, `**` crosses.
      transform: what to apply. A transform over the whole tree (a global threshold) sees the
        matching leaves together.
      min_ndim: matching leaves of fewer axes are left alone: 2 for matrices and kernels only.
      floating: leave matching integer leaves alone, too; otherwise transforms refuse them.

    Raises (at `init`):
      PatternError: a pattern matches nothing; the message lists the paths.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> t = mz.only("**/kernel", mz.prune(sparsity=0.5))
    >>> t.decode(*t.init({"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array([1.0, 2.0])}))
    {'bias': Array([1., 2.], dtype=float32), 'kernel': Array([0., 2.], dtype=float32)}
    """
    patterns = (pattern,) if isinstance(pattern, str) else tuple(pattern)
    if not patterns or not all(isinstance(p, str) for p in patterns):
        raise TransformError(f"only() takes a path pattern or a tuple of them, not {pattern!r}")
    if not isinstance(transform, Transform):
        raise TransformError(f"only() takes a transform, not {transform!r}")
    return Partition((("selected", transform),), tuple((p, "selected") for p in patterns), min_ndim, floating)


def partition(
    transforms: Mapping[str, Transform],
    labels: Mapping[str, str],
    *,
    min_ndim: int = 0,
    floating: bool = False,
) -> Partition:
    """Applies to each leaf the transform of its label; what has no label is left alone.

    Args:
      transforms: label → transform; a transform sees all leaves of its label together.
      labels: path pattern → label; the first pattern that matches a leaf decides.
      min_ndim: leaves of fewer axes are left alone.
      floating: integer leaves are left alone, too; otherwise transforms refuse them.

    Raises:
      TransformError: a label has no transform.

    >>> import modelzip_jax as mz
    >>> t = mz.partition({"fine": mz.quantize(bits=8), "coarse": mz.quantize(bits=2)},
    ...                  {"head/*": "fine", "**/kernel": "coarse"})
    >>> t.labels
    (('head/*', 'fine'), ('**/kernel', 'coarse'))
    """
    for part in transforms.values():
        if not isinstance(part, Transform):
            raise TransformError(f"partition() takes transforms, not {part!r}")
    missing = sorted(set(labels.values()) - set(transforms))
    if missing:
        raise TransformError(
            f"no transform for the labels {missing}; there are transforms for {sorted(transforms)}"
        )
    return Partition(tuple(transforms.items()), tuple(labels.items()), min_ndim, floating)
