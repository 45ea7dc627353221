"""A discriminator that tells the student's features from the teacher's, and the student that learns to fool it.

Belagiannis, Farshad & Galasso 2018, "Adversarial Network Compression" (https://arxiv.org/abs/1803.10750). D(z) is
the probability that features, or logits, z are the teacher's; a network gives it as a score, D = sigmoid(score).
Teacher f_t and student f_s play

    min over f_s, max over D:   E log D(f_t(x)) + E log(1 - D(f_s(x)))

beside a loss between their logits, and without labels. D sees one example's features at a time, not which examples
belong together. A discriminator that is too strong teaches nothing: the paper keeps it back by a norm of its weights
(`weight_penalty`), or by student's features that are shown as if they were the teacher's (`adversarial_samples`).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.finite_numbers import check_number
from modelzip_jax.distillation.whole_batches import over_whole_batch
from modelzip_jax.errors import DistillationError
from modelzip_jax.tree import PyTree

__all__ = ["adversarial_loss", "discriminator_auc", "discriminator_loss", "weight_penalty"]


def discriminator_loss(
    student_scores: jax.Array, teacher_scores: jax.Array, *, adversarial_samples: float = 0.0
) -> jax.Array:
    """-E log D(t) - E log(1 - D(s)), which the discriminator minimises; float32 scalar in nats, 2 log 2 at chance.

    Belagiannis et al. 2018: the objective of the game with its sign turned. With `adversarial_samples` mu the term
    -mu E log D(s) is added, their third regularisation: with t and s the two densities, the best D is then
    (t + mu s) / (t + s + mu s) instead of t / (t + s). It never falls below mu / (1 + mu), however sure it could be.

    Args:
      student_scores: floats of any shape, the discriminator's outputs before the sigmoid, for the student's features.
        The features themselves are to be constants (`jax.lax.stop_gradient`): they are the discriminator's data.
      teacher_scores: likewise, for the teacher's features; their number may differ.
      adversarial_samples: mu >= 0.

    Raises:
      DistillationError: scores are not floating-point, or there are none; adversarial_samples is out of range.

    >>> round(float(discriminator_loss(jnp.zeros(4), jnp.zeros(4))), 4)  # 2 log 2
    1.3863
    """
    mu = check_number(adversarial_samples, "adversarial_samples", least=0)
    student, teacher = _scores(student_scores, "student_scores"), _scores(teacher_scores, "teacher_scores")
    loss = jnp.mean(jax.nn.softplus(-teacher)) + jnp.mean(jax.nn.softplus(student))
    return loss + mu * jnp.mean(jax.nn.softplus(-student)) if mu else loss


def adversarial_loss(student_scores: jax.Array, *, saturating: bool = False) -> jax.Array:
    """-E log D(s), which the student minimises; float32 scalar in nats, >= 0, log 2 at chance.

    The player's objective of Goodfellow et al. 2014 (https://arxiv.org/abs/1406.2661) that has the same fixed
    point as E log(1 - D(s)), but a gradient where the discriminator is sure. `saturating=True` is the latter,
    literally the game above; it is negative.

    Args:
      student_scores: floats of any shape, the discriminator's outputs before the sigmoid. Gradients flow through them
        to the student; its discriminator's params are to be constants.

    Raises:
      DistillationError: scores are not floating-point, or there are none.

    >>> round(float(adversarial_loss(jnp.zeros(4))), 4), float(adversarial_loss(jnp.full(4, -1e4)))
    (0.6931, 10000.0)
    """
    scores = _scores(student_scores, "student_scores")
    return -jnp.mean(jax.nn.softplus(scores)) if saturating else jnp.mean(jax.nn.softplus(-scores))


@over_whole_batch
def discriminator_auc(student_scores: jax.Array, teacher_scores: jax.Array) -> jax.Array:
    """The share of pairs in which the teacher's score is above the student's, ties a half; float32 scalar.

    The area under the ROC curve: 1/2 where the two are not told apart, 1 where they always are. Unlike an accuracy it
    does not ask on which side of 0 the scores lie, which `adversarial_samples` shift. No gradient.

    Raises:
      DistillationError: scores are not floating-point, or there are none.

    >>> discriminator_auc(jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0]))
    Array(0.75, dtype=float32)
    """
    student = jnp.sort(jax.lax.stop_gradient(_scores(student_scores, "student_scores")).reshape(-1))
    teacher = jax.lax.stop_gradient(_scores(teacher_scores, "teacher_scores")).reshape(-1)
    below, not_above = (jnp.searchsorted(student, teacher, side=side) for side in ("left", "right"))
    return jnp.mean((below + not_above).astype(jnp.float32)) / (2 * len(student))


def weight_penalty(params: PyTree, norm: Literal["l1", "l2"] = "l2") -> jax.Array:
    """sum |w| or sum w^2 over the discriminator's kernels, float32: leaves of two axes or more, no biases.

    Belagiannis et al. 2018: added to `discriminator_loss` with a factor of its own, it keeps a discriminator weak.

    Raises:
      DistillationError: norm is neither "l1" nor "l2".

    >>> weight_penalty({"kernel": jnp.full((2, 2), -3.0), "bias": jnp.ones(2)}, "l1")
    Array(12., dtype=float32)
    """
    if norm not in ("l1", "l2"):
        raise DistillationError(f'norm must be "l1" or "l2", not {norm!r:.100}')
    kernels = [x.astype(jnp.float32) for x in jax.tree.leaves(params) if jnp.ndim(x) > 1]
    sizes = [jnp.sum(jnp.abs(x) if norm == "l1" else x * x) for x in kernels]
    return sum(sizes, jnp.float32(0.0))


def _scores(scores: jax.Array, argument: str) -> jax.Array:
    if not jnp.issubdtype(jnp.result_type(scores), jnp.floating) or jnp.size(scores) == 0:
        raise DistillationError(
            f"{argument} must be floating-point scores, one for each example, not {jnp.result_type(scores)} of shape "
            f"{jnp.shape(scores)}"
        )
    return jnp.asarray(scores, jnp.float32)
