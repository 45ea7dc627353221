"""A student trained against its critics: the game, made of functions, optimizers and a balance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from modelzip_jax.distillation.argument_checks import check_function, check_mapping, check_optimizer
from modelzip_jax.distillation.balancing import Balancer, fixed_weights
from modelzip_jax.distillation.critics import Critic
from modelzip_jax.distillation.finite_numbers import check_count
from modelzip_jax.distillation.min_max_contest import Contest, Views
from modelzip_jax.distillation.min_max_state import MinMaxState, StudentOutput
from modelzip_jax.errors import DistillationError
from modelzip_jax.tree import PyTree

__all__ = ["MinMaxGame", "min_max_game"]


class MinMaxGame(NamedTuple):
    """`init(params, batch, key, variables=(), teacher_params=()) -> state`, and the step, pure, ready for `jit` and
    `scan`: `step(state, batch, teacher_params=()) -> (state, metrics)`.

    >>> MinMaxGame._fields
    ('init', 'step')
    """

    init: Callable[..., MinMaxState]
    step: Callable[..., tuple[MinMaxState, dict[str, jax.Array]]]


def min_max_game(
    student: Callable[[PyTree, PyTree, Any, jax.Array], StudentOutput],
    teacher: Callable[[PyTree, Any], Views],
    critics: Mapping[str, Critic],
    tx: optax.GradientTransformation,
    critics_tx: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
    *,
    balance: Balancer | None = None,
    shared: str | Sequence[str] = "**",
    critic_steps: int = 1,
    predictions: str | None = None,
) -> MinMaxGame:
    """Trains a student together with discriminators, bounds on information, or both.

    `critic_steps` updates of each critic on the batch come first, then one of the student. Metrics, float32 scalars:
    "loss", the weighted sum; "loss/<name>" and "weight/<name>" of each term; "<critic>/loss" and the critic's own; and
    for each sign of collapse the steps on end that show it, int32, which `check_collapse` reads.

    Args:
      student: `(params, variables, batch, key) -> StudentOutput`. Any function of a params tree: Linen's `apply`, an
        NNX module merged from its state, features read by layer name. Projectors are part of the params.
      teacher: `(teacher_params, batch) -> views`, by the critics' names; or what the batch holds of a cached teacher.
      critics: by name; each reads the views of its name.
      tx: the student's optimizer, by `mz.wrap` or not. critics_tx: one for all critics, or one for each by name.
      balance: of the student's losses and the critics' terms; all weights are 1 by default.
      shared: path patterns of the params over which `grad_norm` compares gradients.
      predictions: the name of the views that are logits, to be watched for a student that predicts one class.

    Raises:
      DistillationError: an argument is of another type; critics, optimizers and balance do not fit; (at `init`) views,
        losses or variables do not, or params hold integers.
      TraceError: (at `init`) student or teacher cannot be called so; the message names it and its arguments.
      PatternError: a pattern of `shared` matches no leaf.

    >>> import jax.numpy as jnp
    >>> from modelzip_jax.distillation import discriminator
    >>> def student(params, variables, batch, key):
    ...     return StudentOutput({}, {"features": batch @ params["kernel"]})
    >>> def teacher(params, batch):
    ...     return {"features": batch @ params}
    >>> game = min_max_game(student, teacher, {"features": discriminator([8])}, optax.adam(1e-3), optax.adam(1e-3))
    >>> params, batch = {"kernel": jnp.zeros((3, 2))}, jax.random.normal(jax.random.key(0), (16, 3))
    >>> state = game.init(params, batch, jax.random.key(1), teacher_params=jnp.ones((3, 2)))
    >>> state, metrics = jax.jit(game.step)(state, batch, jnp.ones((3, 2)))
    >>> int(state.step), [name for name in sorted(metrics) if not name.startswith("collapse/")]
    (1, ['features/auc', 'features/gap', 'features/loss', 'loss', 'loss/features', 'weight/features'])
    """
    check_function(student, "min_max_game", "student", "(params, variables, batch, key) -> StudentOutput")
    check_function(teacher, "min_max_game", "teacher", "(teacher_params, batch) -> views")
    check_mapping(critics, "min_max_game", "critics", "{'features': discriminator([64])}")
    check_optimizer(tx, "min_max_game", "tx")
    if predictions is not None and not isinstance(predictions, str):
        raise DistillationError(
            f"min_max_game: predictions must be a name of views, not {predictions!r:.100}"
        )
    critics = dict(critics)
    critic_steps = check_count(critic_steps, "critic_steps")
    balance = fixed_weights() if balance is None else balance
    optimizers = _optimizers(critics, critics_tx)
    _check_balance(critics, balance)
    contest = Contest(student, teacher, critics, tx, optimizers, balance, shared, critic_steps, predictions)
    return MinMaxGame(contest.init, contest.step)


def _optimizers(
    critics: Mapping[str, Critic],
    tx: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
) -> dict[str, optax.GradientTransformation]:
    for name, critic in critics.items():
        if not isinstance(critic, Critic):
            raise DistillationError(
                f"critics[{name!r}] is a {type(critic).__name__}, not a critic such as discriminator()"
            )
    for name, each in tx.items() if isinstance(tx, Mapping) else [("", tx)]:
        check_optimizer(each, "min_max_game", f"critics_tx[{name!r}]" if name else "critics_tx")
    if not isinstance(tx, Mapping):
        return dict.fromkeys(critics, tx)
    if sorted(tx) != sorted(critics):
        raise DistillationError(
            f"critics_tx= has optimizers for {sorted(tx)}, the critics are {sorted(critics)}; give one for each"
        )
    return dict(tx)


def _check_balance(critics: Mapping[str, Critic], balance: Balancer) -> None:
    if not isinstance(balance, Balancer):
        what = f"{balance!r:.100}" if isinstance(balance, str) else f"a {type(balance).__name__}"
        raise DistillationError(
            f"min_max_game: balance must be a Balancer, such as grad_norm() or dynamic_weight_average(), not {what}"
        )
    signed = [name for name, critic in critics.items() if not critic.positive]
    if balance.needs_positive and signed:
        raise DistillationError(
            f"the balance reads ratios or logarithms of losses, and the terms of the critics {signed} may be negative: "
            "use fixed_weights or grad_norm(alpha=0), among bounds info_nce_critic, and a discriminator that is not "
            "saturating"
        )
