"""What the fields of `config.distill` stand for: losses, projectors and balances by name, and what goes together."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from modelzip_jax import distillation
from modelzip_jax.distillation.array_checks import as_weight, check_temperature
from modelzip_jax.errors import ConfigError
from modelzip_jax.naming import nearest_name, require_known
from modelzip_jax.tree import PyTree

__all__ = [
    "Projector",
    "balance_of",
    "feature_loss_of",
    "logit_loss_of",
    "projector_of",
    "require_widths",
    "weights_of",
]

LOGITS = ("correlation", "decoupled", "soft_targets", "standardized")
FEATURES = (
    "attention_transfer", "correlation_congruence", "hint", "relational_angle", "relational_distance", "similarity",
)  # fmt: skip
BALANCES = ("dynamic_weight_average", "fixed", "grad_norm", "uncertainty")


class Projector(NamedTuple):
    """How a student's features come to the teacher's width: `init(key, student_width, teacher_width) -> params`.

    student: `(params, features)`, what is made of the student's. teacher: what is made of the teacher's.
    """

    init: Callable[[jax.Array, int, int], PyTree]
    student: Callable[[PyTree, jax.Array], jax.Array]
    teacher: Callable[[jax.Array], jax.Array]


PROJECTORS = {
    "": Projector(lambda key, width, other: {}, lambda params, x: x, lambda x: x),
    "linear": Projector(distillation.init_projector, distillation.project, lambda x: x),
    "orthogonal": Projector(
        distillation.init_orthogonal_projector,
        distillation.project_orthogonally,
        distillation.standardize_features,
    ),
}


def logit_loss_of(distill: Any) -> Callable[[jax.Array, Any, jax.Array], jax.Array] | None:
    """`(logits, the teacher's logits, labels) -> loss`; None if the name is empty.

    With `top_k` the teacher's logits are a `TopK` of logits divided by the temperature, which is exact.

    Raises:
      ConfigError: an unknown name or option. DistillationError: a temperature that is not positive.

    >>> from modelzip_jax.training.config import base
    >>> zeros = jax.numpy.zeros((2, 3))
    >>> float(logit_loss_of(base().distill)(zeros, zeros, zeros[:, 0]))
    0.0
    """
    if not distill.loss:
        return None
    function = getattr(distillation, require_known("distill.loss", distill.loss, LOGITS))
    options = _options(function, distill.options, "distill.options", {"temperature"})
    temperature = distill.temperature
    check_temperature(temperature, "distill")
    if distill.top_k:
        return lambda student, teacher, labels: (
            temperature**2 * distillation.top_k_soft_targets(student / temperature, teacher)
        )
    loss = functools.partial(function, temperature=temperature, **options)
    if distill.loss == "decoupled":
        return loss
    return lambda student, teacher, labels: loss(student, teacher)


def feature_loss_of(features: Any) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """`(the student's features, the teacher's) -> loss`; None if the name is empty.

    Raises:
      ConfigError: an unknown name or option.
    """
    if not features.loss:
        return None
    function = getattr(distillation, require_known("distill.features.loss", features.loss, FEATURES))
    return functools.partial(function, **_options(function, features.options, "distill.features.options"))


def projector_of(name: str) -> Projector:
    """No projector, a linear one, or an orthogonal one, for which the teacher's features are standardised.

    Raises:
      ConfigError: an unknown name.
    """
    return PROJECTORS[require_known("distill.features.projector", name, PROJECTORS)]


def require_widths(
    features: Any, student: tuple[str, tuple[int, ...]], teacher: tuple[str, tuple[int, ...]]
) -> None:
    """Refuses widths that the projector of `distill.features`, or none, does not bring together.

    Args:
      features: the group of fields. student, teacher: a layer's name and the shape of what it says.

    Raises:
      ConfigError: the message names the field.

    >>> from modelzip_jax.training.config import base
    >>> features = base().distill.features
    >>> features.loss = "hint"
    >>> require_widths(features, ("Dense_1", (8, 16)), ("Dense_1", (8, 32)))
    Traceback (most recent call last):
    modelzip_jax.errors.ConfigError: the student's 'Dense_1' gives (8, 16) and the teacher's 'Dense_1' (8, 32), ...
    """
    (ours, own), (theirs, others) = student, teacher
    both = f"the student's {ours!r} gives {own} and the teacher's {theirs!r} {others}"
    if features.projector == "orthogonal" and own[-1] > others[-1]:
        raise ConfigError(
            f"{both}: distill.features.projector 'orthogonal' cannot put the wider one into the narrower one without "
            "losing any: set it to 'linear'"
        )
    if features.loss != "hint" or own == others:
        return
    if own[:-1] != others[:-1]:
        raise ConfigError(f"{both}, which 'hint' compares entry by entry: name layers of one size")
    if not features.projector:
        raise ConfigError(
            f"{both}, which 'hint' compares entry by entry: set distill.features.projector to 'linear', or to "
            "'orthogonal', which needs a student that is not the wider one"
        )


def balance_of(name: str, epoch: int) -> distillation.Balancer:
    """What multiplies the weights of the config.

    Args:
      epoch: steps of one, after which dynamic weight average moves.

    Raises:
      ConfigError: an unknown name.
    """
    require_known("distill.balance", name, BALANCES)
    if name == "fixed":
        return distillation.fixed_weights()
    if name == "dynamic_weight_average":
        return distillation.dynamic_weight_average(every=epoch)
    return distillation.grad_norm() if name == "grad_norm" else distillation.uncertainty_weighting()


def weights_of(distill: Any) -> dict[str, float]:
    """The weight of each loss, by its name.

    Raises:
      ConfigError: there is no loss by which the teacher teaches, or one that its weight of 0 leaves out.
      DistillationError: a weight is negative.

    >>> from modelzip_jax.training.config import base
    >>> weights_of(base().distill)
    {'labels': 1.0, 'soft_targets': 1.0}
    """
    weights = {"labels": distill.label_weight}
    if distill.loss:
        weights[distill.loss] = distill.weight
    if distill.features.loss:
        weights[distill.features.loss] = distill.features.weight
    for name, weight in weights.items():
        as_weight(weight, f"the weight of {name}", "distill")
    for group, name in (("distill", distill.loss), ("distill.features", distill.features.loss)):
        if name and not weights[name]:
            raise ConfigError(
                f"{group}.weight is 0, so that {name!r} teaches nothing: give it one above 0, or set {group}.loss=''"
            )
    if len(weights) == 1:
        raise ConfigError(
            "distill.teacher is set, but it teaches nothing: set distill.loss or distill.features.loss, with a weight "
            "above 0"
        )
    return weights


def _options(
    function: Callable[..., Any], given: Mapping[str, Any], field: str, own: set[str] | None = None
) -> dict[str, Any]:
    """Keyword arguments for a loss; `own` ones have fields of their own."""
    parameters = inspect.signature(function).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - (own or set())
    for name in given:
        if name not in known:
            hint = nearest_name(name, known) if known else "it has none"
            raise ConfigError(f"{field}.{name} is no option of {function.__name__}; {hint}")
    return dict(given)
