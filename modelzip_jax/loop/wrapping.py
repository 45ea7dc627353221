"""`wrap`: any optax optimizer trains compressed weights, with no other change to the loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from modelzip_jax import tree as trees
from modelzip_jax.errors import TreeError, WrapError
from modelzip_jax.loop.moments import clear_moments
from modelzip_jax.meshes import sharded_as
from modelzip_jax.transform import Encoded, Transform, outside, rate, selected_extra
from modelzip_jax.tree import Static

__all__ = ["WrapState", "find_state", "metrics", "params", "start", "wrap"]

PyTree = Any


class WrapState(NamedTuple):
    """The optimizer state of `wrap`, and the truth about the weights.

    count: int32 scalar, steps taken. values: latents, `UNSELECTED` where the transform leaves the
    leaf alone. extras, transform_state: as in `mz.Encoded`. inner: the wrapped optimizer's state, for
    the tree of latents and unselected params. extras_inner: the state of the extras' optimizer.
    transform: the transform itself (static).
    """

    count: jax.Array
    values: PyTree
    extras: PyTree
    transform_state: PyTree
    inner: optax.OptState
    extras_inner: optax.OptState
    transform: Static

    @property
    def encoded(self) -> Encoded:
        """The latents with what decodes them."""
        return Encoded(self.values, self.extras, self.transform_state)


def wrap(
    inner: optax.GradientTransformation,
    transform: Transform,
    extras_tx: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains latents with `inner`, so that the params are always decoded, compressed weights.

    The loop computes gradients at the params as ever. They are pulled back through `decode`, `inner`
    steps the latents, and the returned update lands the params on the newly decoded weights, within
    one ulp of the larger of old and new (p + (n - p) rounds), zeros exactly. `mz.params` gives the
    exact ones. Leaves that the transform does not select are trained by `inner` as if unwrapped.

    It must stand last in an `optax.chain`: whatever scales updates after it would take the params off
    the grid. `optax.MultiSteps` goes outside. Extra keyword arguments of `update` reach both `inner`
    and `transform.update`. `inner`'s moments of weights that a mask silences are cleared.

    Memory on top of `inner`'s: a copy of the selected leaves (float32 if they are half precision),
    and the transform's state: one bit a weight for `prune`, the step sizes for `quantize`.

    Args:
      inner: the optimizer of the latents; weight decay, clipping and schedules belong here.
      transform: what the weights are encoded by.
      extras_tx: the optimizer of the transform's own numbers, such as learned step sizes (relative
        offsets, dimensionless). Default `optax.adam(1e-3)`.

    Example:
      >>> import modelzip_jax as mz
      >>> tx = mz.wrap(optax.sgd(0.1), mz.prune(sparsity=0.5))
      >>> params, state = mz.start(tx, {"w": jnp.array([1.0, -2.0])})
      >>> updates, state = tx.update({"w": jnp.ones(2)}, state, params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([ 0. , -2.1], dtype=float32)}
    """
    if not isinstance(transform, Transform):
        raise WrapError(f"wrap() takes an optimizer and a transform, not {transform!r}")
    inner = optax.with_extra_args_support(inner)
    extras_tx = optax.with_extra_args_support(extras_tx or optax.adam(1e-3))

    def init(params: PyTree) -> WrapState:
        trees.check_arrays(params)
        keep, treedef = transform.selects(trees.outlines(params)), jax.tree.structure(params)
        chosen = trees.select(params, keep, treedef)
        trees.check_floating(chosen, "wrap()")
        extra = {"frozen": outside(params, keep), **selected_extra(_init_extra.get(), keep, treedef)}
        encoded = transform.init(chosen, **extra)
        # A copy, so that the loop may donate both the params and this state.
        values = jax.tree.map(lambda x: jnp.array(x, copy=True), encoded.values)
        return WrapState(
            jnp.zeros((), jnp.int32), values, encoded.extras, encoded.state,
            inner.init(trees.merge(params, values)), extras_tx.init(encoded.extras), Static(transform),
        )  # fmt: skip

    def update(
        updates: PyTree, state: WrapState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, WrapState]:
        if params is None:
            raise WrapError("wrap() needs the params: call tx.update(grads, opt_state, params)")
        structure = jax.tree.structure(params)
        keep = _follows(params, updates, state.values)
        grads = trees.select(updates, keep, structure)
        count = optax.safe_increment(state.count)
        # Before the step: masks chosen from the stored latents leave the step itself one fused pass
        # over the weights (after it, a refresh that does not happen would still cost a third more).
        chosen = {**selected_extra(extra, keep, structure), "grads": grads}
        values, extras, transform_state = transform.update(
            *state.encoded, **{**chosen, "step": count, "frozen": outside(params, keep)}
        )
        decoded, pull = jax.vjp(lambda v, e: transform.decode(v, e, transform_state), values, extras)
        value_grads, extra_grads = pull(
            jax.tree.map(lambda g, d: sharded_as(g, d).astype(d.dtype), grads, decoded)
        )

        trained = trees.merge(params, values)
        inner_state = state.inner
        # Where no mask can have changed, moments outside it are zero already, and a pass over them is saved.
        revised = not _same_leaves(transform_state, state.transform_state)
        support = transform.support(values, transform_state, None) if revised else None
        if support is not None:
            everywhere = jax.tree.map(lambda _: True, params)
            inner_state = clear_moments(inner_state, trained, trees.merge(everywhere, support))
        steps, inner_state = inner.update(trees.merge(updates, value_grads), inner_state, trained, **extra)
        values = trees.select(optax.apply_updates(trained, steps), keep, structure)
        extra_steps, extras_inner = extras_tx.update(extra_grads, state.extras_inner, extras)
        extras = optax.apply_updates(extras, extra_steps)

        landing = jax.tree.map(
            lambda g, new, old: (sharded_as(new, old) - old).astype(g.dtype),
            grads, transform.decode(values, extras, transform_state), trees.select(params, keep, structure),
        )  # fmt: skip
        state = WrapState(count, values, extras, transform_state, inner_state, extras_inner, state.transform)
        return trees.merge(_only_unselected(steps, keep, params), landing), state

    return optax.GradientTransformationExtraArgs(init, update)


