"""The transform protocol, and `identity`.

A transform encodes a tree of weights into latents that the optimizer trains, and decodes them into
what the network computes with:

    params --init--> values, extras, state --decode--> params
                            └────────pack────> packed --unpack--> params

All methods are pure; a transform itself is a frozen dataclass of hyperparameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.packed import Dense
from modelzip_jax.recipe import recordable
from modelzip_jax.tree import Leaf

__all__ = [
    "Encoded",
    "Identity",
    "Rate",
    "Transform",
    "dense",
    "identity",
    "outside",
    "rate",
    "selected",
]

PyTree = Any

LIKE_PARAMS = ("grads", "importance", "scores", "stats")
"""Names of `extra` that are trees like the weights, and are split as they are."""


class Encoded(NamedTuple):
    """What a transform keeps for a tree of weights.

    values: the latents that the optimizer trains; the params' structure, in which a leaf may have
      another shape or have become a small subtree. float32 where params are half precision.
    extras: the transform's own trained numbers, as offsets from a base in `state`: zero at first.
    state: everything else: mask bits, bases, thresholds.
    """

    values: PyTree
    extras: PyTree
    state: PyTree


class Rate(NamedTuple):
    """Estimated stored size of one leaf.

    elements: float32, the leaf's shape: bits of each element.
    side: float32 scalar: bits of side information.
    """

    elements: jax.Array
    side: jax.Array

    def total(self) -> jax.Array:
        """Bits of the leaf: float32 scalar."""
        return jnp.sum(self.elements) + self.side


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pure, trainable encoding of weights. Subclasses are frozen dataclasses.

    The laws that every transform obeys are in `mz.testing.check_laws`.
    """

    terminal: ClassVar[bool] = False
    """Whether the transform makes symbols, so that nothing can follow it in a chain."""

    def init(self, values: PyTree, **extra: Any) -> Encoded:
        """Chooses masks, step sizes, codebooks. `values` is a tree of floating-point arrays."""
        return Encoded(values, (), ())

    def decode(self, values: PyTree, extras: PyTree, state: PyTree) -> PyTree:
        """The weights that the network computes with, in their own dtype. Differentiable."""
        return values

    def update(self, values: PyTree, extras: PyTree, state: PyTree, **extra: Any) -> Encoded:
        """Schedules, mask refreshes, observers: at the beginning of each optimizer step.

        `extra` holds `step` (int32 scalar, the number of this step, from 1), and where the caller has them
        `grads` (of the decoded weights: dense), `stats`, `importance`, `key`; `support` behind a mask; `frozen`,
        how many parameters there are beside these values, which `init` is given as well.
        """
        return Encoded(values, extras, state)

    def analysis(self, values: PyTree, state: PyTree) -> PyTree:
        """The linear part of encoding: weights to latents. The identity unless overridden."""
        return values

    def synthesis(self, values: PyTree, state: PyTree) -> PyTree:
        """The linear part of decoding: latents to weights, nothing rounded or masked."""
        return values

    def support(self, values: PyTree, state: PyTree, before: PyTree | None) -> PyTree | None:
        """Which latents reach the weights: a boolean mask for each, or None, if all do.

        `before` tells the same of the values that were encoded. In a chain, later parts are given this as
        `extra["support"]`, so that they fit codebooks and the like to what is kept. A transform with an
        `analysis` of its own answers None unless it says otherwise.
        """
        return before if type(self).analysis is Transform.analysis else None

    def pack(self, values: PyTree, extras: PyTree, state: PyTree, inner: PyTree) -> PyTree:
        """The stored form, wrapped around `inner`: a tree of packed arrays of the latents."""
        return inner

    def resume(self, packed: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        """The inverse of `pack`: `(extras, state, inner)`, with extras zero."""
        return (), (), packed

    def rate(self, values: PyTree, extras: PyTree, state: PyTree, inner: PyTree) -> PyTree:
        """Estimated stored size, wrapped around `inner`: a tree of `Rate`. Differentiable."""
        return inner

    def metrics(self, values: PyTree, extras: PyTree, state: PyTree) -> dict[str, jax.Array]:
        """Scalars worth watching during training."""
        return {}

    @property
    def leafwise(self) -> bool:
        """Whether each leaf is encoded by itself, so that `mz.compress` may take them in turn."""
        return True

    def selects(self, leaves: list[Leaf]) -> list[bool]:
        """Which of the leaves this transform encodes: all of them unless overridden."""
        return [True] * len(leaves)

    def ends(self, leaves: list[Leaf]) -> list[bool]:
        """Which of the leaves this transform makes symbols of."""
        return [self.terminal] * len(leaves)


def selected(transform: Transform, params: PyTree) -> PyTree:
    """`params` with `UNSELECTED` where the transform does not encode the leaf."""
    return trees.select(params, transform.selects(trees.outlines(params)), jax.tree.structure(params))


def selected_extra(extra: dict[str, Any], keep: list[bool], treedef: Any) -> dict[str, Any]:
    """`extra` with `UNSELECTED` in trees like the weights, where `keep` is false."""
    return {
        name: trees.select(tree, keep, treedef) if name in LIKE_PARAMS and tree is not None else tree
        for name, tree in extra.items()
    }


def outside(params: PyTree, keep: list[bool]) -> int:
    """How many elements the leaves have that a transform does not encode: `frozen` among `extra`."""
    return sum(int(np.size(x)) for x, chosen in zip(jax.tree.leaves(params), keep, strict=True) if not chosen)


def dense(values: PyTree) -> PyTree:
    """The tree with each array as `Dense`: the innermost stored form.

    >>> dense({"w": jnp.zeros(2)})
    {'w': Dense(array=Array([0., 0.], dtype=float32), shape=(2,))}
    """
    return jax.tree.map(lambda x: Dense(x if hasattr(x, "reshape") else jnp.asarray(x), jnp.shape(x)), values)


def rate(transform: Transform, values: PyTree, extras: PyTree, state: PyTree) -> jax.Array:
    """Bits: a differentiable estimate of what the encoded leaves take in a file, float32 scalar.

    >>> t = identity()
    >>> float(rate(t, *t.init({"w": jnp.zeros((4, 2))})))
    256.0
    """
    plain = jax.tree.map(
        lambda x: Rate(jnp.full(jnp.shape(x), 8.0 * jnp.result_type(x).itemsize), jnp.zeros(())), values
    )
    rates = jax.tree.leaves(transform.rate(values, extras, state, plain), is_leaf=_is_rate)
    return sum((r.total() for r in rates), jnp.zeros(()))


def _is_rate(x: Any) -> bool:
    return isinstance(x, Rate)


@recordable
@dataclasses.dataclass(frozen=True)
class Identity(Transform):
    """Keeps its leaves as they are. See `identity`."""


def identity() -> Identity:
    """A transform that changes nothing; its leaves are stored lossless.

    >>> identity().decode(*identity().init({"w": jnp.ones(2)}))
    {'w': Array([1., 1.], dtype=float32)}
    """
    return Identity()
