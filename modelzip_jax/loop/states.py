"""The state of a wrapped optimizer, and where it stands within an optimizer's state."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import optax

from modelzip_jax import tree as trees
from modelzip_jax.errors import WrapError
from modelzip_jax.transform import Encoded
from modelzip_jax.tree import PyTree, Static

__all__ = ["WrapState", "replace_states", "wrap_states"]

_AROUND = (
    optax.transforms.PartitionState,
    optax.MaskedState,
    optax.MultiStepsState,
    optax.ApplyIfFiniteState,
    optax.InjectHyperparamsState,
    optax.InjectStatefulHyperparamsState,
)
"""What may stand around `mz.wrap`: it hands on the updates as they are, or none at all."""


class WrapState(NamedTuple):
    """The optimizer state of `mz.wrap`, and the truth about the weights.

    step: int32 scalar, steps taken. latents: `UNSELECTED` where the transform leaves the leaf alone. offsets,
    state: as in `mz.Encoded`. inner: the wrapped optimizer's state, for the tree of latents and unselected params.
    offsets_inner: the state of the offsets' optimizer, `()` where there are none. transform: static.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> state = mz.wrap(optax.sgd(0.1), mz.prune(sparsity=0.5)).init({"w": jnp.array([1.0, -2.0])})
    >>> state.latents, state.decoded()
    ({'w': Array([ 1., -2.], dtype=float32)}, {'w': Array([ 0., -2.], dtype=float32)})
    """

    step: jax.Array
    latents: PyTree
    offsets: PyTree
    state: PyTree
    inner: optax.OptState
    offsets_inner: optax.OptState
    transform: Static

    @property
    def encoded(self) -> Encoded:
        """The latents with what decodes them."""
        return Encoded(self.latents, self.offsets, self.state)

    def decoded(self) -> PyTree:
        """The weights that the network computes with."""
        return self.transform.value.decode(self.encoded)


def wrap_states(opt_state: PyTree) -> list[WrapState]:
    """Every `WrapState` within an optimizer's state, in its order.

    Raises:
      WrapError: there is none, or something around one changes updates or params after it.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> tx = optax.chain(optax.clip(1.0), mz.wrap(optax.sgd(0.1), mz.quantize(4)))
    >>> [int(state.step) for state in wrap_states(tx.init({"w": jnp.ones(2)}))]
    [0]
    """
    found = list(_walk(trees.plain(opt_state), ""))
    if not found:
        raise WrapError(
            "this optimizer state holds none made by mz.wrap; pass that of tx = mz.wrap(optax.adamw(1e-3), transform)"
        )
    return found


def _walk(node: PyTree, problem: str) -> Iterator[WrapState]:
    if isinstance(node, WrapState):
        if problem:
            raise WrapError(problem)
        yield node
        return
    children = [x for x in jax.tree.leaves(node, is_leaf=lambda x: x is not node) if x is not node]
    # optax.chain keeps its members' states in a plain tuple, optax.named_chain in an OrderedDict, both in order.
    chained = type(node) in (tuple, collections.OrderedDict)
    for index, child in enumerate(children):
        yield from _walk(child, problem or _problem(node, chained and index < len(children) - 1))


def _problem(node: PyTree, followed: bool) -> str:
    """What is wrong with an `mz.wrap` inside the node, if anything."""
    if followed:
        return (
            "mz.wrap is followed by another transformation in an optax.chain, which would take the params off the "
            "compressed weights; put it last: optax.chain(..., mz.wrap(tx, transform))"
        )
    if isinstance(node, _AROUND) or type(node) in (tuple, list, dict, collections.OrderedDict):
        return ""
    name = type(node).__name__
    if isinstance(node, optax.LookaheadState):
        return (
            "mz.wrap stands inside optax.lookahead, which mixes decoded weights; mz.loop.with_average keeps such an "
            "average inside mz.wrap"
        )
    if hasattr(node, "opt_state") and not type(node).__module__.startswith("optax"):
        return f"pass the optimizer state that the {name} holds: its .opt_state"
    return (
        f"mz.wrap stands inside the optimizer of {name}, which changes updates or params after it, so that they leave "
        "the compressed weights; turn them around: mz.wrap(that(optimizer), transform)"
    )


def replace_states(opt_state: PyTree, function: Callable[[WrapState], WrapState]) -> PyTree:
    """The optimizer's state with each `WrapState` put through a function."""
    is_state = lambda x: isinstance(x, WrapState)  # noqa: E731
    return jax.tree.map(lambda x: function(x) if is_state(x) else x, opt_state, is_leaf=is_state)
