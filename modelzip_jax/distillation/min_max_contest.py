"""A min–max step: traced once, each player with an optimizer of its own.

    views      = student(params, batch)                      one forward pass
    critics    <- critics - grad critic_loss(critics, views, teacher's views)      views are constants
    terms      = {student's own losses, each critic's student_loss(views)}         critics are constants
    params     <- params - pull(grad sum_k w_k terms_k)      one backward pass, through the same forward pass
    w          <- balance(terms)

The critics move between the student's forward and its backward pass, so that a step costs one of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from modelzip_jax.distillation.argument_checks import check_made_by, check_trainable
from modelzip_jax.distillation.balancing import Balancer, check_losses, weight_cotangents, weighted_sum
from modelzip_jax.distillation.collapse import count_signs, one_class
from modelzip_jax.distillation.critics import Critic, CriticOutput
from modelzip_jax.distillation.min_max_state import CriticState, MinMaxState, StudentOutput
from modelzip_jax.distillation.norm_balancing import gradient_norms
from modelzip_jax.errors import DistillationError
from modelzip_jax.loop.reading import start
from modelzip_jax.loop.states import WrapState
from modelzip_jax.trace.jaxpr.model_inputs import running_on
from modelzip_jax.tree import PyTree, unlike

__all__ = ["Contest", "Views"]

Views = Mapping[str, jax.Array]
Pull = Callable[[Any], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Contest:
    """What `min_max_game` was given, checked; its arguments say what each is.

    critics_tx: by the critics' names.
    """

    student: Callable[[PyTree, PyTree, Any, jax.Array], StudentOutput]
    teacher: Callable[[PyTree, Any], Views]
    critics: Mapping[str, Critic]
    tx: optax.GradientTransformation
    critics_tx: Mapping[str, optax.GradientTransformation]
    balance: Balancer
    shared: str | Sequence[str]
    critic_steps: int
    predictions: str | None

    def init(
        self, params: PyTree, batch: Any, key: jax.Array, variables: PyTree = (), teacher_params: PyTree = ()
    ) -> MinMaxState:
        """The state before the first step.

        Raises:
          DistillationError: params have no gradients; views, losses or variables do not fit. TraceError: student or
            teacher cannot be called so. PatternError: a pattern of `shared` matches no leaf.
        """
        check_trainable(params, "min_max_game", "params")
        params, opt_state = _started(self.tx, params)

        def begun(params: PyTree) -> tuple[dict[str, CriticState], dict[str, jax.Array]]:
            output = self._student_says(params, variables, batch, key)
            targets = self._teacher_says(teacher_params, batch)
            self._check_views(output, targets)
            critics = self._new_critics(output.views, targets, key)
            return critics, self._terms(output.losses, output.views, targets, critics)

        critics, terms = jax.jit(begun)(params)
        balance = self.balance.init(terms)
        state = MinMaxState(jnp.int32(0), params, variables, opt_state, critics, balance, {}, key)
        # Which signs there are, and whether a step gives back what it takes, the first step's trace tells.
        after = jax.eval_shape(self.step, state, batch, teacher_params)[0]
        if jax.tree.structure(after.variables) != jax.tree.structure(variables):
            raise DistillationError(
                "the student gives back variables of another structure than init was given: "
                f"{unlike(after.variables, variables)}"
            )
        state = state._replace(counts=dict.fromkeys(after.counts, jnp.int32(0)))
        # A copy, so that the loop may donate the state, and the teacher may be the student's former self.
        return jax.tree.map(lambda x: jnp.array(x, copy=True), state)

    def step(
        self, state: MinMaxState, batch: Any, teacher_params: PyTree = ()
    ) -> tuple[MinMaxState, dict[str, jax.Array]]:
        """The state after a batch, and metrics."""
        check_made_by(state, MinMaxState, "step(state, batch)", "state", "init(params, batch, key)")
        output, pull = self._forward(state, batch)
        views = output.views
        targets = jax.lax.stop_gradient(self._teacher_says(teacher_params, batch))
        self._check_views(output, targets)
        critics, metrics, signs = self._moved_critics(state.critics, views, targets)

        weights = self.balance.weights(state.balance)
        terms, grads, norms = self._gradients(weights, output, targets, critics, pull)
        loss = weighted_sum(weights, terms)
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        balance = self.balance.update(state.balance, terms, norms)

        signs["student/not_finite"] = ~jnp.isfinite(loss)
        if self.predictions:
            signs["student/one_class"] = one_class(views[self.predictions], targets[self.predictions])
        counts = count_signs(state.counts, signs)
        metrics |= {"loss": loss}
        metrics |= {f"loss/{name}": x for name, x in terms.items()}
        metrics |= {f"weight/{name}": x for name, x in weights.items()}
        metrics |= {f"collapse/{name}": x for name, x in counts.items()}
        new = MinMaxState(
            state.step + 1, params, output.variables, opt_state, critics, balance, counts, state.key
        )
        return new, metrics

    def _student_says(self, *arguments: Any) -> StudentOutput:
        with running_on("these arguments", arguments, "student(params, variables, batch, key)"):
            return self.student(*arguments)

    def _teacher_says(self, *arguments: Any) -> Views:
        with running_on("these arguments", arguments, "teacher(teacher_params, batch)"):
            return self.teacher(*arguments)

    def _forward(self, state: MinMaxState, batch: Any) -> tuple[StudentOutput, Pull]:
        """What the student says, and the way back from its losses and views to its params."""
        key = jax.random.fold_in(state.key, state.step)

        def said(params: PyTree) -> tuple[tuple[Any, Any], PyTree]:
            output = self._student_says(params, state.variables, batch, key)
            return (output.losses, output.views), output.variables

        (losses, views), pull, variables = jax.vjp(said, state.params, has_aux=True)
        return StudentOutput(losses, views, variables), pull

    def _check_views(self, output: StudentOutput, targets: Views) -> None:
        named = [*self.critics, *([self.predictions] if self.predictions else [])]
        if not isinstance(output, StudentOutput):
            raise DistillationError(
                f"the student must give a StudentOutput(losses, views, variables), not a {type(output).__name__}"
            )
        if not isinstance(targets, Mapping):
            raise DistillationError(
                f"the teacher must give views by the critics' names, in a dict, not a {type(targets).__name__}"
            )
        for side, views in (("student", output.views), ("teacher", targets)):
            missing = [name for name in named if name not in views]
            if missing:
                raise DistillationError(
                    f"the {side} gives views of {sorted(views)}, and none of {missing}, which critics or predictions= "
                    "read"
                )
        both = sorted(set(output.losses) & set(self.critics))
        if both:
            raise DistillationError(f"{both} are names of critics and of the student's losses; rename one")

    def _new_critics(self, views: Views, targets: Views, key: jax.Array) -> dict[str, CriticState]:
        states = {}
        for index, (name, critic) in enumerate(self.critics.items()):
            params, memory = critic.init(jax.random.fold_in(key, index), views[name], targets[name])
            states[name] = CriticState(params, memory, self.critics_tx[name].init(params))
        return states

    def _moved_critics(
        self, before: Mapping[str, CriticState], views: Views, targets: Views
    ) -> tuple[dict[str, CriticState], dict[str, jax.Array], dict[str, jax.Array]]:
        """The critics after their steps on a batch, their metrics, and their signs of collapse."""
        states: dict[str, CriticState] = {}
        metrics: dict[str, jax.Array] = {}
        signs: dict[str, jax.Array] = {}
        for name, critic in self.critics.items():
            states[name], output = _critic_steps(
                critic, self.critics_tx[name], before[name], views[name], targets[name], self.critic_steps
            )
            found = {"loss": output.loss, **output.metrics}
            metrics |= {f"{name}/{metric}": x for metric, x in found.items()}
            signs |= {f"{name}/{sign}": seen for sign, seen in output.signs.items()}
            signs[f"{name}/not_finite"] = ~jnp.isfinite(output.loss)
        return states, metrics, signs

    def _terms(
        self,
        losses: Mapping[str, jax.Array],
        views: Views,
        targets: Views,
        critics: Mapping[str, CriticState],
    ) -> dict[str, jax.Array]:
        """The student's own losses, and what each critic asks of it."""
        asked = {
            name: critic.student_loss(
                jax.lax.stop_gradient(critics[name].params), critics[name].memory, views[name], targets[name]
            )
            for name, critic in self.critics.items()
        }
        return {**losses, **asked}

    def _gradients(
        self,
        weights: PyTree,
        output: StudentOutput,
        targets: Views,
        critics: dict[str, CriticState],
        pull: Pull,
    ) -> tuple[dict[str, jax.Array], PyTree, PyTree | None]:
        """The terms, the gradient of their weighted sum, and, where the balance reads it, the norm of each one's."""
        terms, pull_terms = jax.vjp(
            lambda losses, views: self._terms(losses, views, targets, critics), output.losses, output.views
        )
        check_losses(terms)
        pull_all = lambda cotangents: pull(pull_terms(cotangents))  # noqa: E731
        grads = pull_all(weight_cotangents(weights, terms))[0]
        norms = gradient_norms(pull_all, terms, self.shared) if self.balance.reads_gradients else None
        return terms, grads, norms


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
