"""What a loop takes out of a wrapped optimizer: params, metrics, averages, the packed model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from modelzip_jax import tree as trees
from modelzip_jax.combinator import selects
from modelzip_jax.concrete import any_nan
from modelzip_jax.errors import NonFiniteError, TransformError, TreeError, WrapError
from modelzip_jax.extreme_weights import check_decodes
from modelzip_jax.jax_settings import unwatched
from modelzip_jax.leaf_checks import check_finite
from modelzip_jax.loop.averaging import mean_of
from modelzip_jax.loop.states import WrapState, replace_states, wrap_states
from modelzip_jax.meshes import placed_as
from modelzip_jax.packed import is_packed
from modelzip_jax.packing import Packed, assembled
from modelzip_jax.partitioning import only, partition
from modelzip_jax.transform import Transform, dense, rate
from modelzip_jax.tree import PyTree

__all__ = ["averaged", "metrics", "pack", "params", "start"]


@unwatched()
def start(tx: optax.GradientTransformation, params: PyTree) -> tuple[PyTree, optax.OptState]:
    """`(params, opt_state)` to begin a loop with: `tx.init(params)`, and the params decoded.

    Args:
      tx: an optimizer that is or holds an `mz.wrap`.
      params: the weights to start from; to resume, `mz.unpack` of the packed model that `mz.wrap` was given.

    Raises:
      WrapError: `tx` holds no `mz.wrap`, or one that something changes updates after.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> tx = mz.wrap(optax.sgd(0.1), mz.prune(sparsity=0.5))
    >>> start(tx, {"w": jnp.array([1.0, -2.0])})[0]
    {'w': Array([ 0., -2.], dtype=float32)}
    """
    if not callable(getattr(tx, "init", None)):
        raise WrapError(
            f"start() takes the optimizer first, mz.start(tx, params), not a {type(tx).__name__}; of an nnx.Optimizer "
            "nothing need be started"
        )
    try:
        opt_state = tx.init(params)
    except TypeError as error:
        if "'context'" not in str(error):
            raise
        raise WrapError(
            "a transform of modelzip_jax stands among optimizers; it goes around one: mz.wrap(optimizer, transform)"
        ) from error
    decoded = _decoded(opt_state, params)
    return jax.tree.map(
        lambda new, old: new if new is old else placed_as(new, old), decoded, params
    ), opt_state


@unwatched()
def params(opt_state: PyTree, params: PyTree) -> PyTree:
    """The exact decoded weights, in the params' structure.

    Args:
      opt_state: the state of an optimizer that holds one `mz.wrap` or more.
      params: the loop's params: unselected leaves are taken from here.

    Raises:
      WrapError: the state holds no `mz.wrap`. TreeError: it belongs to params of another structure, of other shapes or
        dtypes.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> tx = mz.wrap(optax.sgd(0.1), mz.prune(sparsity=0.5))
    >>> dense = {"w": jnp.array([1.0, -2.0])}
    >>> mz.params(tx.init(dense), dense)
    {'w': Array([ 0., -2.], dtype=float32)}
    """
    return _decoded(opt_state, params)


def _decoded(opt_state: PyTree, params: PyTree) -> PyTree:
    found = trees.plain(params)
    for state in wrap_states(opt_state):
        decoded = state.decoded()
        _check_leaves(trees.named_leaves(decoded), found)
        found = trees.overlay(found, decoded)
    return trees.restored(found, params)


@unwatched()
def metrics(opt_state: PyTree) -> dict[str, jax.Array]:
    """Scalars about the encoded leaves, computed from the state alone, also under `jit`.

    Always: "bits_per_weight", the estimated stored bits over the number of weights. From `prune`: "sparsity" and
    "mask_churn" (the share of mask bits that the last refresh changed), each of its own masks. Where several parts of
    a chain have a metric, its name begins with the part's index, "0:sparsity"; in a partition, with the part's label,
    "conv:sparsity". Of several `mz.wrap` in one optimizer, names begin with "0/", "1/" and so on, in the order in
    which the state holds them.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> tx = mz.wrap(optax.sgd(0.1), mz.prune(sparsity=0.75))
    >>> found = metrics(tx.init({"w": jnp.arange(1.0, 9.0)}))
    >>> sorted(found), float(found["sparsity"])
    (['bits_per_weight', 'mask_churn', 'sparsity'], 0.75)
    """
    states = wrap_states(opt_state)
    found = [_metrics(state) for state in states]
    if len(found) == 1:
        return found[0]
    return {f"{index}/{name}": x for index, one in enumerate(found) for name, x in one.items()}


def _metrics(state: WrapState) -> dict[str, jax.Array]:
    transform = state.transform.value
    decoded = jax.eval_shape(transform.decode, state.encoded)
    weights = max(sum(x.size for x in jax.tree.leaves(decoded)), 1)
    bits = rate(transform, state.encoded) / weights
    return {"bits_per_weight": bits, **transform.metrics(state.encoded)}


@unwatched()
def pack(opt_state: PyTree, params: PyTree, *, variables: PyTree = None) -> Packed:
    """Packs a model that `mz.wrap` has trained.

    Args:
      opt_state: the optimizer state, which holds the latents, and the transform.
      params: the loop's params; leaves that the transform leaves alone are taken from here.
      variables: what is to travel along uncompressed, such as batch statistics.

    Returns:
      A `Packed` model; `mz.unpack` of it equals `mz.params(opt_state, params)`.

    Raises:
      WrapError: the state holds no `mz.wrap`.
      NonFiniteError: a latent, a step size, a codebook or a decoded weight is NaN or infinite, or any leaf NaN:
        training has diverged.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> tx = mz.wrap(optax.sgd(0.1), mz.prune(sparsity=0.5))
    >>> params, opt_state = mz.start(tx, {"w": jnp.array([1.0, -2.0])})
    >>> mz.unpack(pack(opt_state, params))
    {'w': Array([ 0., -2.], dtype=float32)}
    """
    if isinstance(opt_state, Transform):
        raise TransformError(
            "pack() takes the optimizer state, which holds the transform: mz.pack(opt_state, params)"
        )
    states, tree = wrap_states(opt_state), trees.plain(params)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((opt_state, tree))):
        raise TransformError("pack() makes what a file holds, outside of jit; within it, mz.params works")
    packed, names = tree, []
    for state in states:
        check_finite(state.encoded)
        packed = trees.overlay(
            packed, state.transform.value.pack(state.encoded, dense(state.latents)), is_packed
        )
        shapes = trees.named_leaves(jax.eval_shape(state.decoded))
        _check_leaves(shapes, tree)
        names.append([name for name, _ in shapes])
    rows = zip(trees.named_leaves(packed, is_packed), jax.tree.leaves(tree, is_leaf=is_packed), strict=True)
    for (name, leaf), here in rows:
        if is_packed(leaf):
            check_decodes(name, leaf, here)
        elif any_nan(leaf):
            raise NonFiniteError(f"leaf {name!r} is NaN, and no transform selects it: training has diverged")
    transforms = [state.transform.value for state in states]
    steps = max(int(state.step) for state in states)
    return assembled(packed, _recipe(transforms, names, tree), steps, variables)


def _check_leaves(trained: list[tuple[str, Any]], params: PyTree) -> None:
    """Refuses params of other shapes or dtypes than those that were trained."""
    given = dict(trees.named_leaves(params))
    for name, leaf in trained:
        if name not in given:
            continue
        for what, here, there in (
            ("shape", jnp.shape(given[name]), leaf.shape),
            ("dtype", jnp.result_type(given[name]), leaf.dtype),
        ):
            if here != there:
                raise TreeError(
                    f"leaf {name!r} has the {what} {here}, in the optimizer state {there}; pass the loop's params"
                )


def _recipe(transforms: list[Transform], names: list[list[str]], tree: PyTree) -> Transform:
    """One transform for the whole tree."""
    leaves = trees.outlines(tree)
    if len(transforms) == 1:
        chosen = zip(leaves, selects(transforms[0], leaves), strict=True)
        alone = [leaf.name for leaf, kept in chosen if kept] == names[0]
        return transforms[0] if alone else only(tuple(names[0]), transforms[0])
    labelled = {str(index): transform for index, transform in enumerate(transforms)}
    return partition(labelled, {name: str(index) for index, own in enumerate(names) for name in own})


@unwatched()
def averaged(
    opt_state: PyTree, params: PyTree, average: Callable[[PyTree, PyTree], PyTree] | None = None
) -> tuple[PyTree, PyTree]:
    """`(params, opt_state)` with averages in the place of the current weights, to evaluate or to pack.

    Under `mz.wrap` it is the latents that are averaged, and then decoded: an average of decoded weights would lie
    between the points of a quantizer's grid.

    Args:
      opt_state: the state of an optimizer that averages what it trains, within `mz.wrap` if there is one.
      params: the loop's params.
      average: from the averaging optimizer's state and what it trains to the average, such as
        `optax.contrib.schedule_free_eval_params`; that of `mz.loop.with_average` if None.

    Raises:
      WrapError: no average is found, or it stands around `mz.wrap`, where it averages decoded weights.

    >>> import jax.numpy as jnp, modelzip_jax as mz
    >>> inner = optax.contrib.schedule_free_sgd(0.5)
    >>> tx = mz.wrap(inner, mz.prune(sparsity=0.5))
    >>> params, opt_state = mz.start(tx, {"w": jnp.array([1.0, -2.0])})
    >>> params, opt_state = averaged(opt_state, params, optax.contrib.schedule_free_eval_params)
    >>> params
    {'w': Array([ 0., -2.], dtype=float32)}
    """
    average = average or mean_of
    plain, structure = trees.plain(params), jax.tree.structure(trees.plain(params))

    def replaced(state: WrapState) -> WrapState:
        latents = structure.flatten_up_to(trees.plain(state.latents))
        keep = [not trees.absent(x) for x in latents]
        trained = trees.merge(plain, state.latents)
        mean = average(state.inner, trained)
        others.append(trees.select(mean, [not k for k in keep], structure))
        cast = jax.tree.map(
            lambda m, x: m.astype(x.dtype), trees.select(mean, keep, structure), state.latents
        )
        return state._replace(latents=cast)

    others: list[PyTree] = []
    opt_state = replace_states(opt_state, replaced)
    if not others:
        mean = jax.tree.map(lambda m, p: m.astype(p.dtype), average(trees.plain(opt_state), plain), plain)
        return trees.restored(mean, params), opt_state
    for other in others:
        plain = jax.tree.map(
            lambda o, p: p if trees.absent(o) else o.astype(p.dtype), other, plain, is_leaf=trees.absent
        )
    return _decoded(opt_state, trees.restored(plain, params)), opt_state
