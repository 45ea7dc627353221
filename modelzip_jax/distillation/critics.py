"""What reads student and teacher and is trained beside them: a discriminator, or a bound on their information.

A critic has params, a memory, and two losses of the same features: its own, and the student's term. For a bound the
two are one; for a discriminator they oppose each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from modelzip_jax.distillation import adversarial, information, variational
from modelzip_jax.distillation.finite_numbers import check_count, check_number
from modelzip_jax.distillation.perceptrons import init_perceptron, perceptron
from modelzip_jax.errors import DistillationError
from modelzip_jax.tree import PyTree

__all__ = [
    "Critic",
    "CriticOutput",
    "discriminator",
    "donsker_varadhan_critic",
    "info_nce_critic",
    "variational_critic",
]

Network = tuple[Callable[..., PyTree], Callable[..., jax.Array]]
"""`(init, apply)`: `init(key, features) -> params`, `apply(params, features) -> outputs`, such as a Linen module's."""


class CriticOutput(NamedTuple):
    """What a critic says of a batch.

    loss: what the critic minimises, float32 scalar. memory: the next one. metrics: float32 scalars to watch.
    signs: of trouble, bool scalars; `check_collapse` says what each means.

    >>> CriticOutput(jnp.float32(1.0), (), {}, {}).loss
    Array(1., dtype=float32)
    """

    loss: jax.Array
    memory: PyTree
    metrics: dict[str, jax.Array]
    signs: dict[str, jax.Array]


class Critic(NamedTuple):
    """Pure functions of params, memory and the features of student and teacher, floats (batch, ...).

    `init(key, student, teacher) -> (params, memory)`, from arrays or their shapes. `critic_loss(params, memory, student,
    teacher) -> CriticOutput`. `student_loss(params, memory, student, teacher) -> float32 scalar`. positive: whether the
    student's loss is never negative, so that balances that read ratios of losses can have it.

    >>> critic, features = info_nce_critic(), jnp.ones((4, 3))
    >>> params, memory = critic.init(jax.random.key(0), features, features)
    >>> round(float(critic.student_loss(params, memory, features, features)), 4)  # all alike: log 4
    1.3863
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    critic_loss: Callable[..., CriticOutput]
    student_loss: Callable[..., jax.Array]
    positive: bool


def discriminator(
    widths: Sequence[int] = (128, 256, 128),
    *,
    network: Network | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
    adversarial_samples: float = 0.0,
    saturating: bool = False,
    decay: float = 0.98,
) -> Critic:
    """A discriminator on features or logits, against which the student is trained (Belagiannis et al. 2018).

    See `discriminator_loss` and `adversarial_loss` for the game. Metrics: "auc", the share of pairs in which the
    teacher's score is the higher one, averaged over about 1 / (1 - decay) steps, and "gap", the distance between the
    means of student's and teacher's features over the root of the teacher's variance. Signs: "wins", AUC above 0.99, and
    "chance", AUC within 0.02 of 1/2.

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
    begin_network, score = network or _perceptron(widths, 1)

    def init(key: jax.Array, student: Any, teacher: Any) -> tuple[PyTree, PyTree]:
        _check_alike(student, teacher, "discriminator")
        # An average of AUCs and of the number one, so that their ratio has no bias towards the start.
        return begin_network(key, _zeros(teacher)), (jnp.float32(0.0), jnp.float32(0.0))

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


