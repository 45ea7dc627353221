"""A student trained against its critics: one step, traced once, each player with an optimizer of its own.

    views      = student(params, batch)                      one forward pass
    critics    <- critics - grad critic_loss(critics, views, teacher's views)      views are constants
    terms      = {student's own losses, each critic's student_loss(views)}         critics are constants
    params     <- params - pull(grad sum_k w_k terms_k)      one backward pass, through the same forward pass
    w          <- balance(terms)

The critics move between the student's forward and its backward pass, so that a step costs one of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from modelzip_jax.distillation.balancing import (
    Balancer,
    check_losses,
    fixed_weights,
    weight_cotangents,
    weighted_sum,
)
from modelzip_jax.distillation.collapse import count_signs, one_class
from modelzip_jax.distillation.critics import Critic, CriticOutput
from modelzip_jax.distillation.finite_numbers import check_count
from modelzip_jax.distillation.min_max_state import CriticState, MinMaxState, StudentOutput
from modelzip_jax.distillation.norm_balancing import gradient_norms
from modelzip_jax.errors import DistillationError
from modelzip_jax.loop.reading import start
from modelzip_jax.loop.states import WrapState
from modelzip_jax.tree import PyTree, unlike

__all__ = ["MinMaxGame", "min_max_game"]

Views = Mapping[str, jax.Array]


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
      DistillationError: critics, optimizers and balance do not fit; (at `init`) views, losses or variables do
        not.
      PatternError: a pattern of `shared` matches no leaf.

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
    critics = dict(critics)
    critic_steps = check_count(critic_steps, "critic_steps")
    balance = fixed_weights() if balance is None else balance
    optimizers = _optimizers(critics, critics_tx)
    _check_balance(critics, balance)

    def terms_of(
        losses: Mapping[str, jax.Array], views: Views, targets: Views, states: Mapping[str, CriticState]
    ) -> dict[str, jax.Array]:
        terms = {
            name: critic.student_loss(
                jax.lax.stop_gradient(states[name].params), states[name].memory, views[name], targets[name]
            )
            for name, critic in critics.items()
        }
        return {**losses, **terms}

    def looked_at(output: StudentOutput, targets: Views) -> None:
        named = [*critics, *([predictions] if predictions else [])]
        for side, views in (("student", output.views), ("teacher", targets)):
            missing = [name for name in named if name not in views]
            if missing:
                raise DistillationError(
                    f"the {side} gives views of {sorted(views)}, and none of {missing}, which critics or predictions= "
                    "read"
                )
        both = sorted(set(output.losses) & set(critics))
        if both:
            raise DistillationError(f"{both} are names of critics and of the student's losses; rename one")

    def init(
        params: PyTree, batch: Any, key: jax.Array, variables: PyTree = (), teacher_params: PyTree = ()
    ) -> MinMaxState:
        params, opt_state = _started(tx, params)

        def begun(params: PyTree) -> tuple[dict[str, CriticState], dict[str, jax.Array]]:
            output = student(params, variables, batch, key)
            targets = teacher(teacher_params, batch)
            looked_at(output, targets)
            states = {}
            for index, (name, critic) in enumerate(critics.items()):
                own = jax.random.fold_in(key, index)
                made, memory = critic.init(own, output.views[name], targets[name])
                states[name] = CriticState(made, memory, optimizers[name].init(made))
            return states, terms_of(output.losses, output.views, targets, states)

        states, terms = jax.jit(begun)(params)
        state = MinMaxState(jnp.int32(0), params, variables, opt_state, states, balance.init(terms), {}, key)
        # Which signs there are, and whether a step gives back what it takes, the first step's trace tells.
        after = jax.eval_shape(step, state, batch, teacher_params)[0]
        if jax.tree.structure(after.variables) != jax.tree.structure(variables):
            raise DistillationError(
                "the student gives back variables of another structure than init was given: "
                f"{unlike(after.variables, variables)}"
            )
        state = state._replace(counts=dict.fromkeys(after.counts, jnp.int32(0)))
        # A copy, so that the loop may donate the state, and the teacher may be the student's former self.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), state)

    def step(
        state: MinMaxState, batch: Any, teacher_params: PyTree = ()
    ) -> tuple[MinMaxState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)

        def forward(params: PyTree) -> tuple[tuple[Any, Any], PyTree]:
            output = student(params, state.variables, batch, key)
            return (output.losses, output.views), output.variables

        (losses, views), pull, variables = jax.vjp(forward, state.params, has_aux=True)
        targets = jax.lax.stop_gradient(teacher(teacher_params, batch))
        looked_at(StudentOutput(losses, views), targets)
        weights = balance.weights(state.balance)

        states: dict[str, CriticState] = {}
        signs: dict[str, jax.Array] = {}
        metrics: dict[str, jax.Array] = {}
        for name, critic in critics.items():
            states[name], output = _critic_steps(
                critic, optimizers[name], state.critics[name], views[name], targets[name], critic_steps
            )
            found = {"loss": output.loss, **output.metrics}
            metrics |= {f"{name}/{metric}": x for metric, x in found.items()}
            signs |= {f"{name}/{sign}": seen for sign, seen in output.signs.items()}
            signs[f"{name}/not_finite"] = ~jnp.isfinite(output.loss)

        terms, pull_terms = jax.vjp(lambda x, y: terms_of(x, y, targets, states), losses, views)
        check_losses(terms)
        pull_all = lambda cotangents: pull(pull_terms(cotangents))  # noqa: E731
        loss = weighted_sum(weights, terms)
        grads = pull_all(weight_cotangents(weights, terms))[0]
        norms = gradient_norms(pull_all, terms, shared) if balance.reads_gradients else None

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        signs["student/not_finite"] = ~jnp.isfinite(loss)
        if predictions:
            signs["student/one_class"] = one_class(views[predictions], targets[predictions])
        counts = count_signs(state.counts, signs)
        metrics |= {"loss": loss}
        metrics |= {f"loss/{name}": x for name, x in terms.items()}
        metrics |= {f"weight/{name}": x for name, x in weights.items()}
        metrics |= {f"collapse/{name}": x for name, x in counts.items()}
        new = MinMaxState(
            state.step + 1, params, variables, opt_state, states, balance.update(state.balance, terms, norms),
            counts, state.key,
        )  # fmt: skip
        return new, metrics

    return MinMaxGame(init, step)


def _critic_steps(
    critic: Critic,
    tx: optax.GradientTransformation,
    state: CriticState,
    student: jax.Array,
    teacher: jax.Array,
    count: int,
) -> tuple[CriticState, CriticOutput]:
    """The critic after some steps on one batch, and what it said of it before the last one."""
    student = jax.lax.stop_gradient(student)

    def loss_of(params: PyTree, memory: PyTree) -> tuple[jax.Array, CriticOutput]:
        output = critic.critic_loss(params, memory, student, teacher)
        return output.loss, output

    for _ in range(count):
        grads, output = jax.grad(loss_of, has_aux=True)(state.params, state.memory)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = CriticState(optax.apply_updates(state.params, updates), output.memory, opt_state)
    return state, output


def _started(tx: optax.GradientTransformation, params: PyTree) -> tuple[PyTree, optax.OptState]:
    opt_state = tx.init(params)
    is_wrapped = lambda x: isinstance(x, WrapState)  # noqa: E731
    wrapped = any(is_wrapped(x) for x in jax.tree.leaves(opt_state, is_leaf=is_wrapped))
    return start(tx, params) if wrapped else (params, opt_state)


def _optimizers(
    critics: Mapping[str, Critic],
    tx: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
) -> dict[str, optax.GradientTransformation]:
    for name, critic in critics.items():
        if not isinstance(critic, Critic):
            raise DistillationError(
                f"critics[{name!r}] is a {type(critic).__name__}, not a critic such as discriminator()"
            )
    if not isinstance(tx, Mapping):
        return dict.fromkeys(critics, tx)
    if sorted(tx) != sorted(critics):
        raise DistillationError(
            f"critics_tx= has optimizers for {sorted(tx)}, the critics are {sorted(critics)}; give one for each"
        )
    return dict(tx)


def _check_balance(critics: Mapping[str, Critic], balance: Balancer) -> None:
    signed = [name for name, critic in critics.items() if not critic.positive]
    if balance.needs_positive and signed:
        raise DistillationError(
            f"the balance reads ratios or logarithms of losses, and the terms of the critics {signed} may be negative: "
            "use fixed_weights or grad_norm(alpha=0), among bounds info_nce_critic, and a discriminator that is not "
            "saturating"
        )
