"""`wrap`: any optax optimizer trains compressed weights, with no other change to the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from modelzip_jax import tree as trees
from modelzip_jax.combinator import check_transform, selected, support_of, told, wide
from modelzip_jax.errors import RecipeError, TreeError, WrapError
from modelzip_jax.jax_settings import unwatched
from modelzip_jax.leaf_checks import all_finite, check_arrays, check_finite, check_floating
from modelzip_jax.loop.callables import at_weights
from modelzip_jax.loop.moments import hold_hidden, renew_hidden
from modelzip_jax.loop.states import WrapState
from modelzip_jax.meshes import placed_as, sharded_as
from modelzip_jax.packing import Packed, resumed
from modelzip_jax.recipe import alike
from modelzip_jax.transform import Context, Encoded, Transform
from modelzip_jax.tree import PyTree, Static

__all__ = ["wrap"]


def wrap(
    inner: optax.GradientTransformation,
    transform: Transform | Packed,
    *,
    given: Mapping[str, Any] | None = None,
    resume: Packed | None = None,
    offsets_tx: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains latents with `inner`, so that the params are always decoded, compressed weights.

    The loop computes gradients at the params as ever. They are pulled back through `decode`, `inner`
    steps the latents, and the returned update lands the params on the newly decoded weights, within
    one ulp of the larger of old and new (p + (n - p) rounds), zeros exactly. `mz.params` gives the
    exact ones. Where decoding is a sum, as of wavelets, every program rounds it in its own way, by a few ulp of the
    leaf's largest weight. Leaves that the transform does not select are trained by `inner` as if unwrapped.

    What averages, clips, scales or schedules belongs inside. Around it may stand `optax.chain` with `mz.wrap` last,
    `partition`, `masked`, `MultiSteps`, `apply_if_finite` and `inject_hyperparams`; whatever else changes updates
    after it is refused by `mz.start`, `mz.params`, `mz.pack` and `mz.metrics`. Updates have the params' dtypes.
    Latents that a mask hides stay as they are, and `inner` remembers nothing of them. Extra keyword arguments of
    `update` reach `inner`, functions of the params among them (`value_fn`) as functions of the latents, and those
    that are fields of `mz.Context` reach `transform.update`.

    Memory on top of `inner`'s: a copy of the selected leaves (float32 if they are half precision),
    and the transform's state: one bit a weight for `prune`, the step sizes for `quantize`.

    Args:
      inner: the optimizer of the latents; weight decay, clipping and schedules belong here.
      transform: what the weights are encoded by. A packed model resumes with its own recipe.
      given: what the transform's `init` reads beside the weights: fields of `mz.Context`, such as `stats`, `grads`,
        `scores` (trees like the params) or `key`, and a transform's own. Refreshes read them too, unless `update`
        is told newer ones.
      resume: a packed model to go on from: masks, codebooks, step sizes and the step counter are its own; `inner`'s
        moments, and what a score has watched, start afresh. Initialise with the params of `mz.unpack(packed)`: of
        other ones the leaves that it encodes are not looked at, and the rest is refused.
      offsets_tx: the optimizer of the transform's own numbers, such as learned step sizes (relative
        offsets, dimensionless). Default `optax.adam(1e-3)`.

    Raises:
      TransformError, WrapError: arguments that are no optimizer or transform. (At `init`) LeafError: a selected leaf is
        not floating-point. PatternError: a pattern selects nothing. RecipeError: `resume` was packed by another recipe.

    Example:
      >>> import modelzip_jax as mz
      >>> tx = mz.wrap(optax.sgd(0.1), mz.prune(sparsity=0.5))
      >>> params, state = mz.start(tx, {"w": jnp.array([1.0, -2.0])})
      >>> updates, state = tx.update({"w": jnp.ones(2)}, state, params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([ 0. , -2.1], dtype=float32)}
    """
    if isinstance(transform, Packed):
        resume, transform = resume or transform, transform.transform
    _check_arguments(inner, transform, resume, offsets_tx)
    from modelzip_jax.loop.serialization import (
        register_static_nodes,  # Flax takes a fifth of a second to import.
    )

    register_static_nodes()
    inner = optax.with_extra_args_support(inner)
    offsets_tx = optax.with_extra_args_support(offsets_tx or _adam())

    @unwatched()
    def init(params: PyTree) -> WrapState:
        params = trees.plain(params)
        structure = jax.tree.structure(params)
        encoded, step = _begun(transform, params, given or {}, resume)
        # A copy, so that the loop may donate both the params and this state.
        latents = jax.tree.map(lambda x: jnp.array(x, copy=True), encoded.latents)
        trained = trees.merge(params, latents)
        if jax.device_count() > 1:
            trained = jax.tree.map(_placed, params, trained)
            latents = trees.select(
                trained, [not trees.absent(x) for x in structure.flatten_up_to(latents)], structure
            )
        offsets_inner = offsets_tx.init(encoded.offsets) if _has_offsets(encoded.offsets) else ()
        return WrapState(
            jnp.asarray(step, jnp.int32), latents, encoded.offsets, encoded.state, _started(inner, trained),
            offsets_inner, Static(transform),
        )  # fmt: skip

    def update(
        updates: PyTree, state: WrapState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, WrapState]:
        if params is None:
            raise WrapError("wrap() needs the params: call tx.update(grads, opt_state, params)")
        if not hasattr(state, "latents"):
            raise WrapError(
                "update() takes the gradients, the state that tx.init gave, and the params, in this order; in the "
                f"place of the state stands a {type(state).__name__}"
            )
        _check_recipe(state.transform.value, transform)
        given_params, params, updates = params, trees.plain(params), trees.plain(updates)
        structure = jax.tree.structure(params)
        keep = _follows(params, updates, state.latents)
        grads = trees.select(updates, keep, structure)
        step = optax.safe_increment(state.step)
        context = told(params, keep, {**(given or {}), **extra}, "update()").replace(
            step=step, grads=wide(grads)
        )
        # Before the step: masks chosen from the stored latents leave the step itself one fused pass
        # over the weights (after it, a refresh that does not happen would still cost a third more).
        fixed = jax.lax.stop_gradient  # Nothing that is chosen has a derivative, nor has the search for it.
        encoded = transform.update(
            jax.tree.map(fixed, state.encoded), context.over(lambda x: jax.tree.map(fixed, x))
        )
        if not transform.moves_latents:
            encoded = encoded._replace(latents=state.latents)

        def decode(latents: PyTree, offsets: PyTree) -> PyTree:
            return transform.decode(Encoded(latents, offsets, encoded.state))

        decoded, pull = jax.vjp(decode, encoded.latents, encoded.offsets)
        latent_grads, offset_grads = pull(
            jax.tree.map(lambda g, d: sharded_as(g, d).astype(d.dtype), grads, decoded)
        )
        trained, inner_state = trees.merge(params, encoded.latents), state.inner
        support = support_of(transform, encoded)
        if support is not None:
            support = trees.merge(jax.tree.map(lambda _: True, params), support)
            if transform.remasks:
                inner_state = renew_hidden(inner, inner_state, trained, support)
        arguments = at_weights(
            extra, given_params, keep, lambda latents: decode(latents, encoded.offsets), trained
        )
        steps, inner_state = _stepped(
            inner, trees.merge(updates, latent_grads), inner_state, trained, arguments
        )
        if support is not None:
            steps = hold_hidden(steps, support)
        latents = trees.select(optax.apply_updates(trained, steps), keep, structure)
        latents = jax.tree.map(placed_as, latents, state.latents)
        offsets, offsets_inner = _offsets_step(offsets_tx, offset_grads, encoded.offsets, state.offsets_inner)

        chosen = trees.select(params, keep, structure)
        landing = jax.tree.map(
            lambda new, old: placed_as((sharded_as(new, old) - old).astype(old.dtype), old),
            transform.decode(Encoded(latents, offsets, encoded.state)), chosen,
        )  # fmt: skip
        landed = trees.merge(_only_unselected(steps, keep, params), landing)
        new = WrapState(step, latents, offsets, encoded.state, inner_state, offsets_inner, state.transform)
        return trees.restored(landed, given_params), new

    return optax.GradientTransformationExtraArgs(init, update)


