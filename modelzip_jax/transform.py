"""The transform protocol: what a transform is, what it keeps, and what it is told.

A transform encodes a tree of weights into latents that the optimizer trains, and decodes them into
what the network computes with:

    weights --init--> encoded --decode--> weights
                         └──────pack────> packed --unpack--> weights

All methods are pure; a transform itself is a frozen dataclass of hyperparameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from modelzip_jax import tree as trees
from modelzip_jax.errors import TransformError
from modelzip_jax.packed import Dense
from modelzip_jax.recipe import recordable
from modelzip_jax.tree import PyTree

__all__ = [
    "Context",
    "Encoded",
    "Identity",
    "Rate",
    "Reparametrization",
    "Transform",
    "dense",
    "identity",
    "like_weights",
    "rate",
]

Self = TypeVar("Self", bound="Context")


class Encoded(NamedTuple):
    """What a transform keeps for a tree of weights.

    latents: what the optimizer trains; the weights' structure, in which a leaf may have another shape or have
      become a small subtree. float32 where weights are half precision.
    offsets: the transform's own trained numbers, as offsets from a base in `state`: zero at first.
    state: everything else: mask bits, bases, thresholds.

    >>> import modelzip_jax as mz
    >>> encoded = mz.quantize(4, learned=True).init({"w": jnp.array([1.0, -7.0])}, mz.Context())
    >>> encoded.latents, jax.tree.leaves(encoded.offsets)
    ({'w': Array([ 1., -7.], dtype=float32)}, [Array([[0.]], dtype=float32)])
    """

    latents: PyTree
    offsets: PyTree
    state: PyTree


def like_weights() -> Any:
    """A field of a `Context` that is a tree like the weights, or None: combinators split it as they split weights.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Curved(Context):
    ...     curvature: PyTree = like_weights()
    >>> Curved(curvature={"w": 2.0}).trees()
    {'curvature': {'w': 2.0}}
    """
    return dataclasses.field(default=None, metadata={"like_weights": True})


@dataclasses.dataclass(frozen=True)
class Context:
    """What `init` and `update` are told beside the weights. A field is None where the caller has no such thing.

    step: int32 scalar: the number of this optimizer step, from 1; 0 at `init`.
    grads: gradients of the loss with respect to the decoded weights, dense: also where a mask hides a weight.
    stats: of `trace.statistics`: `Measured` in the place of each weight. importance: a weight of each squared
      error, at least 0. curvature: of `trace.fisher_information`: `FisherInformation` in the place of each weight.
    scores: of `mz.scores.given`. support: booleans: which latents reach the weights.
    key: of random choices. frozen: how many parameters there are beside these weights.
    user: whatever else the caller passed, by name; handed on whole.

    >>> context = Context(step=3, grads={"w": 1.0, "b": 2.0}, user={"temperature": 0.1})
    >>> context.over(lambda tree: tree["w"]).grads, context.lacks(["stats", "temperature"])
    (1.0, ['stats'])
    """

    step: Any = 0
    grads: PyTree = like_weights()
    stats: PyTree = like_weights()
    importance: PyTree = like_weights()
    curvature: PyTree = like_weights()
    scores: PyTree = like_weights()
    support: PyTree = like_weights()
    key: jax.Array | None = None
    frozen: int = 0
    user: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Context:
        """The context of named things; what is no field of it goes to `user`.

        >>> context = Context.of({"key": None, "temperature": 0.1})
        >>> context.user
        {'temperature': 0.1}
        """
        names = {f.name for f in dataclasses.fields(cls)} - {"user"}
        own = {name: value for name, value in given.items() if name in names}
        return cls(**own, user={name: value for name, value in given.items() if name not in names})

    def replace(self: Self, **changes: Any) -> Self:
        """The same context with other values of some fields."""
        return dataclasses.replace(self, **changes)

    def trees(self) -> dict[str, PyTree]:
        """The fields that are trees like the weights, without those that are None."""
        marked = (f.name for f in dataclasses.fields(self) if f.metadata.get("like_weights"))
        return {name: tree for name in marked if (tree := getattr(self, name)) is not None}

    def over(self: Self, function: Callable[[PyTree], PyTree]) -> Self:
        """The context with each tree like the weights put through a function."""
        return self.replace(**{name: function(tree) for name, tree in self.trees().items()})

    def select(self: Self, keep: Sequence[bool], treedef: Any) -> Self:
        """`UNSELECTED` in trees like the weights where `keep` is false."""
        return self.over(lambda tree: trees.select(tree, keep, treedef))

    def by_leaf(self: Self, weights: PyTree) -> Iterator[tuple[str, Any, Self]]:
        """Each leaf's name, the leaf, and the context in which trees like the weights are the leaf's parts.

        >>> [(name, own.grads) for name, _, own in Context(grads={"w": 2.0}).by_leaf({"w": 1.0})]
        [('w', 2.0)]
        """
        treedef = jax.tree.structure(weights)
        told = {name: treedef.flatten_up_to(tree) for name, tree in self.trees().items()}
        for place, (name, leaf) in enumerate(trees.named_leaves(weights)):
            yield name, leaf, self.replace(**{field: each[place] for field, each in told.items()})

    def lacks(self, names: Sequence[str]) -> list[str]:
        """Those of the names that are None."""
        return [name for name in names if getattr(self, name, self.user.get(name)) is None]


class Rate(NamedTuple):
    """Estimated stored size of one leaf.

    elements: float32, the leaf's shape: bits of each element.
    side: float32 scalar: bits of side information.

    >>> Rate(jnp.full((2, 3), 4.0), jnp.float32(32.0)).total()
    Array(56., dtype=float32)
    """

    elements: jax.Array
    side: jax.Array

    def total(self) -> jax.Array:
        """Bits of the leaf: float32 scalar."""
        return jnp.sum(self.elements) + self.side


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pure, trainable encoding of weights. Subclasses are frozen dataclasses.

    This base has latents of the weights' own shapes: derive from it what hides, rounds or labels weights. What
    trains other arrays instead derives from `Reparametrization`, or from `Linear` if it is a linear map.
    The laws that every transform obeys are in `mz.testing.check_laws`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Clipped(Transform):
    ...     limit: float
    ...
    ...     def decode(self, encoded):
    ...         return jax.tree.map(lambda w: jnp.clip(w, -self.limit, self.limit), encoded.latents)
    ...
    ...     def pack(self, encoded, inner):
    ...         return dense(self.decode(encoded))
    >>> clipped = Clipped(limit=1.0)
    >>> clipped.decode(clipped.init({"w": jnp.array([0.5, 3.0])}, Context()))
    {'w': Array([0.5, 1. ], dtype=float32)}
    """

    terminal: ClassVar[bool] = False
    """Whether the transform makes symbols, so that nothing can follow it in a chain."""

    @property
    def leafwise(self) -> bool:
        """Whether each leaf is encoded by itself, so that `mz.compress` may take them in turn."""
        return True

    @property
    def moves_latents(self) -> bool:
        """Whether `update` may return other latents than it was given."""
        return False

    @property
    def hides(self) -> bool:
        """Whether some latents may not reach the weights: whether there are masks."""
        return False

    @property
    def remasks(self) -> bool:
        """Whether `update` may hide other latents than before."""
        return False

    def init(self, weights: PyTree, context: Context) -> Encoded:
        """Chooses masks, step sizes, codebooks. `weights` is a tree of floating-point arrays."""
        return Encoded(weights, (), ())

    def decode(self, encoded: Encoded) -> PyTree:
        """The weights that the network computes with, in their own dtype. Differentiable."""
        return encoded.latents

    def update(self, encoded: Encoded, context: Context) -> Encoded:
        """Schedules, mask refreshes, observers: at the beginning of each optimizer step, under `jit`."""
        return encoded

    def relaxed(self, encoded: Encoded) -> PyTree:
        """The weights that the latents stand for, nothing rounded or hidden: what earlier parts of a chain see."""
        return encoded.latents

    def encode(self, weights: PyTree, encoded: Encoded) -> PyTree:
        """Latents that stand for other weights, under the choices that were made: `relaxed` the other way."""
        return weights

    def follow(self, encoded: Encoded, context: Context) -> Context:
        """The context of what comes after in a chain: its trees belong to the latents then."""
        return context

    def pack(self, encoded: Encoded, inner: PyTree) -> PyTree:
        """The stored form, wrapped around `inner`: a tree of packed arrays of the latents."""
        return inner

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        """The inverse of `pack`: `(offsets, state, inner)`, with offsets zero."""
        return (), (), packed

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        """Estimated stored size, wrapped around `inner`: a tree of `Rate`. Differentiable."""
        return inner

    def metrics(self, encoded: Encoded) -> dict[str, jax.Array]:
        """Scalars worth watching during training."""
        return {}


