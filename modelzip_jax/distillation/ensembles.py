"""Several teachers as one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modelzip_jax.distillation.finite_numbers import check_number
from modelzip_jax.distillation.teachers import Teacher
from modelzip_jax.errors import DistillationError
from modelzip_jax.trace.jaxpr.model_inputs import running_on
from modelzip_jax.tree import PyTree

__all__ = ["ensemble"]

AVERAGES = ("probabilities", "logits")


def ensemble(
    teachers: Sequence[Teacher], *, average: str = "probabilities", temperature: float = 1.0
) -> Teacher:
    """One teacher out of several that see the same inputs: the mean of what they say, as logits.

    Of M teachers with the logits z_m, at the temperature T:

        "probabilities":  z = T log (1/M) Σ_m softmax(z_m / T)     softmax(z / T) is the arithmetic mean
        "logits":         z = (1/M) Σ_m z_m                        softmax(z / T) is the normalised geometric mean

    Hinton et al. 2015 (https://arxiv.org/abs/1503.02531, §1) name both means as soft targets. The arithmetic one keeps
    a class likely that any one teacher thinks likely; the geometric one wants all of them to agree, and weighs a
    teacher with large logits more.

    Args:
      teachers: at least one; their networks may differ, and give logits `(..., classes)` of one shape.
      average: "probabilities" or "logits".
      temperature: that of the loss which reads the mean of probabilities. Means of logits need none.

    Returns:
      A `Teacher` whose params are the tuple of theirs, and whose logits are float32.

    Raises:
      DistillationError: no teacher, an unknown average, a temperature that is not above 0; when called, logits of
        several shapes. TraceError: (when called) a network cannot be run on these inputs; the message says which.

    >>> sure = Teacher(lambda params, x: x + params, jnp.array([4.0, 0.0]))
    >>> contrary = Teacher(lambda params, x: x + params, jnp.array([0.0, 4.0]))
    >>> for average in ("probabilities", "logits"):
    ...     logits = ensemble([sure, contrary, sure], average=average)(jnp.zeros(2))
    ...     print([f"{p:.3f}" for p in jax.nn.softmax(logits)])
    ['0.661', '0.339']
    ['0.791', '0.209']
    """
    if not isinstance(teachers, list | tuple) or not teachers:
        raise DistillationError(
            f"ensemble: an ensemble needs at least one teacher, in a list, not {_named(teachers)}"
        )
    for number, teacher in enumerate(teachers):
        if not isinstance(teacher, Teacher):
            raise DistillationError(
                f"ensemble: number {number} is {_named(teacher)}, and not a Teacher(apply, params); "
                "of cached logits take the mean yourself"
            )
    if average not in AVERAGES:
        raise DistillationError(f"average={average!r}: choose 'probabilities' or 'logits'")
    temperature = check_number(temperature, "temperature", above=0)
    mean = _Mean(tuple(teacher.apply for teacher in teachers), average, temperature)
    return Teacher(mean, tuple(teacher.params for teacher in teachers))


def _named(x: Any) -> str:
    return "none" if isinstance(x, list | tuple) else f"one {type(x).__name__}"


@dataclasses.dataclass(frozen=True)
class _Mean:
    """The `apply` of an ensemble; two of the same networks are equal, so that nothing compiles again."""

    members: tuple[Callable[[PyTree, PyTree], PyTree], ...]
    average: str
    temperature: float

    def __call__(self, params: PyTree, inputs: PyTree) -> jax.Array:
        logits = []
        for number, (apply, p) in enumerate(zip(self.members, params, strict=True)):
            with running_on("the inputs and params given", (inputs, p), f"teacher {number} of the ensemble"):
                logits.append(apply(p, inputs))
        shapes = [z.shape for z in logits]
        if len(set(shapes)) > 1:
            raise DistillationError(f"teachers of an ensemble give logits of one shape, and not {shapes}")
        stacked = jnp.stack([z.astype(jnp.float32) for z in logits])
        if self.average == "logits":
            return jnp.mean(stacked, axis=0)
        log_probabilities = jax.nn.log_softmax(stacked / self.temperature, axis=-1)
        total = jax.nn.logsumexp(log_probabilities, axis=0)
        return self.temperature * (total - math.log(len(logits)))
