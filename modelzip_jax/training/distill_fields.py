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
from modelzip_jax.training import config as configs
from modelzip_jax.tree import PyTree

__all__ = [
    "Projector",
    "balance_of",
    "checked_fields",
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
CACHES = ("", "float16", "float32")
PLACES = ("activations", "inputs", "outputs")
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
      ConfigError: there is no loss by which the teacher teaches. DistillationError: a weight is negative.

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
    if not any(weight for name, weight in weights.items() if name != "labels"):
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


def checked_fields(config: Any) -> Any:
    """`config.distill`, complete, after all checks that need no data.

    Raises:
      ConfigError: an unknown field or name, a value of another type, or fields that contradict each other; the
        message names them. DistillationError: a number out of range.
    """
    defaults = configs.base().distill
    distill, given = configs.base().distill, config.distill
    _require_fields("distill", given, defaults)
    try:
        distill.update(given)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"config.distill cannot be read: {error}") from error
    if not distill.teacher:
        if distill != defaults:
            changed = sorted(name for name in distill if distill[name] != defaults[name])
            raise ConfigError(
                f"distill.{changed[0]} is set, but there is no teacher: set distill.teacher to 'self', 'average' or a "
                "path"
            )
        return distill
    features = distill.features
    weights_of(distill)
    logit_loss_of(distill)
    feature_loss_of(features)
    projector_of(features.projector)
    require_known("distill.features.place", features.place, PLACES)
    require_known("distill.cache", distill.cache, CACHES)
    _require_together(config, distill)
    _require_layers(features)
    return distill


def _require_fields(path: str, given: Any, known: Any) -> None:
    for name, value in given.items():
        require_known(f"a field of {path}", name, known)
        if name == "features":
            _require_fields("distill.features", value, known[name])


def _require_together(config: Any, distill: Any) -> None:
    """Refuses fields that contradict each other."""
    if distill.teacher == "self" and not config.start:
        raise ConfigError(
            "distill.teacher is 'self', the network that training starts from, which without config.start is a random "
            "one: set start to its weights, or distill.teacher to 'average'"
        )
    if distill.teacher == "average" and not 0.0 <= distill.decay < 1.0:
        raise ConfigError(f"distill.decay must be at least 0 and below 1, not {distill.decay!r}")
    if distill.top_k and not (distill.cache and distill.loss == "soft_targets"):
        raise ConfigError(
            "distill.top_k says how many logits are kept on disk for soft targets: it goes with distill.cache and "
            "distill.loss 'soft_targets'"
        )
    if not distill.cache:
        return
    if config.data.augment != "none":
        raise ConfigError(
            f"distill.cache keeps what the teacher says of each example as it is stored, and data.augment is "
            f"{config.data.augment!r}: set distill.cache='' to run the teacher on what the student sees, or "
            "data.augment='none'"
        )
    if distill.teacher == "average" or distill.features.loss:
        what = "features" if distill.features.loss else "the average of the student, which moves"
        raise ConfigError(f"distill.cache keeps logits of a frozen teacher, not {what}: set distill.cache=''")


def _require_layers(features: Any) -> None:
    counts = len(features.layers), len(features.teacher_layers or features.layers)
    if features.loss and (not counts[0] or counts[0] != counts[1]):
        raise ConfigError(
            f"distill.features.loss is {features.loss!r}: name the student's layers in distill.features.layers, and as "
            f"many of the teacher in teacher_layers if they have other names; there are {counts[0]} and {counts[1]}"
        )
    if not features.loss and (features.layers or features.projector):
        raise ConfigError(
            "distill.features has layers or a projector, but no loss: set distill.features.loss"
        )