@dataclasses.dataclass(frozen=True)
class Reparametrization(Transform):
    """A transform whose latents are other arrays than the weights: coefficients, factors, shared vectors.

    Subclasses define `init`, `relaxed`, `pack` and `resume`, and `encode` where a part before them in a chain moves
    its latents; `decode` gives the relaxed weights, unless overridden, as where weights have another dtype.

    Weights as v |v|, so that small ones learn slowly (Powerpropagation, Schwarz et al. 2021, arXiv:2110.00296, eq. 1):

    >>> @dataclasses.dataclass(frozen=True)
    ... class Powers(Reparametrization):
    ...     def encode(self, weights, encoded=None):
    ...         return jax.tree.map(lambda w: jnp.sign(w) * jnp.sqrt(jnp.abs(w)), weights)
    ...
    ...     def relaxed(self, encoded):
    ...         return jax.tree.map(lambda v: v * jnp.abs(v), encoded.latents)
    ...
    ...     def init(self, weights, context):
    ...         return Encoded(self.encode(weights), (), ())
    ...
    ...     def pack(self, encoded, inner):
    ...         return dense(self.decode(encoded))
    ...
    ...     def resume(self, packed):
    ...         weights = jax.tree.map(lambda p: p.unpack(), packed, is_leaf=is_packed)
    ...         return (), (), dense(self.encode(weights))
    >>> encoded = Powers().init({"w": jnp.array([4.0, -9.0])}, Context())
    >>> encoded.latents, Powers().decode(encoded)
    ({'w': Array([ 2., -3.], dtype=float32)}, {'w': Array([ 4., -9.], dtype=float32)})
    """

    def decode(self, encoded: Encoded) -> PyTree:
        return self.relaxed(encoded)

    def relaxed(self, encoded: Encoded) -> PyTree:
        raise TransformError(
            f"{type(self).__name__} defines no relaxed(): the weights that its latents stand for"
        )

    def encode(self, weights: PyTree, encoded: Encoded) -> PyTree:
        raise TransformError(
            f"{type(self).__name__} defines no encode(): latents of new weights, which a part before it in a chain "
            "asks for"
        )

    def follow(self, encoded: Encoded, context: Context) -> Context:
        grads = None
        if context.grads is not None:
            weights, pull = jax.vjp(lambda z: self.relaxed(encoded._replace(latents=z)), encoded.latents)
            grads = pull(jax.tree.map(lambda g, w: g.astype(w.dtype), context.grads, weights))[0]
        return context.replace(
            grads=grads, stats=None, importance=None, curvature=None, scores=None, support=None
        )

    def rate(self, encoded: Encoded, inner: PyTree) -> PyTree:
        """The bits of a leaf's latents, spread evenly over its weights."""

        def spread(weights: Any, rates: PyTree) -> Rate:
            parts = [r for r in jax.tree.leaves(rates, is_leaf=_is_rate) if _is_rate(r)]
            bits = sum((jnp.sum(r.elements) for r in parts), jnp.zeros(()))
            each = jnp.broadcast_to(bits / max(weights.size, 1), weights.shape)
            return Rate(each, sum((r.side for r in parts), jnp.zeros(())))

        return jax.tree.map(spread, jax.eval_shape(self.relaxed, encoded), inner)


