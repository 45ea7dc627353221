"""Transforms by leaf path: `only` and `partition`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.combinator import Combinator, check_transform, ends, reads, selects, unknown
from modelzip_jax.errors import PatternError, TransformError
from modelzip_jax.packed import is_packed
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Context, Encoded, Transform
from modelzip_jax.tree import Leaf, PyTree, Static

__all__ = ["Partition", "only", "partition"]


@recordable
@dataclasses.dataclass(frozen=True)
class Partition(Combinator):
    """Each leaf goes to the transform of the first pattern that matches it.

    parts: `(label, transform)` pairs. labels: `(pattern, label)` pairs, in order of precedence.
    min_ndim: leaves of fewer axes are left alone. floating: others than floating-point are, too.
    See `only` and `partition`.
    """

    parts: tuple[tuple[str, Transform], ...]
    labels: tuple[tuple[str, str], ...]
    min_ndim: int = 0
    floating: bool = False

    def __post_init__(self) -> None:
        known = [name for name, _ in self.parts]
        unknown = [label for _, label in self.labels if label not in known]
        if unknown or len(set(known)) < len(known):
            raise TransformError(f"labels {unknown[:3]} of no part, or parts of one label, among {known[:8]}")

    @property
    def leafwise(self) -> bool:
        return all(part.leafwise for _, part in self.parts)

    @property
    def moves_latents(self) -> bool:
        return any(part.moves_latents for _, part in self.parts)

    @property
    def hides(self) -> bool:
        return any(part.hides for _, part in self.parts)

    @property
    def remasks(self) -> bool:
        return any(part.remasks for _, part in self.parts)

    def selects(self, leaves: list[Leaf], whole: bool) -> list[bool]:
        return self._ask(selects, leaves, whole)

    def ends(self, leaves: list[Leaf], whole: bool) -> list[bool]:
        return self._ask(ends, leaves, whole)

    def reads(self, leaves: list[Leaf], field: str) -> list[bool]:
        return self._ask(lambda part, own, whole: reads(part, own, field), leaves, True)

    def _check(self, leaves: list[Leaf]) -> None:
        patterns, names = [pattern for pattern, _ in self.labels], [leaf.name for leaf in leaves]
        require_matches(patterns, names)
        deciding = {next((p for p in patterns if matches(p, name)), None) for name in names}
        for pattern, label in self.labels:
            if pattern in deciding:
                continue
            name = next(name for name in names if matches(pattern, name))
            first = next(p for p in patterns if matches(p, name))
            if dict(self.labels)[first] != label:
                raise PatternError(
                    f"pattern {pattern!r} decides nothing: the first pattern that matches a leaf does, and {first!r} "
                    f"stands before it; put {pattern!r} first"
                )

    def _place(self, leaf: Leaf) -> int:
        label = next((label for pattern, label in self.labels if matches(pattern, leaf.name)), None)
        if label is None or leaf.ndim < self.min_ndim or (self.floating and not leaf.floating):
            return -1
        return [name for name, _ in self.parts].index(label)

    def _ask(self, question: Any, leaves: list[Leaf], whole: bool) -> list[bool]:
        """A question about each leaf, put to the part that it belongs to."""
        answers = [False] * len(leaves)
        if whole:
            self._check(leaves)
        places = [self._place(leaf) for leaf in leaves]
        for index, (_, part) in enumerate(self.parts):
            where = [i for i, place in enumerate(places) if place == index]
            for i, yes in zip(where, question(part, [leaves[i] for i in where], whole), strict=True):
                answers[i] = yes
        return answers

    def _labels(self, tree: PyTree) -> PyTree:
        """The index of each leaf's part (static), -1 for none."""
        treedef = jax.tree.structure(tree, is_leaf=is_packed)
        return treedef.unflatten([Static(self._place(leaf)) for leaf in trees.outlines(tree, is_packed)])

    def _split(self, tree: PyTree, labels: PyTree) -> list[PyTree]:
        """One tree a part (and a last one for leaves of no part), others being `UNSELECTED`."""
        found, treedef = jax.tree.flatten(labels, is_leaf=_is_label)
        places = [*range(len(self.parts)), -1]
        return [trees.select(tree, [x.value == i for x in found], treedef) for i in places]

    def _join(self, split: list[PyTree], labels: PyTree) -> PyTree:
        found, treedef = jax.tree.flatten(labels, is_leaf=_is_label)
        parts = [treedef.flatten_up_to(tree) for tree in split]
        return treedef.unflatten([parts[x.value][i] for i, x in enumerate(found)])

    def _each(self, encoded: Encoded) -> list[tuple[Transform, Encoded]]:
        """Each part with what it has encoded."""
        labels, states = encoded.state
        latents = self._split(encoded.latents, labels)[:-1]
        rows = zip(self.parts, latents, encoded.offsets, states, strict=True)
        return [(part, Encoded(*own)) for (_, part), *own in rows]

    def _around(self, encoded: Encoded, outputs: list[PyTree], inner: PyTree) -> PyTree:
        """The parts' outputs as one tree, in which leaves of no part come from `inner`."""
        labels = encoded.state[0]
        return self._join([*outputs, self._split(inner, labels)[-1]], labels)

    def _contexts(self, context: Context, labels: PyTree, weights: PyTree) -> list[Context]:
        """A context for each part, and a last one: leaves of other parts are frozen to it, as those outside of all."""
        split = {name: self._split(tree, labels) for name, tree in context.trees().items()}
        sizes = [sum(jnp.size(x) for x in jax.tree.leaves(part)) for part in self._split(weights, labels)]
        frozen = context.frozen + sum(sizes)
        return [
            context.replace(frozen=frozen - size, **{name: parts[i] for name, parts in split.items()})
            for i, size in enumerate(sizes)
        ]

    def init(self, weights: PyTree, context: Context) -> Encoded:
        # Whoever left leaves out has asked `selects`, which checks the patterns, about all of them.
        if jax.tree.leaves(weights) and not trees.has_absent(weights):
            self._check(trees.outlines(weights))
        labels = self._labels(weights)
        split = self._split(weights, labels)
        rows = zip(self.parts, split, self._contexts(context, labels, weights), strict=False)
        each = [part.init(own, told) for (_, part), own, told in rows]
        latents = self._join([*(e.latents for e in each), split[-1]], labels)
        return Encoded(latents, tuple(e.offsets for e in each), (labels, tuple(e.state for e in each)))

    def decode(self, encoded: Encoded) -> PyTree:
        return self._around(encoded, [p.decode(e) for p, e in self._each(encoded)], encoded.latents)

    def update(self, encoded: Encoded, context: Context) -> Encoded:
        labels, _ = encoded.state
        contexts = self._contexts(context, labels, encoded.latents)
        each = [p.update(e, c) for (p, e), c in zip(self._each(encoded), contexts, strict=False)]
        latents = encoded.latents
        if self.moves_latents:
            latents = self._around(encoded, [e.latents for e in each], latents)
        return Encoded(latents, tuple(e.offsets for e in each), (labels, tuple(e.state for e in each)))

    def relaxed(self, encoded: Encoded) -> PyTree:
        return self._around(encoded, [p.relaxed(e) for p, e in self._each(encoded)], encoded.latents)

    def encode(self, weights: PyTree, encoded: Encoded) -> PyTree:
        split = self._split(weights, encoded.state[0])
        each = zip(self._each(encoded), split, strict=False)
        return self._around(encoded, [p.encode(w, e) for (p, e), w in each], weights)

    def follow(self, encoded: Encoded, context: Context) -> Context:
        labels, _ = encoded.state
        contexts = self._contexts(context, labels, encoded.latents)
        found = [p.follow(e, c) for (p, e), c in zip(self._each(encoded), contexts, strict=False)]
        found = [*found, contexts[-1]]
        latents = self._split(encoded.latents, labels)
        joined = {}
        for name in {name for c in found for name in c.trees()}:
            pairs = zip((c.trees().get(name) for c in found), latents, strict=True)
            joined[name] = self._join([unknown(name, x) if t is None else t for t, x in pairs], labels)
        return context.replace(**{name: joined.get(name) for name in {*context.trees(), *joined}})

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        inners = self._split(inner, encoded.state[0])
        rows = zip(self._each(encoded), inners, strict=False)
        return self._around(encoded, [p.pack(e, i) for (p, e), i in rows], inner)

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        inners = self._split(inner, encoded.state[0])
        rows = zip(self._each(encoded), inners, strict=False)
        return self._around(encoded, [p.rate(e, i) for (p, e), i in rows], inner)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        labels = self._labels(packed)
        split = self._split(packed, labels)
        resumed = [part.resume(p) for (_, part), p in zip(self.parts, split, strict=False)]
        offsets, states, inner = zip(*resumed, strict=True) if resumed else ((), (), ())
        return tuple(offsets), (labels, tuple(states)), self._join([*inner, split[-1]], labels)

    def metrics(self, encoded: Encoded) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        for (label, _), (part, own) in zip(self.parts, self._each(encoded), strict=True):
            prefix = f"{label}:" if len(self.parts) > 1 else ""
            found.update({prefix + name: x for name, x in part.metrics(own).items()})
        return found


