"""What arguments that are no arrays must be: states, functions, optimizers; and weights that can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from modelzip_jax.errors import DistillationError
from modelzip_jax.tree import PyTree, named_leaves

__all__ = ["check_function", "check_made_by", "check_mapping", "check_optimizer", "check_trainable"]


def check_made_by(value: Any, kind: type, call: str, argument: str, maker: str) -> None:
    """A value of a class of ours: what one function made and another one is given.

    Args:
      call: how it is written, with the arguments in their order. maker: the call that makes the value.

    Raises:
      DistillationError: it is of another class.

    >>> check_made_by({}, tuple, "move_teacher(state, params, decay)", "state", "start_moving_teacher(params)")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: move_teacher(state, params, decay): state must be the tuple of
    start_moving_teacher(params), not a dict
    """
    if not isinstance(value, kind):
        raise DistillationError(
            f"{call}: {argument} must be the {kind.__name__} of {maker}, not a {type(value).__name__}"
        )


def check_function(value: Any, call: str, argument: str, signature: str) -> None:
    """A function of the caller's.

    Raises:
      DistillationError: it cannot be called.

    >>> check_function(None, "born_again(train, generations)", "train", "(teacher, generation) -> Teacher")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: born_again(train, generations): train must be a function ...
    """
    if not callable(value):
        raise DistillationError(
            f"{call}: {argument} must be a function {signature}, not a {type(value).__name__}"
        )


def check_mapping(value: Any, call: str, argument: str, example: str) -> None:
    """Something by its names, in a dict.

    Raises:
      DistillationError: it is none.

    >>> check_mapping([1.0], "fixed_weights", "weights", "{'labels': 1.0}")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: fixed_weights: weights must be a dict such as {'labels': 1.0}, not a list
    """
    if not isinstance(value, Mapping):
        raise DistillationError(
            f"{call}: {argument} must be a dict such as {example}, not a {type(value).__name__}"
        )


def check_optimizer(value: Any, call: str, argument: str) -> None:
    """An optax optimizer: whatever has `init` and `update`.

    Raises:
      DistillationError: it is none; of a function, which may have been meant to be called.

    >>> import optax
    >>> check_optimizer(optax.adam, "condense", "tx")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: condense: tx must be an optax optimizer such as optax.adam(1e-3), not the
    function adam: call it
    """
    if all(callable(getattr(value, name, None)) for name in ("init", "update")):
        return
    what = f"a {type(value).__name__}"
    if callable(value):
        what = f"the function {getattr(value, '__name__', value)}: call it"
    raise DistillationError(
        f"{call}: {argument} must be an optax optimizer such as optax.adam(1e-3), not {what}"
    )


def check_trainable(params: PyTree, call: str, argument: str) -> None:
    """Weights that have gradients: of floating or complex dtypes.

    Raises:
      DistillationError: a leaf has none; the message names it.

    >>> check_trainable({"kernel": jnp.ones(2, int)}, "min_max_game", "params")
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: min_max_game: params 'kernel' is int32, which has no gradient: ...
    """
    for name, leaf in named_leaves(params):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(type(leaf))
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise DistillationError(
                f"{call}: {argument} {name!r} is {dtype}, which has no gradient: convert it to float32, or keep it "
                "out of what is trained"
            )
