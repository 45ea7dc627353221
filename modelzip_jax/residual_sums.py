"""Transforms side by side: each encodes what those before it leave, and the weights are their sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.combinator import OfAllParts, check_transform, selects, unknown
from modelzip_jax.errors import TransformError
from modelzip_jax.latents import latent, latent_dtype
from modelzip_jax.leaf_checks import check_floating
from modelzip_jax.packed import is_packed
from modelzip_jax.recipe import recordable
from modelzip_jax.summed_terms import Summed, kept_apart, rounded_sum
from modelzip_jax.transform import Context, Encoded, Rate, Transform
from modelzip_jax.tree import UNSELECTED, Leaf, PyTree

__all__ = ["Residual", "ResidualState", "residual"]


@trees.static_node
@dataclasses.dataclass(frozen=True)
class Terms:
    """Of one leaf: the indices of the parts that encode it, its shape, and its dtype if any does (all static)."""

    parts: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str


class ResidualState(NamedTuple):
    """terms: what each leaf is the sum of (static). states: of each part."""

    terms: PyTree
    states: tuple[PyTree, ...]


@recordable
@dataclasses.dataclass(frozen=True)
class Residual(OfAllParts):
    """See `residual`."""

    parts: tuple[Transform, ...]

    def _places(self, leaves: list[Leaf], whole: bool) -> list[tuple[int, ...]]:
        """The parts that encode each leaf."""
        answers = [selects(part, leaves, whole) for part in self.parts]
        return [tuple(k for k, answer in enumerate(answers) if answer[i]) for i in range(len(leaves))]

    def _own(self, tree: PyTree, terms: PyTree) -> list[PyTree]:
        """Of a tree with a tuple a leaf: each part's tree, `UNSELECTED` where it encodes nothing."""
        found, treedef = _flat(terms)
        rows = list(zip(found, treedef.flatten_up_to(tree), strict=True))
        return [
            treedef.unflatten([row[t.parts.index(k)] if k in t.parts else UNSELECTED for t, row in rows])
            for k in range(len(self.parts))
        ]

    def _together(self, each: list[PyTree], rest: PyTree, terms: PyTree) -> PyTree:
        """The inverse of `_own`; leaves that no part encodes come from `rest`."""
        found, treedef = _flat(terms)
        columns, others = [treedef.flatten_up_to(tree) for tree in each], treedef.flatten_up_to(rest)
        rows = zip(range(len(found)), found, others, strict=True)
        return treedef.unflatten(
            [tuple(columns[k][i] for k in t.parts) if t.parts else x for i, t, x in rows]
        )

    def _for(self, k: int, tree: PyTree, terms: PyTree) -> PyTree:
        """A tree like the weights, of the leaves that one part encodes."""
        found, treedef = _flat(terms)
        return trees.select(tree, [k in t.parts for t in found], treedef)

    def _contexts(self, context: Context, terms: PyTree) -> list[Context]:
        """A context for each part: to it, the leaves that it does not encode are frozen."""
        found, _ = _flat(terms)
        sizes = [
            [0 if k in t.parts else int(np.prod(t.shape)) for t in found] for k in range(len(self.parts))
        ]
        return [
            context.over(lambda tree, k=k: self._for(k, tree, terms)).replace(  # type: ignore[misc]
                frozen=context.frozen + sum(sizes[k])
            )
            for k in range(len(self.parts))
        ]

    def _each(self, encoded: Encoded) -> list[tuple[Transform, Encoded]]:
        """Each part with what it has encoded."""
        terms, states = encoded.state
        rows = zip(self.parts, self._own(encoded.latents, terms), encoded.offsets, states, strict=True)
        return [(part, Encoded(*own)) for part, *own in rows]

    def _in_turn(
        self, weights: PyTree, terms: PyTree, encode: Callable[[int, PyTree], Encoded]
    ) -> list[Encoded]:
        """What `encode` makes, part by part, of what the parts before leave of the weights."""
        rest, each = _over(lambda t, w: latent(w) if t.parts else w, terms, weights), list[Encoded]()
        for k, part in enumerate(self.parts):
            each.append(encode(k, self._for(k, rest, terms)))
            if k < len(self.parts) - 1:
                decoded = part.decode(each[k])
                rest = _over(
                    lambda t, w, d, k=k: w - kept_apart(d) if k in t.parts else w, terms, rest, decoded
                )
        return each

    def init(self, weights: PyTree, context: Context) -> Encoded:
        leaves, treedef = jax.tree.flatten(weights)
        # Whoever left leaves out has asked about all of them.
        places = self._places(trees.outlines(weights), not trees.has_absent(weights))
        found = [
            _terms(parts, x.shape, str(x.dtype)) for parts, x in zip(places, map(_aval, leaves), strict=True)
        ]
        terms = treedef.unflatten(found)
        check_floating(trees.select(weights, [bool(t.parts) for t in found], treedef), "residual")
        contexts = self._contexts(context, terms)
        each = self._in_turn(weights, terms, lambda k, rest: self.parts[k].init(rest, contexts[k]))
        latents = self._together([e.latents for e in each], weights, terms)
        states = tuple(e.state for e in each)
        return Encoded(latents, tuple(e.offsets for e in each), ResidualState(terms, states))

    def decode(self, encoded: Encoded) -> PyTree:
        each = [part.decode(own) for part, own in self._each(encoded)]
        return self._sums(each, encoded)

    def _sums(self, each: list[PyTree], encoded: Encoded, wide: bool = False) -> PyTree:
        """The sum of the parts' trees; `wide` in the dtype in which it is taken."""
        terms = encoded.state.terms
        together = self._together(each, encoded.latents, terms)
        return _over(
            lambda t, x: rounded_sum(x, str(x[-1].dtype) if wide else t.dtype) if t.parts else x,
            terms,
            together,
        )

    def relaxed(self, encoded: Encoded) -> PyTree:
        # What was left for a leaf's last part is as it was given; what the others decode to was taken off before.
        terms, found = encoded.state.terms, []
        last = {t.parts[-1] for t in _flat(terms)[0] if t.parts}
        for k, (part, own) in enumerate(self._each(encoded)):
            tree = part.decode(own)
            if k in last:
                tree = _over(
                    lambda t, a, b, k=k: b if t.parts and t.parts[-1] == k else a,
                    terms,
                    tree,
                    part.relaxed(own),
                )
            found.append(tree)
        return self._sums(found, encoded, wide=True)

    def encode(self, weights: PyTree, encoded: Encoded) -> PyTree:
        terms, each = encoded.state.terms, self._each(encoded)

        def encode(k: int, rest: PyTree) -> Encoded:
            part, own = each[k]
            return own._replace(latents=part.encode(rest, own))

        found = self._in_turn(weights, terms, encode)
        return self._together([e.latents for e in found], weights, terms)

    def update(self, encoded: Encoded, context: Context) -> Encoded:
        terms, latents = encoded.state.terms, encoded.latents
        contexts = self._contexts(context, terms)
        each = [p.update(e, c) for (p, e), c in zip(self._each(encoded), contexts, strict=True)]
        if self.moves_latents:
            latents = self._together([e.latents for e in each], latents, terms)
        states = tuple(e.state for e in each)
        return Encoded(latents, tuple(e.offsets for e in each), ResidualState(terms, states))

    def follow(self, encoded: Encoded, context: Context) -> Context:
        terms = encoded.state.terms
        contexts = self._contexts(context, terms)
        each = self._each(encoded)
        found = [p.follow(e, c).trees() for (p, e), c in zip(each, contexts, strict=True)]
        joined = {}
        for name in {*context.trees(), *(name for told in found for name in told)}:
            told = [x.get(name, unknown(name, e.latents)) for x, (_, e) in zip(found, each, strict=True)]
            others = context.trees().get(name, unknown(name, encoded.latents))
            joined[name] = self._together(told, others, terms)
        return context.replace(**joined)

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        terms = encoded.state.terms
        each = zip(self._each(encoded), self._own(inner, terms), strict=True)
        packed = self._together([part.pack(own, i) for (part, own), i in each], inner, terms)

        def wrap(t: Terms, p: Any) -> Any:
            return Summed.of(p, t.shape, str(jnp.dtype(latent_dtype(t.dtype))), t.dtype) if t.parts else p

        return _over(wrap, terms, packed)

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        found, treedef = jax.tree.flatten(packed, is_leaf=is_packed)
        places = self._places(trees.outlines(packed, is_packed), whole=False)
        rows = list(zip(places, found, strict=True))
        terms = treedef.unflatten([_terms(parts, p.shape, getattr(p, "dtype", "")) for parts, p in rows])
        sums = treedef.unflatten([p.terms(len(parts)) if parts else p for parts, p in rows])
        each = [part.resume(own) for part, own in zip(self.parts, self._own(sums, terms), strict=True)]
        offsets, states, inner = zip(*each, strict=True)
        return offsets, ResidualState(terms, states), self._together(list(inner), packed, terms)

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        terms = encoded.state.terms
        each = zip(self._each(encoded), self._own(inner, terms), strict=True)
        rates = self._together([part.rate(own, i) for (part, own), i in each], inner, terms)

        def total(t: Terms, rates: Any) -> Rate:
            if not t.parts:
                return rates
            zero = jnp.zeros(())
            return Rate(sum((r.elements for r in rates), zero), sum((r.side for r in rates), zero))

        return _over(total, terms, rates)

    def metrics(self, encoded: Encoded) -> dict[str, jax.Array]:
        each = enumerate(self._each(encoded))
        return {f"{k}:{name}": x for k, (part, own) in each for name, x in part.metrics(own).items()}