def _check_arguments(inner: Any, transform: Any, resume: Any, offsets_tx: Any) -> None:
    if isinstance(inner, Transform | Packed) and not isinstance(transform, Transform):
        raise WrapError("wrap() takes the optimizer first: mz.wrap(optax.adamw(1e-3), transform)")
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise WrapError(f"wrap() takes an optax optimizer such as optax.adamw(1e-3), not {inner!r:.200}")
    if offsets_tx is not None and not hasattr(offsets_tx, "init"):
        raise WrapError(f"offsets_tx= takes an optax optimizer, not {offsets_tx!r:.100}")
    check_transform(transform, "wrap()")
    if resume is not None and not isinstance(resume, Packed):
        raise WrapError(
            f"resume= takes a packed model, as mz.load or mz.pack give it, not {type(resume).__name__}"
        )


def _check_recipe(began: Transform, goes_on: Transform) -> None:
    """Refuses a state that another recipe began; functions without a name are not looked at."""
    if began is goes_on or alike(began, goes_on):
        return
    raise WrapError(
        "the optimizer state was begun by another transform than the one that this mz.wrap has; to go on with another, "
        "pack it and resume: mz.wrap(optimizer, transform, resume=mz.pack(opt_state, params))"
    )


def _begun(
    transform: Transform, params: PyTree, given: Mapping[str, Any], resume: Packed | None
) -> tuple[Encoded, int]:
    """What training begins with, and the steps already taken."""
    if isinstance(params, optax.LookaheadParams):
        raise _wants_pairs("its params are LookaheadParams")
    if resume is not None:
        if not 0 <= resume.step < 1 << 31:
            raise RecipeError(
                f"the packed model says that {resume.step} steps were taken, and steps are counted in 32 bits; with "
                "dataclasses.replace(packed, step=...) you say how many"
            )
        encoded = resumed(resume, transform, params)
        check_floating(encoded.latents, "wrap()")
        return encoded, resume.step
    check_arrays(params)
    # Trees without leaves are placeholders, by which optax.tree_map_params asks where the params are.
    if not jax.tree.leaves(params):
        return transform.init(params, Context()), 0
    weights, context, _ = selected(transform, params, given, "wrap()")
    check_floating(weights, "wrap()")
    check_finite(weights)
    return transform.init(weights, context), 0


