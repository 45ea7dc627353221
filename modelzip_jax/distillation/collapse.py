"""Signs that a min–max game has collapsed: counted on the device at each step, said on the host.

A step gives, for each sign, in how many steps on end it has been seen (`collapse/<where>/<sign>`). So the host may look
as rarely as it likes, and a training step waits for nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax.distillation.argument_checks import check_mapping
from modelzip_jax.distillation.finite_numbers import check_count
from modelzip_jax.errors import DistillationError

__all__ = ["CollapseWarning", "check_collapse", "count_signs", "one_class"]

_AT_ONCE = ("not_finite",)
_SAID = {
    "wins": "the discriminator tells student from teacher in nearly every pair, so that its gradient says little: give "
    "it l2= or adversarial_samples=, a smaller learning rate or fewer steps, or the student's loss more weight",
    "chance": "the discriminator does not tell student from teacher: either the student has arrived (then its 'gap' is "
    "small), or the discriminator no longer learns: give it a larger learning rate, more steps or less regularisation",
    "saturated": "InfoNCE stands at log(batch), more than which it cannot show: take larger batches, or give it less "
    "weight",
    "not_finite": "a loss is NaN or infinite: training goes on from the last state that was saved, with smaller "
    "learning rates",
    "one_class": "the student predicts nearly the same for every example, unlike the teacher: give the game less "
    "weight beside the losses of logits or labels",
}


class CollapseWarning(UserWarning):
    """A min–max game has shown a sign of collapse for long; the message says which, and what helps."""


def count_signs(counts: Mapping[str, jax.Array], signs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """For how many steps on end each sign has been seen, int32 scalars.

    Args:
      counts: of the step before; a sign that is missing there starts at 0. signs: bool scalars of this step.

    >>> count_signs({"wins": 4, "chance": 4}, {"wins": jnp.bool_(True), "chance": jnp.bool_(False)})
    {'wins': Array(5, dtype=int32), 'chance': Array(0, dtype=int32)}
    """
    return {
        name: jnp.where(seen, jnp.int32(counts.get(name, 0)) + 1, 0).astype(jnp.int32)
        for name, seen in signs.items()
    }


def one_class(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Whether the entropy of the student's mean prediction is under a quarter of the teacher's, bool scalar.

    The mean is over all examples of the batch: a sure student has a large entropy here as long as its examples differ.

    Args:
      student: logits (..., classes). teacher: likewise, of the same inputs.

    >>> spread = 9.0 * jnp.eye(3)
    >>> one_class(spread, spread), one_class(spread.at[:, 0].add(99.0), spread)
    (Array(False, dtype=bool), Array(True, dtype=bool))
    """

    def entropy_of_mean(logits: jax.Array) -> jax.Array:
        p = jax.nn.softmax(logits.astype(jnp.float32))
        p = jnp.mean(p.reshape(-1, p.shape[-1]), axis=0)
        return jnp.sum(jax.scipy.special.entr(p))

    return entropy_of_mean(student) < 0.25 * entropy_of_mean(teacher)


def check_collapse(metrics: Mapping[str, Any], patience: int = 200, *, strict: bool = False) -> list[str]:
    """Says which signs of collapse have been there for `patience` steps on end, and what helps; on the host.

    Args:
      metrics: of a step of `min_max_game`, or of several, stacked, of which the worst counts.
      patience: steps; what is NaN or infinite is said at once.
      strict: raises instead of warning.

    Returns:
      What was said, one text for each sign.

    Raises:
      DistillationError: `strict`, and there is such a sign; patience is no count; none of the metrics is of a sign.

    >>> check_collapse({"loss": 1.0, "collapse/logits/wins": 10})
    []
    >>> check_collapse({"collapse/logits/wins": 300}, strict=True)
    Traceback (most recent call last):
    modelzip_jax.errors.DistillationError: 'logits', for 200 steps or more: the discriminator tells ...
    """
    patience = check_count(patience, "patience")
    check_mapping(metrics, "check_collapse", "metrics", "a step of min_max_game gives")
    counts = {name: count for name, count in metrics.items() if str(name).startswith("collapse/")}
    if not counts:
        raise DistillationError(
            "check_collapse: metrics has no names such as 'collapse/<critic>/wins' and 'collapse/student/not_finite', "
            f"which it reads: give all that a step of min_max_game gives, not {sorted(map(str, metrics))!r:.200}"
        )
    said = []
    for name, count in counts.items():
        _, *where, sign = name.split("/")
        limit = 1 if sign in _AT_ONCE else patience
        if int(np.max(np.asarray(count))) >= limit:
            # Without the count itself, so that Python's filter shows each warning once.
            since = f", for {limit} steps or more" if limit > 1 else ""
            said.append(f"{'/'.join(where)!r}{since}: {_SAID.get(sign, sign)}")
    if said and strict:
        raise DistillationError("; ".join(said))
    for text in said:
        warnings.warn(text, CollapseWarning, stacklevel=2)
    return said
