"""What goes together in `config.distill`: all checks that need no data."""

from __future__ import annotations

from typing import Any

from modelzip_jax.errors import ConfigError
from modelzip_jax.naming import require_known
from modelzip_jax.training import config as configs
from modelzip_jax.training import distill_fields as fields

__all__ = ["checked_fields"]

RELATIONS = ("correlation_congruence", "relational_angle", "relational_distance", "similarity")
"""Those of features that compare examples with each other: one example has nothing to be compared with."""
CACHES = ("", "float16", "float32")
PLACES = ("activations", "inputs", "outputs")


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
    fields.weights_of(distill)
    fields.logit_loss_of(distill)
    fields.feature_loss_of(features)
    fields.projector_of(features.projector)
    require_known("distill.features.place", features.place, PLACES)
    require_known("distill.cache", distill.cache, CACHES)
    _require_together(config, distill)
    _require_layers(features)
    _require_read(distill, defaults)
    if features.loss in RELATIONS and config.data.batch_size < 2:
        raise ConfigError(
            f"distill.features.loss {features.loss!r} compares the examples of a batch with each other, and teaches "
            "nothing while data.batch_size is 1: set data.batch_size to 2 or more, or take another loss"
        )
    return distill


def _require_fields(path: str, given: Any, known: Any) -> None:
    for name, value in given.items():
        require_known(f"a field of {path}", name, known)
        if name == "features":
            _require_fields("distill.features", value, known[name])


def _require_read(distill: Any, defaults: Any) -> None:
    """Refuses fields that say something of what there is not."""
    features = distill.features
    for group, known, read, names, needed in (
        ("distill", defaults, distill.teacher == "average", ("decay",), "distill.teacher to 'average'"),
        ("distill", defaults, distill.loss, ("temperature", "weight", "options"), "distill.loss"),
        (
            "distill.features", defaults.features, features.loss,
            [name for name in features if name != "loss"], "distill.features.loss",
        ),
    ):  # fmt: skip
        given = features if group == "distill.features" else distill
        for name in names:
            if not read and given[name] != known[name]:
                raise ConfigError(
                    f"{group}.{name} is set, but nothing reads it: set {needed}, or leave {group}.{name} as it was, "
                    f"{_plain(known[name])!r}"
                )


def _plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else value


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
    pairs = list(zip(features.layers, features.teacher_layers or features.layers, strict=False))
    twice = [pair for pair in pairs if pairs.count(pair) > 1]
    if twice:
        raise ConfigError(
            f"distill.features.layers has {twice[0][0]!r} twice for one layer of the teacher: name each once; a layer "
            "counts more by distill.features.weight"
        )
