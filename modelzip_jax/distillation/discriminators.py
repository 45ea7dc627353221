"""A discriminator as a critic: trained to tell the student's features from the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.distillation import adversarial
from modelzip_jax.distillation.critics import (
    Critic,
    CriticOutput,
    InitApply,
    check_network,
    check_views,
    perceptron_network,
    placeholder,
)
from modelzip_jax.distillation.finite_numbers import check_number
from modelzip_jax.errors import DistillationError
from modelzip_jax.tree import PyTree

__all__ = ["discriminator"]


def discriminator(
    widths: Sequence[int] = (128, 256, 128),
    *,
    network: InitApply | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
    adversarial_samples: float = 0.0,
    saturating: bool = False,
    decay: float = 0.98,
) -> Critic:
    """A discriminator on features or logits, against which the student is trained (Belagiannis et al. 2018).

    See `discriminator_loss` and `adversarial_loss` for the game. Metrics: "auc", the share of pairs in which the
    teacher's score is the higher one, averaged over about 1 / (1 - decay) steps, and "gap", the distance between the
    means of student's and teacher's features over the root of the teacher's variance. Signs: "wins", AUC above
    0.99, and "chance", AUC within 0.02 of 1/2.

    Args:
      widths: hidden layers of a perceptron on the flattened features. network: another one instead, as `(init, apply)`
        with outputs (batch,) or (batch, 1); for features of any shape that it takes.
      l1, l2: factors of `weight_penalty`. adversarial_samples: see `discriminator_loss`. The paper's three ways to keep
        the discriminator from winning; 0 leaves each out.
      saturating: see `adversarial_loss`.
      decay: of the averaged AUC, in [0, 1).

    Raises:
      DistillationError: a number is out of range; (at `init`) the features of the two differ in shape.

    >>> critic, features = discriminator([16], l2=1e-4), jnp.ones((4, 3))
    >>> params, memory = critic.init(jax.random.key(0), features, features)
    >>> output = critic.critic_loss(params, memory, features, features)
    >>> float(output.metrics["auc"]), bool(output.signs["wins"])
    (0.5, False)
    """
    l1, l2 = check_number(l1, "l1", least=0), check_number(l2, "l2", least=0)
    mu = check_number(adversarial_samples, "adversarial_samples", least=0)
    decay = check_number(decay, "decay", least=0, below=1)
    if network is not None:
        check_network(network, "discriminator", "network")
    begin_network, score = network or perceptron_network(widths, 1)

    def init(key: jax.Array, student: Any, teacher: Any) -> tuple[PyTree, PyTree]:
        check_views(student, teacher, "discriminator")
        # An average of AUCs and of the number one, so that their ratio has no bias towards the start.
        return begin_network(key, placeholder(teacher)), (jnp.float32(0.0), jnp.float32(0.0))

    def scores(params: PyTree, features: jax.Array) -> jax.Array:
        return _one_each(score(params, features), len(features))

    def critic_loss(params: PyTree, memory: PyTree, student: jax.Array, teacher: jax.Array) -> CriticOutput:
        student, teacher = jax.lax.stop_gradient(student), jax.lax.stop_gradient(teacher)
        s, t = scores(params, student), scores(params, teacher)
        loss = adversarial.discriminator_loss(s, t, adversarial_samples=mu)
        loss += l1 * adversarial.weight_penalty(params, "l1") if l1 else 0.0
        loss += l2 * adversarial.weight_penalty(params, "l2") if l2 else 0.0
        new = (adversarial.discriminator_auc(s, t), jnp.float32(1.0))
        memory = tuple(decay * old + (1 - decay) * x for old, x in zip(memory, new, strict=True))
        auc = memory[0] / memory[1]
        signs = {"wins": auc > 0.99, "chance": jnp.abs(auc - 0.5) < 0.02}
        return CriticOutput(loss, memory, {"auc": auc, "gap": _gap(student, teacher)}, signs)

    def student_loss(params: PyTree, memory: PyTree, student: jax.Array, teacher: jax.Array) -> jax.Array:
        del memory, teacher
        return adversarial.adversarial_loss(
            scores(jax.lax.stop_gradient(params), student), saturating=saturating
        )

    return Critic(init, critic_loss, student_loss, positive=not saturating)


def _one_each(scores: jax.Array, batch: int) -> jax.Array:
    if scores.shape not in ((batch,), (batch, 1)):
        raise DistillationError(
            f"discriminator: the network gives scores of shape {scores.shape} for a batch of {batch}; one for each "
            "example is needed"
        )
    return scores.reshape(batch)


def _gap(student: jax.Array, teacher: jax.Array) -> jax.Array:
    s, t = (x.astype(jnp.float32).reshape(len(x), -1) for x in (student, teacher))
    spread = jnp.sum(jnp.var(t, axis=0))
    return jnp.sqrt(jnp.sum((jnp.mean(s, axis=0) - jnp.mean(t, axis=0)) ** 2) / jnp.maximum(spread, 1e-12))
