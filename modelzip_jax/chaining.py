"""Transforms in sequence."""

from __future__ import annotations

import collections
import dataclasses

import jax

from modelzip_jax import tree as trees
from modelzip_jax.combinator import OfAllParts, check_transform, ends, selects
from modelzip_jax.errors import TransformError
from modelzip_jax.recipe import recordable
from modelzip_jax.transform import Context, Encoded, Transform
from modelzip_jax.tree import PyTree

__all__ = ["Chain", "chain"]


@recordable
@dataclasses.dataclass(frozen=True)
class Chain(OfAllParts):
    """Transforms in sequence. See `chain`."""

    parts: tuple[Transform, ...]

    def __post_init__(self) -> None:
        for part in self.parts[:-1]:
            if getattr(part, "terminal", False):  # A loaded recipe may have an Opaque part.
                raise TransformError(
                    f"{type(part).__name__} makes symbols, so nothing can follow it in a chain; "
                    "put it last: mz.chain(mz.prune(...), mz.quantize(...))"
                )

    def _unfolded(self, encoded: Encoded) -> list[Encoded]:
        """What each part has encoded: its latents are the relaxed weights of the part after it."""
        latents, found = encoded.latents, []
        for part, offsets, state in reversed(
            list(zip(self.parts, encoded.offsets, encoded.state, strict=True))
        ):
            found.append(Encoded(latents, offsets, state))
            latents = part.relaxed(found[-1])
        return found[::-1]

    @staticmethod
    def _folded(latents: PyTree, each: list[Encoded]) -> Encoded:
        return Encoded(latents, tuple(e.offsets for e in each), tuple(e.state for e in each))

    def init(self, weights: PyTree, context: Context) -> Encoded:
        each: list[Encoded] = []
        ended: PyTree = jax.tree.map(lambda _: False, weights)
        for part in self.parts:
            ended = _follow(part, weights, ended)
            each.append(part.init(weights, context))
            weights = each[-1].latents
            ended = jax.tree.map(_spread, ended, weights)
            context = part.follow(each[-1], context)
        return self._folded(weights, each)

    def decode(self, encoded: Encoded) -> PyTree:
        weights = encoded.latents
        for part, offsets, state in reversed(
            list(zip(self.parts, encoded.offsets, encoded.state, strict=True))
        ):
            weights = part.decode(Encoded(weights, offsets, state))
        return weights

    def update(self, encoded: Encoded, context: Context) -> Encoded:
        each = self._unfolded(encoded)
        for index, part in enumerate(self.parts):
            each[index] = part.update(each[index], context)
            if part.moves_latents:
                each = self._moved(each, index)
            context = part.follow(each[index], context)
        return self._folded(each[-1].latents if each else encoded.latents, each)

    def _moved(self, each: list[Encoded], index: int) -> list[Encoded]:
        """The parts after one that has moved its latents, with latents that stand for the new ones."""
        each = list(each)
        for later in range(index + 1, len(each)):
            latents = self.parts[later].encode(each[later - 1].latents, each[later])
            each[later] = each[later]._replace(latents=latents)
        return each

    def relaxed(self, encoded: Encoded) -> PyTree:
        each = self._unfolded(encoded)
        return self.parts[0].relaxed(each[0]) if each else encoded.latents

    def encode(self, weights: PyTree, encoded: Encoded) -> PyTree:
        for part, own in zip(self.parts, self._unfolded(encoded), strict=True):
            weights = part.encode(weights, own)
        return weights

    def follow(self, encoded: Encoded, context: Context) -> Context:
        for part, own in zip(self.parts, self._unfolded(encoded), strict=True):
            context = part.follow(own, context)
        return context

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        for part, own in reversed(list(zip(self.parts, self._unfolded(encoded), strict=True))):
            inner = part.pack(own, inner)
        return inner

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        offsets, states = [], []
        for part in self.parts:
            o, s, packed = part.resume(packed)
            offsets.append(o)
            states.append(s)
        return tuple(offsets), tuple(states), packed

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        for part, own in reversed(list(zip(self.parts, self._unfolded(encoded), strict=True))):
            inner = part.rate(own, inner)
        return inner

    def metrics(self, encoded: Encoded) -> dict[str, jax.Array]:
        each = [part.metrics(own) for part, own in zip(self.parts, self._unfolded(encoded), strict=True)]
        times = collections.Counter(name for found in each for name in found)
        return {
            f"{index}:{name}" if times[name] > 1 else name: x
            for index, found in enumerate(each)
            for name, x in found.items()
        }


def _follow(part: Transform, weights: PyTree, ended: PyTree) -> PyTree:
    """Which leaves have become symbols once `part` has encoded them; refuses a second time."""
    leaves, flags = trees.outlines(weights), jax.tree.leaves(ended)
    # Whoever left leaves out has asked about all of them.
    whole = not trees.has_absent(weights)
    for leaf, chosen, already in zip(leaves, selects(part, leaves, whole), flags, strict=True):
        if chosen and already:
            raise TransformError(
                f"leaf {leaf.name!r} is made symbols by one part of the chain and encoded again by "
                f"{type(part).__name__}; what makes symbols comes last for each leaf"
            )
    found = [a or b for a, b in zip(ends(part, leaves, whole), flags, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(weights), found)


def _spread(flag: bool, latent: PyTree) -> PyTree:
    """A leaf's flag for every latent of the subtree that it may have become."""
    return jax.tree.map(lambda _: flag, latent)


def chain(*parts: Transform) -> Chain:
    """Transforms in sequence: encodes first to last, decodes last to first.

    What makes symbols (`quantize`) comes last. Zeros made by a mask survive all that follows.

    Args:
      *parts: transforms; each encodes the latents of the one before.

    Raises:
      TransformError: a transform follows one that makes symbols, or something is no transform.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> t = mz.chain(mz.prune(sparsity=0.5), mz.quantize(bits=4))
    >>> mz.decoded({"w": jnp.array([[0.1], [7.0], [-0.2], [3.0]])}, t)["w"].ravel().round(4)
    Array([0., 7., 0., 3.], dtype=float32)
    """
    for part in parts:
        check_transform(part, "chain()")
    return Chain(tuple(parts))