def variational_critic(network: Network | None = None, *, variance: float = 5.0) -> Critic:
    """Variational information distillation with its projector and variances (Ahn et al. 2019).

    Its loss is `variational_information` in nats per element, for the critic and for the student. Metrics: "nats", the
    mean log-likelihood, its negative; "variance", the mean of the channels' variances.

    Args:
      network: the mean of the teacher's features given the student's, `(init, apply)` with outputs of the teacher's
        shape; by default a linear map of channels, the last axis.
      variance: of each channel at the start.

    Raises:
      DistillationError: variance is out of range; (at `init`) by the default network, the features of the two differ
        in more than their last axis.

    >>> critic = variational_critic()
    >>> params, memory = critic.init(jax.random.key(0), jnp.ones((4, 3)), jnp.ones((4, 8)))
    >>> jax.tree.map(jnp.shape, params)
    {'network': {'bias': (8,), 'kernel': (3, 8)}, 'raw_variance': (8,)}
    """
    variance = check_number(variance, "variance", above=variational.FLOOR)

    def init(key: jax.Array, student: Any, teacher: Any) -> tuple[PyTree, PyTree]:
        channels = jnp.shape(teacher)[-1]
        if network is not None:
            params = network[0](key, _zeros(student))
        else:
            _check_alike(student, teacher, "variational_critic", axes=-1)
            kernel = jax.nn.initializers.lecun_normal()(key, (jnp.shape(student)[-1], channels), jnp.float32)
            params = {"bias": jnp.zeros(channels, jnp.float32), "kernel": kernel}
        return {"network": params, "raw_variance": variational.init_variance(channels, variance)}, ()

    def mean(params: PyTree, student: jax.Array) -> jax.Array:
        if network is not None:
            return network[1](params, student)
        return student.astype(jnp.float32) @ params["kernel"] + params["bias"]

    def student_loss(params: PyTree, memory: PyTree, student: jax.Array, teacher: jax.Array) -> jax.Array:
        del memory
        return variational.variational_information(
            mean(params["network"], student), teacher, params["raw_variance"]
        )

    def critic_loss(params: PyTree, memory: PyTree, student: jax.Array, teacher: jax.Array) -> CriticOutput:
        loss = student_loss(params, memory, student, teacher)
        spread = jnp.mean(variational.learned_variance(params["raw_variance"]))
        return CriticOutput(loss, memory, {"nats": -loss, "variance": spread}, {})

    return Critic(init, critic_loss, student_loss, positive=False)


def info_nce_critic(
    width: int = 64,
    widths: Sequence[int] = (128,),
    *,
    networks: tuple[Network, Network] | None = None,
) -> Critic:
    """InfoNCE between student and teacher, on scores that are inner products of two embeddings.

    T(s, t) = f(s) . g(t). The loss, the critic's and the student's, is the cross-entropy log N - `info_nce`, >= 0.
    Metrics: "nats", the bound. Sign: "saturated", the bound is above 0.99 log N, so that it says no more of how much
    there is.

    Args:
      width: of the embeddings. widths: hidden layers of both perceptrons on flattened features.
      networks: other embeddings f and g instead, each `(init, apply)`, with outputs (batch, width).

    Raises:
      DistillationError: a width is no count; (at `init`) the batches differ.

    >>> critic, s, t = info_nce_critic(8, [16]), jnp.ones((4, 3)), jnp.ones((4, 5, 5, 2))
    >>> params, memory = critic.init(jax.random.key(0), s, t)
    >>> round(float(critic.critic_loss(params, memory, s, t).metrics["nats"]), 4)
    0.0
    """
    begin_networks, scores = _embeddings(width, widths, networks, "info_nce_critic")

    def student_loss(params: PyTree, memory: PyTree, student: jax.Array, teacher: jax.Array) -> jax.Array:
        del memory
        return math.log(len(student)) - information.info_nce(scores(params, student, teacher))

    def critic_loss(params: PyTree, memory: PyTree, student: jax.Array, teacher: jax.Array) -> CriticOutput:
        loss, ceiling = student_loss(params, memory, student, teacher), math.log(len(student))
        nats = ceiling - loss
        return CriticOutput(loss, memory, {"nats": nats}, {"saturated": nats > 0.99 * ceiling})

    return Critic(lambda *args: (begin_networks(*args), ()), critic_loss, student_loss, positive=True)


