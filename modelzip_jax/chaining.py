"""Transforms in sequence."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Encoded, Transform
from modelzip_jax.tree import Leaf

__all__ = ["Chain", "chain"]

PyTree = Any


@recordable
@dataclasses.dataclass(frozen=True)
class Chain(Transform):
    """Transforms in sequence. See `chain`."""

    parts: tuple[Transform, ...]

    def __post_init__(self) -> None:
        for part in self.parts[:-1]:
            if getattr(part, "terminal", False):  # a loaded recipe may have an Opaque part
                raise TransformError(
                    f"{type(part).__name__} makes symbols, so nothing can follow it in a chain; "
                    "put it last: mz.chain(mz.prune(...), mz.quantize(...))"
                )

    def _domains(self, values: PyTree, state: PyTree) -> list[PyTree]:
        """The values that each part sees: linear synthesis of everything after it."""
        domains = [values]
        for part, s in zip(self.parts[:0:-1], state[:0:-1], strict=True):
            domains.append(part.synthesis(domains[-1], s))
        return domains[::-1]

    def init(self, values: PyTree, **extra: Any) -> Encoded:
        extras, states = [], []
        ended: PyTree = jax.tree.map(lambda _: False, values)
        for part in self.parts:
            ended = _follow(part, values, ended)
            values, e, s = part.init(values, **extra)
            ended = jax.tree.map(_spread, ended, values)
            extra = _follow_values(part, values, s, extra)
            extras.append(e)
            states.append(s)
        return Encoded(values, tuple(extras), tuple(states))

    def decode(self, values: PyTree, extras: PyTree, state: PyTree) -> PyTree:
        for part, e, s in zip(reversed(self.parts), reversed(extras), reversed(state), strict=True):
            values = part.decode(values, e, s)
        return values

    def update(self, values: PyTree, extras: PyTree, state: PyTree, **extra: Any) -> Encoded:
        new_extras, new_states = [], []
        domains = self._domains(values, state)
        for index, (part, e, s) in enumerate(zip(self.parts, extras, state, strict=True)):
            after, e, s = part.update(domains[index], e, s, **extra)
            if after is not domains[index]:
                domains[index] = after
                for later in range(index + 1, len(self.parts)):
                    domains[later] = self.parts[later].analysis(domains[later - 1], state[later])
            extra = _follow_values(part, domains[index], s, extra)
            new_extras.append(e)
            new_states.append(s)
        return Encoded(domains[-1], tuple(new_extras), tuple(new_states))

    def analysis(self, values: PyTree, state: PyTree) -> PyTree:
        for part, s in zip(self.parts, state, strict=True):
            values = part.analysis(values, s)
        return values

    def support(self, values: PyTree, state: PyTree, before: PyTree | None) -> PyTree | None:
        for part, v, s in zip(self.parts, self._domains(values, state), state, strict=True):
            before = part.support(v, s, before)
        return before

    def synthesis(self, values: PyTree, state: PyTree) -> PyTree:
        for part, s in zip(reversed(self.parts), reversed(state), strict=True):
            values = part.synthesis(values, s)
        return values

    def pack(self, values: PyTree, extras: PyTree, state: PyTree, inner: PyTree) -> PyTree:
        domains = self._domains(values, state)
        for part, v, e, s in reversed(list(zip(self.parts, domains, extras, state, strict=False))):
            inner = part.pack(v, e, s, inner)
        return inner

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        extras, states = [], []
        for part in self.parts:
            e, s, packed = part.resume(packed)
            extras.append(e)
            states.append(s)
        return tuple(extras), tuple(states), packed

    def rate(self, values: PyTree, extras: PyTree, state: PyTree, inner: PyTree) -> PyTree:
        domains = self._domains(values, state)
        for part, v, e, s in reversed(list(zip(self.parts, domains, extras, state, strict=False))):
            inner = part.rate(v, e, s, inner)
        return inner

    def metrics(self, values: PyTree, extras: PyTree, state: PyTree) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        domains = self._domains(values, state)
        for part, v, e, s in zip(self.parts, domains, extras, state, strict=False):
            found.update(part.metrics(v, e, s))
        return found

    @property
    def leafwise(self) -> bool:
        return all(part.leafwise for part in self.parts)

    def ends(self, leaves: list[Leaf]) -> list[bool]:
        return self._any([part.ends(leaves) for part in self.parts], len(leaves))

    def selects(self, leaves: list[Leaf]) -> list[bool]:
        return self._any([part.selects(leaves) for part in self.parts], len(leaves))

    @staticmethod
    def _any(answers: list[list[bool]], count: int) -> list[bool]:
        return [any(column) for column in zip(*answers, strict=True)] if answers else [False] * count


def _follow(part: Transform, values: PyTree, ended: PyTree) -> PyTree:
    """Which leaves have become symbols once `part` has encoded them; refuses a second time."""
    leaves, flags = trees.outlines(values), jax.tree.leaves(ended)
    for leaf, chosen, already in zip(leaves, part.selects(leaves), flags, strict=True):
        if chosen and already:
            raise TransformError(
                f"leaf {leaf.name!r} is made symbols by one part of the chain and encoded again by "
                f"{type(part).__name__}; what makes symbols comes last for each leaf"
            )
    ends = [a or b for a, b in zip(part.ends(leaves), flags, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(values), ends)


def _spread(flag: bool, latent: PyTree) -> PyTree:
    """A leaf's flag for every latent of the subtree that it may have become."""
    return jax.tree.map(lambda _: flag, latent)


def _follow_values(part: Transform, values: PyTree, state: PyTree, extra: dict[str, Any]) -> dict[str, Any]:
    """`extra` for what comes after the part: its trees belong to the part's latents then."""
    extra = {**extra, "support": part.support(values, state, extra.get("support"))}
    if type(part).analysis is not Transform.analysis:
        extra.pop("importance", None)  # The weights' own says nothing of coefficients.
    if extra.get("grads") is None:
        return extra
    return {**extra, "grads": _pulled(part, values, state, extra["grads"])}


def _pulled(part: Transform, values: PyTree, state: PyTree, grads: PyTree) -> PyTree:
    """The gradient taken to the part's latents: by the adjoint of its synthesis."""
    _, pull = jax.vjp(lambda v: part.synthesis(v, state), values)
    weights = jax.eval_shape(lambda v: part.synthesis(v, state), values)
    grads = jax.tree.map(lambda g, w: g.astype(w.dtype), grads, weights)
    return pull(grads)[0]


def chain(*parts: Transform) -> Chain:
    """Transforms in sequence: encodes first to last, decodes last to first.

    What makes symbols (`quantize`) comes last. Zeros made by a mask survive all that follows.

    Args:
      *parts: transforms; each encodes the latents of the one before.

    Raises:
      TransformError: a transform follows one that makes symbols.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> t = mz.chain(mz.prune(sparsity=0.5), mz.quantize(bits=4))
    >>> t.decode(*t.init({"w": jnp.array([[0.1], [7.0], [-0.2], [3.0]])}))["w"].ravel()
    Array([0., 7., 0., 3.], dtype=float32)
    """
    for part in parts:
        if not isinstance(part, Transform):
            raise TransformError(f"chain() takes transforms, not {part!r}")
    return Chain(tuple(parts))
