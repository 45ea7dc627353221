"""Fine-tuning of what a packed model has beside its codes: step sizes, codebooks, biases, norms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from modelzip_jax import tree as trees
from modelzip_jax.errors import NonFiniteError, TransformError, TreeError
from modelzip_jax.given_values import as_positive, as_whole
from modelzip_jax.naming import require_known
from modelzip_jax.packed import Dense, is_packed
from modelzip_jax.packing import Packed, unpack
from modelzip_jax.patterns import matches, require_matches
from modelzip_jax.smallest.held_out import calibration_parts
from modelzip_jax.trace.jaxpr.model_inputs import batch_inputs
from modelzip_jax.tree import PyTree

__all__ = ["tune_scales"]


class _Number(NamedTuple):
    """An array of a packed model that is trained.

    place: among the leaves of the packed tree. array: float32. unit: what a change of 1 means, an array or a number.
    dtype: in which it is computed with.
    """

    place: int
    array: jax.Array
    unit: jax.Array
    dtype: Any


def tune_scales(
    packed: Packed,
    params: PyTree,
    calibrate: tuple[Callable[..., Any], Sequence[Any]],
    *,
    likelihood: Literal["categorical", "gaussian"] = "gaussian",
    epochs: int = 3,
    learning_rate: float = 1e-3,
    only: str | Sequence[str] = "**",
    seed: int = 0,
) -> Packed:
    """Trains the floating-point numbers of a packed model until its outputs are near to the float model's.

    Codes, masks and assignments stay as they are, and so does the size in memory. What is trained are step sizes,
    scales, codebooks and factors of encoded leaves, and lossless leaves of one axis at most: biases and norms. No
    labels are needed: the targets are the outputs of `params` for the same inputs. Arrays without negative numbers
    change by factors, others by shares of their root mean square. Numbers are rounded to their stored dtype in
    every step, straight through, so that what is trained is what is stored; those of 8 bits stay.

    The loss is KL(float ‖ packed) of logits for "categorical", and the squared error over the outputs' power for
    "gaussian"; Adam, its rate falling as a cosine to zero.

    Args:
      packed: from `mz.compress`, `mz.pack` or `mz.load`.
      params: the float model's, of the same structure.
      calibrate: `(apply_fn, batches)`, as of `mz.compress`. The float model's outputs are kept in memory.
      likelihood: what outputs are; "categorical" for logits.
      epochs: passes over the batches, in an order that is drawn anew for each.
      learning_rate: the first one; relative changes a step are about as large.
      only: path patterns of the leaves whose numbers are trained.
      seed: of the order.

    Returns:
      The packed model with other numbers; the recipe, step and metadata are kept.

    Raises:
      TransformError: an option out of range, no batches, or nothing to train. PatternError: a pattern matches nothing.
      TreeError: `params` have another structure. NonFiniteError: training diverged: lower the learning rate.

    "Rescalers" in WaterSIC (arXiv:2603.04956); norms and biases alone: Norm Tweaking (Li et al. 2023,
    arXiv:2309.02784); step sizes alone: PEQA (Kim et al. 2023, arXiv:2305.14152).

    >>> import modelzip_jax as mz
    >>> x = jax.random.normal(jax.random.key(0), (64, 32))
    >>> model = lambda p, x: jnp.tanh(x @ p["w"] + p["b"])
    >>> params = {"w": jax.random.normal(jax.random.key(1), (32, 8)) / 6, "b": jnp.ones(8)}
    >>> packed = mz.compress(params, mz.only("w", mz.quantize(2)))
    >>> tuned = mz.tune_scales(packed, params, (model, [x]), epochs=100, learning_rate=0.03)
    >>> error = lambda p: float(jnp.mean(jnp.square(model(mz.unpack(p), x) - model(params, x))))
    >>> error(tuned) < 0.8 * error(packed), tuned.nbytes == packed.nbytes
    (True, True)
    """
    require_known("likelihood", likelihood, ("categorical", "gaussian"))
    epochs, rate = as_whole(epochs, "epochs", 1), as_positive(learning_rate, "learning_rate")
    seed = as_whole(seed, "seed", 0)
    apply_fn, batches, _ = calibration_parts(calibrate, False)
    if not isinstance(packed, Packed):
        raise TransformError(f"tune_scales() takes what mz.compress gives, not a {type(packed).__name__}")
    names = [name for name, _ in trees.named_leaves(packed.params, is_packed)]
    if names != [name for name, _ in trees.named_leaves(trees.plain(params))]:
        raise TreeError("tune_scales() takes the params that were compressed: these have other leaves")
    leaves, treedef = jax.tree.flatten(packed.params)
    numbers = _numbers(packed.params, (only,) if isinstance(only, str) else tuple(only))
    loss = _loss(apply_fn, packed.params, params, numbers, likelihood)
    inputs = [batch_inputs(batch, i) for i, batch in enumerate(batches)]
    run = jax.jit(apply_fn)
    targets = [np.asarray(run(params, *x)) for x in inputs]
    steps = epochs * len(inputs)
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(changes: Any, opt_state: Any, leaves: Any, x: Any, target: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(changes, leaves, x, target)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(changes, updates), opt_state, value

    changes = [jnp.zeros_like(number.array) for number in numbers]
    opt_state, order, last = tx.init(changes), np.random.default_rng(seed), jnp.zeros(())
    for _ in range(epochs):
        for i in order.permutation(len(inputs)):
            changes, opt_state, last = step(changes, opt_state, leaves, inputs[i], targets[i])
    for number, change in zip(numbers, changes, strict=True):
        stored = leaves[number.place].dtype
        leaves[number.place] = np.asarray(_changed(number, change).astype(number.dtype)).astype(stored)
    found = [np.isfinite(leaves[n.place].astype(np.float32)).all() for n in numbers]
    if not np.isfinite(float(last)) or not all(found):
        raise NonFiniteError(f"tune_scales() diverged with a learning rate of {rate}: give a lower one")
    return dataclasses.replace(packed, params=treedef.unflatten(leaves))


def _numbers(packed: PyTree, only: Sequence[str]) -> list[_Number]:
    """What is trained, by its place among all arrays of the packed tree."""
    found, place = [], 0
    named = trees.named_leaves(packed, is_packed)
    require_matches(only, [name for name, _ in named])
    for name, leaf in named:
        chosen = any(matches(pattern, name) for pattern in only)
        whole = isinstance(leaf, Dense) and len(leaf.shape) > 1
        for array in jax.tree.leaves(leaf):
            dtype = jnp.result_type(array)
            trained = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 1 and np.size(array) > 0
            if chosen and trained and not whole:
                found.append(_Number(place, jnp.asarray(array, jnp.float32), _unit(array), dtype))
            place += 1
    if not found:
        raise TransformError(f"tune_scales() found no step size, bias or other number to train in {only}")
    return found


def _unit(array: Any) -> jax.Array:
    x = jnp.asarray(array, jnp.float32)
    # Variances of channels that have died are zero, and must not fall below.
    if bool(jnp.all(x >= 0) & jnp.any(x > 0)):
        return x
    size = jnp.sqrt(jnp.mean(jnp.square(x)))
    return jnp.where(size > 0, size, 1.0)


def _changed(number: _Number, change: jax.Array) -> jax.Array:
    """The array as it will be stored, in float32; its gradient goes straight through the rounding.

    A relative change by d is one by the factor 1 + d above 0 and 1 / (1 - d) below, which stays positive.
    """
    if number.unit.ndim:
        exact = number.array * jnp.where(change > 0, 1.0 + change, 1.0 / (1.0 - jnp.minimum(change, 0.0)))
    else:
        exact = number.array + number.unit * change
    return exact + jax.lax.stop_gradient(exact.astype(number.dtype).astype(jnp.float32) - exact)


def _loss(
    apply_fn: Callable[..., Any],
    packed: PyTree,
    params: PyTree,
    numbers: list[_Number],
    likelihood: str,
) -> Callable[..., jax.Array]:
    treedef = jax.tree.structure(packed)

    def loss(changes: Any, leaves: Any, x: Any, target: Any) -> jax.Array:
        held = list(leaves)
        for number, change in zip(numbers, changes, strict=True):
            held[number.place] = _changed(number, change).astype(number.dtype)
        weights = trees.restored(unpack(treedef.unflatten(held)), params)
        found, wanted = apply_fn(weights, *x).astype(jnp.float32), target.astype(jnp.float32)
        if likelihood == "categorical":
            logs = jax.nn.log_softmax(wanted)
            return jnp.mean(jnp.sum(jnp.exp(logs) * (logs - jax.nn.log_softmax(found)), axis=-1))
        return jnp.mean(jnp.square(found - wanted)) / jnp.maximum(jnp.mean(jnp.square(wanted)), 1e-30)

    return loss