def _aval(x: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))


def _terms(parts: tuple[int, ...], shape: tuple[int, ...], dtype: str) -> Terms:
    return Terms(parts, tuple(shape), dtype if parts else "")


def _flat(terms: PyTree) -> tuple[list[Terms], Any]:
    return jax.tree.flatten(terms, is_leaf=lambda x: isinstance(x, Terms))


def _over(function: Callable[..., Any], terms: PyTree, *rest: PyTree) -> PyTree:
    """Maps over the leaves of the weights, in trees where each may have become a subtree."""
    return jax.tree.map(function, terms, *rest, is_leaf=lambda x: isinstance(x, Terms))


def residual(*parts: Transform) -> Residual:
    """Weights as a sum: each part encodes what is left by those before it, and all are trained together.

        mz.residual(mz.low_rank(8), mz.quantize(4))

    is the *factorization quantization* of surveys: what a low rank catches need not be quantized (SVDQuant, Li et al.
    2024, arXiv:2411.05007; LoftQ, Li et al. 2023, arXiv:2310.08659). Two quantizers are residual quantization (Chen et
    al. 2010, Sensors 10(12)); a mask and a quantizer keep outliers apart (SpQR, Dettmers et al. 2023,
    arXiv:2306.03078).

    A leaf's latents are a tuple with those of each part. Every part is told the same gradients, statistics and scores:
    the gradient at a sum is that of its terms. A part that leaves a leaf alone, as `mz.only` may, adds nothing to it.
    The sum is taken from the first part to the last, in float32 for half precision, and rounded once at the end.
    Metrics have the index of their part before their name.

    Args:
      *parts: transforms, chains among them; where one makes symbols, nothing can follow the sum in a chain.

    Raises:
      TransformError: no parts, or something that is no transform.

    >>> import modelzip_jax as mz
    >>> w = {"w": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)}
    >>> once, twice = mz.quantize(4), mz.residual(mz.quantize(4), mz.quantize(4))
    >>> errors = [float(jnp.abs(mz.decoded(w, t)["w"] - w["w"]).max()) for t in (once, twice)]
    >>> errors[1] < errors[0] / 10
    True
    """
    if not parts:
        raise TransformError("residual() takes transforms: mz.residual(mz.low_rank(8), mz.quantize(4))")
    for part in parts:
        check_transform(part, "residual()")
    return Residual(tuple(parts))
