"""Forgetting: how often an example, once classified correctly, is lost again during training."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.distillation.argument_checks import check_made_by
from modelzip_jax.distillation.array_checks import as_numbers, check_indices
from modelzip_jax.distillation.finite_numbers import check_count
from modelzip_jax.errors import DistillationError

__all__ = ["Forgetting", "forgetting_scores", "record_forgetting", "start_forgetting"]


class Forgetting(NamedTuple):
    """What is known of each of n examples: bool, int32 and bool `(n,)`; a pytree that a jitted step may carry.

    correct: whether it was classified correctly when last seen. events: how often it has been forgotten.
    learned: whether it was ever classified correctly.

    >>> start_forgetting(2).events
    Array([0, 0], dtype=int32)
    """

    correct: jax.Array
    events: jax.Array
    learned: jax.Array


def start_forgetting(examples: int) -> Forgetting:
    """Nothing seen yet.

    Args:
      examples: how many there are.

    Raises:
      DistillationError: it is no count.

    >>> start_forgetting(2).correct
    Array([False, False], dtype=bool)
    """
    examples = check_count(examples, "start_forgetting: examples")
    return Forgetting(jnp.zeros(examples, bool), jnp.zeros(examples, jnp.int32), jnp.zeros(examples, bool))


def record_forgetting(state: Forgetting, indices: jax.Array, correct: jax.Array) -> Forgetting:
    """After a step on a batch: an event is an example that was correct when last seen, and is not now.

    Toneva et al. 2019 (https://arxiv.org/abs/1812.05159, §3.1 and algorithm 1): examples are looked at when they are
    in the batch, with the predictions that the training step makes anyway. Jittable.

    Args:
      indices: integers `(batch,)`, no two alike: a field `"index": np.arange(n)` of the data comes with each batch.
      correct: bool `(batch,)`, `jnp.argmax(logits, -1) == labels`.

    Raises:
      DistillationError: the state is none; they are not of these shapes and dtypes; an index is out of range or there
        twice, where it can be read. Traced ones out of range are left out.

    >>> state = start_forgetting(3)
    >>> for seen in ([True, False, True], [False, False, True], [True, False, True]):
    ...     state = record_forgetting(state, jnp.arange(3), jnp.array(seen))
    >>> state.events
    Array([1, 0, 0], dtype=int32)
    """
    check_made_by(state, Forgetting, _CALL, "state", "start_forgetting(examples)")
    _check_batch(len(state.correct), indices, correct)
    # Negative ones would count from the end.
    indices, correct = jnp.asarray(indices), jnp.asarray(correct)
    indices = jnp.where(indices < 0, len(state.correct), indices)
    forgotten = state.correct[indices] & ~correct
    return Forgetting(
        state.correct.at[indices].set(correct),
        state.events.at[indices].add(forgotten.astype(jnp.int32)),
        state.learned.at[indices].max(correct),
    )


_CALL = "record_forgetting(state, indices, correct)"


def _check_batch(examples: int, indices: Any, correct: Any) -> None:
    for name, array in (("indices", indices), ("correct", correct)):
        as_numbers(array, f"record_forgetting: {name}")
    for name, array, kind in (("indices", indices, jnp.integer), ("correct", correct, jnp.bool_)):
        if not jnp.issubdtype(jnp.result_type(array), kind) or jnp.ndim(array) != 1:
            raise DistillationError(
                f"record_forgetting: {name} must be {'integers' if kind is jnp.integer else 'bools'} (batch,), not "
                f"{jnp.result_type(array)} {jnp.shape(array)}; the call is {_CALL}"
            )
    if jnp.shape(indices) != jnp.shape(correct):
        raise DistillationError(
            f"record_forgetting: indices {jnp.shape(indices)} and correct {jnp.shape(correct)} must be of one batch"
        )
    check_indices(indices, examples, "record_forgetting: indices")
    if not isinstance(indices, jax.core.Tracer) and getattr(indices, "is_fully_addressable", True):
        found, counts = np.unique(np.asarray(indices), return_counts=True)
        if np.any(counts > 1):
            raise DistillationError(
                f"record_forgetting: example {found[np.argmax(counts > 1)]} is there twice in one batch"
            )


def forgetting_scores(state: Forgetting) -> jax.Array:
    """Events of each example, float32 `(n,)`; infinite for what was never learned, as the paper sorts them (§3.1).

    `hardest` chooses by it.

    Raises:
      DistillationError: the state is none.

    >>> state = record_forgetting(start_forgetting(2), jnp.arange(2), jnp.array([True, False]))
    >>> forgetting_scores(state)
    Array([ 0., inf], dtype=float32)
    """
    check_made_by(state, Forgetting, "forgetting_scores(state)", "state", "record_forgetting")
    return jnp.where(state.learned, state.events.astype(jnp.float32), jnp.inf)