def _same_leaves(a: PyTree, b: PyTree) -> bool:
    """Whether two trees hold the very same arrays: under `jit`, whether nothing was computed."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _follows(params: PyTree, updates: PyTree, values: PyTree) -> list[bool]:
    """For each leaf of params whether it has a latent; refuses gradients of another structure."""
    treedef = jax.tree.structure(params)
    if jax.tree.structure(updates) != treedef:
        raise TreeError(
            f"the gradients have the structure {jax.tree.structure(updates)}, the params {treedef}"
        )
    return [not isinstance(part, trees.Unselected) for part in treedef.flatten_up_to(values)]


def _only_unselected(steps: PyTree, keep: list[bool], params: PyTree) -> PyTree:
    """The inner optimizer's updates, of the params' structure; placeholders where latents are."""
    treedef = jax.tree.structure(params)
    parts = zip(treedef.flatten_up_to(steps), keep, strict=True)
    return treedef.unflatten([0.0 if k else step for step, k in parts])


def find_state(opt_state: PyTree) -> WrapState:
    """The one `WrapState` within an optimizer's state.

    Raises:
      WrapError: there is none or more than one, or something follows it in an `optax.chain`.
    """
    found = list(_walk(trees.plain(opt_state), True))
    if len(found) != 1:
        raise WrapError(f"expected one optimizer made by mz.wrap in this state, found {len(found)}")
    state, last = found[0]
    if not last:
        raise WrapError(
            "mz.wrap is followed by another transformation in an optax.chain, which would take the "
            "params off the compressed weights; put it last: optax.chain(..., mz.wrap(tx, transform))"
        )
    return state


def _walk(node: PyTree, last: bool) -> Iterator[tuple[WrapState, bool]]:
    if isinstance(node, WrapState):
        yield node, last
        return
    # optax.chain keeps its members' states in a plain tuple, in order; other wrappers use NamedTuples.
    is_chain = type(node) is tuple
    children = jax.tree.leaves(node, is_leaf=lambda x: x is not node)
    for index, child in enumerate(children):
        if child is not node:
            yield from _walk(child, last and (not is_chain or index == len(children) - 1))


def params(opt_state: PyTree, params: PyTree) -> PyTree:
    """The exact decoded weights, in the params' structure and dtypes.

    Args:
      opt_state: the state of an optimizer that holds an `mz.wrap`.
      params: the loop's params: unselected leaves are taken from here.
    """
    state = find_state(opt_state)
    return trees.merge(trees.plain(params), state.transform.value.decode(*state.encoded))


_init_extra: ContextVar[dict[str, Any]] = ContextVar("extra of start", default={})  # noqa: B039
"""What `start` passes to the transform's `init`, around optax's `init(params)` that takes no more."""


def start(tx: optax.GradientTransformation, params: PyTree, **extra: Any) -> tuple[PyTree, optax.OptState]:
    """Takes the place of `tx.init(params)`: `(params, opt_state)`, with the params decoded.

    Args:
      tx: an optimizer that is or holds an `mz.wrap`.
      params: the weights to start from, or an `mz.Packed` model, which resumes: masks, step sizes
        and the step counter go on from the file; the wrapped optimizer's moments start afresh.
      **extra: what the transform's `init` reads, such as `grads`, `stats` or `scores`.

    Raises:
      WrapError: `tx` holds no `mz.wrap`, or one that is not last in its chain.
    """
    from modelzip_jax.packing import Packed, resume, unpack

    weights = unpack(params) if isinstance(params, Packed) else params
    token = _init_extra.set(extra)
    try:
        opt_state = tx.init(weights)
    finally:
        _init_extra.reset(token)
    if not isinstance(params, Packed):
        state = find_state(opt_state)
        decoded = trees.merge(params, state.transform.value.decode(*state.encoded))
        return jax.tree.map(sharded_as, decoded, params), opt_state
    transform = find_state(opt_state).transform.value
    _, values, extras, state = resume(params, transform)
    count = jnp.asarray(params.step, jnp.int32)

    def replace(node: PyTree) -> PyTree:
        if not isinstance(node, WrapState):
            return node
        return node._replace(count=count, values=values, extras=extras, transform_state=state)

    is_state = lambda x: isinstance(x, WrapState)  # noqa: E731
    return weights, jax.tree.map(replace, opt_state, is_leaf=is_state)


def metrics(opt_state: PyTree) -> dict[str, jax.Array]:
    """Scalars about the encoded leaves, computed from the state alone, also under `jit`.

    Always: "bits_per_weight", the estimated stored bits over the number of weights. From `prune`:
    "sparsity" and "mask_churn" (the share of mask bits that the last refresh changed).
    """
    state = find_state(opt_state)
    transform = state.transform.value
    decoded = jax.eval_shape(transform.decode, *state.encoded)
    weights = max(sum(x.size for x in jax.tree.leaves(decoded)), 1)
    found = {"bits_per_weight": rate(transform, *state.encoded) / weights}
    return {**found, **transform.metrics(*state.encoded)}