def _started(inner: optax.GradientTransformation, trained: PyTree) -> optax.OptState:
    try:
        state = inner.init(trained)
    except AttributeError as error:
        raise _wants_pairs(error) from error
    inside = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, WrapState))
    if any(isinstance(x, WrapState) for x in inside):
        raise WrapError(
            "mz.wrap stands inside mz.wrap; put both transforms into one, by mz.chain or mz.partition"
        )
    return state


def _wants_pairs(error: AttributeError | str) -> WrapError:
    return WrapError(
        f"the optimizer does not train a tree of weights ({error}); optax.lookahead, which wants pairs of "
        "them, does not go into mz.wrap: mz.loop.with_average keeps an average there"
    )


def _stepped(
    inner: optax.GradientTransformationExtraArgs,
    grads: PyTree,
    state: PyTree,
    trained: PyTree,
    arguments: dict[str, Any],
) -> tuple[PyTree, PyTree]:
    try:
        return inner.update(grads, state, trained, **arguments)
    except AttributeError as error:
        if not any(name in str(error) for name in ("'fast'", "'slow'")):
            raise
        raise _wants_pairs(error) from error
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise WrapError(
            "the optimizer takes second derivatives of the loss, and rounding has a gradient by definition only: "
            "Sophia and its like train masks and linear transforms, not steps and codebooks"
        ) from error


def _placed(param: Any, latent: PyTree) -> PyTree:
    """A latent, or those within one, of a param's shape, sharded as the param is."""
    return jax.tree.map(lambda x: placed_as(x, param), latent)


def _adam() -> optax.GradientTransformation:
    """The default optimizer of offsets; it counts steps as integers, to which strict promotion adds no float."""
    adam = optax.adam(1e-3)

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(updates, state, params)

    return optax.GradientTransformation(adam.init, update)


def _has_offsets(offsets: PyTree) -> bool:
    """By structure, as by placeholders for the params, which have no leaves, the same states must be found."""
    return bool(jax.tree.leaves(offsets, is_leaf=lambda x: type(x) is not tuple))


def _offsets_step(
    tx: optax.GradientTransformationExtraArgs, grads: PyTree, offsets: PyTree, state: PyTree
) -> tuple[PyTree, PyTree]:
    """A step of the offsets; none if a gradient is not finite, as such a step would be felt for ever."""
    if not jax.tree.leaves(offsets):
        return offsets, state
    steps, new = tx.update(grads, state, offsets)
    finite = all_finite(grads)
    chosen = lambda a, b: jax.tree.map(lambda x, y: jnp.where(finite, x, y), a, b)  # noqa: E731
    return chosen(optax.apply_updates(offsets, steps), offsets), chosen(new, state)


def _follows(params: PyTree, updates: PyTree, latents: PyTree) -> list[bool]:
    """For each leaf of params whether it has a latent; refuses gradients of another structure."""
    structure = jax.tree.structure(params)
    if jax.tree.structure(updates) != structure:
        raise TreeError(
            f"the gradients do not have the structure of the params: {trees.unlike(updates, params)}"
        )
    for (name, g), p in zip(trees.named_leaves(updates), jax.tree.leaves(params), strict=True):
        if jnp.shape(g) != jnp.shape(p):
            raise TreeError(
                f"the gradient of leaf {name!r} has the shape {jnp.shape(g)}, the leaf {jnp.shape(p)}"
            )
    try:
        parts = structure.flatten_up_to(latents)
    except (ValueError, TypeError, KeyError) as error:
        raise TreeError(
            f"the params do not have the structure that mz.wrap was started with: {trees.unlike(params, latents)}"
        ) from error
    return [not trees.absent(part) for part in parts]


def _only_unselected(steps: PyTree, keep: list[bool], params: PyTree) -> PyTree:
    """The inner optimizer's steps in the params' structure; encoded leaves' are placeholders."""
    structure = jax.tree.structure(params)
    parts = structure.flatten_up_to(steps)
    return structure.unflatten([0.0 if k else s for s, k in zip(parts, keep, strict=True)])