def dense(latents: PyTree) -> PyTree:
    """The tree with each array as `Dense`: the innermost stored form.

    >>> dense({"w": jnp.zeros(2)})
    {'w': Dense(array=Array([0., 0.], dtype=float32), shape=(2,))}
    """
    return jax.tree.map(
        lambda x: Dense(x if hasattr(x, "reshape") else jnp.asarray(x), jnp.shape(x)), latents
    )


def rate(transform: Transform, encoded: Encoded) -> jax.Array:
    """Bits: a differentiable estimate of what the encoded leaves take in a file, float32 scalar.

    >>> t = identity()
    >>> float(rate(t, t.init({"w": jnp.zeros((4, 2))}, Context())))
    256.0
    """
    plain = jax.tree.map(
        lambda x: Rate(jnp.full(jnp.shape(x), 8.0 * jnp.result_type(x).itemsize), jnp.zeros(())),
        encoded.latents,
    )
    rates = jax.tree.leaves(transform.rate(encoded, plain), is_leaf=_is_rate)
    return sum((r.total() for r in rates), jnp.zeros(()))


def _is_rate(x: Any) -> bool:
    return isinstance(x, Rate)


@recordable
@dataclasses.dataclass(frozen=True)
class Identity(Transform):
    """Keeps its leaves as they are. See `identity`."""


def identity() -> Identity:
    """A transform that changes nothing; its leaves are stored lossless.

    >>> identity().decode(identity().init({"w": jnp.ones(2)}, Context()))
    {'w': Array([1., 1.], dtype=float32)}
    """
    return Identity()
