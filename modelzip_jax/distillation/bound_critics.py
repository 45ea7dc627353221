"""Bounds on the information of student and teacher as critics, with what is trained to make them tight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from modelzip_jax.distillation import information, variational
from modelzip_jax.distillation.critics import (
    Critic,
    CriticOutput,
    InitApply,
    check_network,
    check_views,
    perceptron_network,
    placeholder,
)
from modelzip_jax.distillation.finite_numbers import check_count, check_number
from modelzip_jax.errors import DistillationError
from modelzip_jax.meshes import under_any_mesh
from modelzip_jax.tree import PyTree

__all__ = ["donsker_varadhan_critic", "info_nce_critic", "variational_critic"]


def variational_critic(network: InitApply | None = None, *, variance: float = 5.0) -> Critic:
    """Variational information distillation with its projector and variances (Ahn et al. 2019).

    Its loss is `variational_information` in nats per element, for the critic and for the student. Metrics: "nats", the
    mean log-likelihood, its negative; "variance", the mean of the channels' variances.

    Args:
      network: the mean of the teacher's features given the student's, `(init, apply)` with outputs of the teacher's
        shape; by default a linear map of channels, the last axis. (RepDistiller's is three 1×1 convolutions with ReLU.)
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
    if network is not None:
        check_network(network, "variational_critic", "network")

    def init(key: jax.Array, student: Any, teacher: Any) -> tuple[PyTree, PyTree]:
        channels = jnp.shape(teacher)[-1]
        if network is not None:
            params = network[0](key, placeholder(student))
        else:
            check_views(student, teacher, "variational_critic", axes=-1)
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
    networks: tuple[InitApply, InitApply] | None = None,
) -> Critic:
    """InfoNCE between student and teacher, on scores that are inner products of two embeddings.

    T(s, t) = f(s) . g(t), zero at the start. The loss, the critic's and the student's, is the cross-entropy
    log N - `info_nce`, >= 0.
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
    networks: tuple[InitApply, InitApply] | None = None,
    decay: float = 0.99,
) -> Critic:
    """The Donsker–Varadhan bound between student and teacher (MINE), with the corrected gradient.

    T(s, t) = f(s) . g(t), as for `info_nce_critic`. The loss is -`corrected_donsker_varadhan`, of either sign; the
    memory is the logarithm of the moving average. Metrics: "nats", the bound.

    Args:
      width, widths, networks: as of `info_nce_critic`. decay: of the moving average, in [0, 1).

    Raises:
      DistillationError: a number is out of range; (at `init`) the batches differ; (at the loss) the batch has
        one example.

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


def _embeddings(
    width: int, widths: Sequence[int], networks: tuple[InitApply, InitApply] | None, name: str
) -> tuple[Callable[..., PyTree], Callable[..., jax.Array]]:
    width = check_count(width, "width")
    if networks is not None:
        if not isinstance(networks, tuple | list) or len(networks) != 2:
            raise DistillationError(
                f"{name}: networks must be two, of the student and the teacher, each (init, apply), not a "
                f"{type(networks).__name__}"
            )
        for each in networks:
            check_network(each, name, "networks")
    # All scores begin at 0. Of random ones some are large, and e^T of those would stay in the moving average of
    # `corrected_donsker_varadhan` for thousands of steps, in which the denominator is far too large.
    (init_s, apply_s), (init_t, apply_t) = networks or (
        perceptron_network(widths, width),
        perceptron_network(widths, width, silent=True),
    )

    def init(key: jax.Array, student: Any, teacher: Any) -> PyTree:
        check_views(student, teacher, name, axes=0)
        keys = jax.random.split(key)
        return {
            "student": init_s(keys[0], placeholder(student)),
            "teacher": init_t(keys[1], placeholder(teacher)),
        }

    def scores(params: PyTree, student: jax.Array, teacher: jax.Array) -> jax.Array:
        f = apply_s(params["student"], student)
        g = apply_t(params["teacher"], jax.lax.stop_gradient(teacher))
        both = f.astype(jnp.float32), g.astype(jnp.float32)
        return under_any_mesh(lambda f, g: f @ g.T, both, PartitionSpec())

    return init, scores