def _is_label(x: Any) -> bool:
    return isinstance(x, Static)


def _check_ndim(min_ndim: Any) -> None:
    if isinstance(min_ndim, bool) or not isinstance(min_ndim, int) or min_ndim < 0:
        raise TransformError(f"min_ndim is a number of axes, not {min_ndim!r}")


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
    >>> mz.decoded({"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array([1.0, 2.0])}, t)
    {'bias': Array([1., 2.], dtype=float32), 'kernel': Array([0., 2.], dtype=float32)}
    """
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    if (
        not isinstance(patterns, tuple | list)
        or not patterns
        or not all(isinstance(p, str) for p in patterns)
    ):
        raise TransformError(
            "only() takes a path pattern or a tuple of them first, mz.only('**/kernel', transform), not "
            f"{pattern!r:.100}"
        )
    _check_ndim(min_ndim)
    check_transform(transform, "only()")
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
      TransformError: a label has no transform, or a transform no pattern. PatternError (at `init`): a pattern matches
        nothing, or other patterns that stand before it decide about all that it matches.

    >>> import modelzip_jax as mz
    >>> t = mz.partition({"fine": mz.quantize(bits=8), "coarse": mz.quantize(bits=2)},
    ...                  {"head/*": "fine", "**/kernel": "coarse"})
    >>> t.labels
    (('head/*', 'fine'), ('**/kernel', 'coarse'))
    """
    pairs = labels.items() if isinstance(labels, Mapping) else [(labels, labels)]
    if not isinstance(transforms, Mapping) or not all(isinstance(x, str) for pair in pairs for x in pair):
        raise TransformError(
            "partition() takes label → transform and path pattern → label, such as {'a': mz.quantize(8)} and "
            f"{{'**/kernel': 'a'}}, not {labels!r:.100}"
        )
    _check_ndim(min_ndim)
    for part in transforms.values():
        check_transform(part, "partition()")
    missing = sorted(set(labels.values()) - set(transforms))
    if missing:
        raise TransformError(
            f"no transform for the labels {missing}; there are transforms for {sorted(transforms)}"
        )
    unused = sorted(set(transforms) - set(labels.values()))
    if unused:
        raise TransformError(f"no pattern has the labels {unused}, so that their transforms apply to nothing")
    return Partition(tuple(transforms.items()), tuple(labels.items()), min_ndim, floating)