def donsker_varadhan_critic(
    width: int = 64,
    widths: Sequence[int] = (128,),
    *,
    networks: tuple[Network, Network] | None = None,
    decay: float = 0.99,
) -> Critic:
    """The Donsker–Varadhan bound between student and teacher (MINE), with the corrected gradient.

    T(s, t) = f(s) . g(t), as for `info_nce_critic`. The loss is -`corrected_donsker_varadhan`, of either sign; the
    memory is the logarithm of the moving average. Metrics: "nats", the bound.

    Args:
      width, widths, networks: as of `info_nce_critic`. decay: of the moving average, in [0, 1).

    Raises:
      DistillationError: a number is out of range; (at `init`) the batches differ; (at the loss) the batch is one example.

    >>> critic, s, t = donsker_varadhan_critic(8, [16]), jnp.ones((4, 3)), jnp.ones((4, 5))
    >>> params, memory = critic.init(jax.random.key(0), s, t)
    >>> round(float(critic.critic_loss(params, memory, s, t).metrics["nats"]), 4)
    0.0
    """
    decay = check_number(decay, "decay", least=0, below=1)
    begin_networks, scores = _embeddings(width, widths, networks, "donsker_varadhan_critic")

    def bound(params: PyTree, memory: jax.Array, student: jax.Array, teacher: jax.Array) -> Any:
        return information.corrected_donsker_varadhan(scores(params, student, teacher), memory, decay)

    def student_loss(params: PyTree, memory: PyTree, student: jax.Array, teacher: jax.Array) -> jax.Array:
        return -bound(params, memory, student, teacher)[0]

    def critic_loss(params: PyTree, memory: PyTree, student: jax.Array, teacher: jax.Array) -> CriticOutput:
        nats, memory = bound(params, memory, student, teacher)
        return CriticOutput(-nats, memory, {"nats": nats}, {})

    return Critic(
        lambda *args: (begin_networks(*args), jnp.float32(-jnp.inf)),
        critic_loss, student_loss, positive=False,
    )  # fmt: skip


def _perceptron(widths: Sequence[int], outputs: int) -> Network:
    def init(key: jax.Array, features: jax.Array) -> PyTree:
        return init_perceptron(key, math.prod(features.shape[1:]), widths, outputs)

    return init, perceptron


def _embeddings(
    width: int, widths: Sequence[int], networks: tuple[Network, Network] | None, name: str
) -> tuple[Callable[..., PyTree], Callable[..., jax.Array]]:
    width = check_count(width, "width")
    (init_s, apply_s), (init_t, apply_t) = networks or (
        _perceptron(widths, width),
        _perceptron(widths, width),
    )

    def init(key: jax.Array, student: Any, teacher: Any) -> PyTree:
        _check_alike(student, teacher, name, axes=0)
        keys = jax.random.split(key)
        return {"student": init_s(keys[0], _zeros(student)), "teacher": init_t(keys[1], _zeros(teacher))}

    def scores(params: PyTree, student: jax.Array, teacher: jax.Array) -> jax.Array:
        f = apply_s(params["student"], student)
        g = apply_t(params["teacher"], jax.lax.stop_gradient(teacher))
        return f.astype(jnp.float32) @ g.astype(jnp.float32).T

    return init, scores


def _zeros(like: Any) -> jax.Array:
    return jnp.zeros(jnp.shape(like), jnp.result_type(like))


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


def _check_alike(student: Any, teacher: Any, name: str, axes: int | None = None) -> None:
    """Refuses features that do not fit: in any axis; with `axes=-1` in any but the last; with `axes=0` in the batch."""
    shapes = [jnp.shape(x) for x in (student, teacher)]
    compared = [shape if axes is None else shape[:-1] if axes == -1 else shape[:1] for shape in shapes]
    if compared[0] != compared[1] or not compared[0] or 0 in shapes[0] + shapes[1]:
        what = {None: "in shape", -1: "in more than their channels", 0: "in their batch"}[axes]
        raise DistillationError(
            f"{name}: the student's features are of shape {shapes[0]}, the teacher's of {shapes[1]}; they may not differ "
            f"{what}, nor be empty{'' if axes == 0 else ': put the students through a projector'}"
        )
    for side, x in [("student", student), ("teacher", teacher)]:
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise DistillationError(
                f"{name}: the {side}'s features are {jnp.result_type(x)}, not floating-point"
            )
