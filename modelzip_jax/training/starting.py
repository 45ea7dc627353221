"""What a run starts from: the network that its config names, prepared inputs, and weights from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import checkpoints as files
from modelzip_jax import models, packing
from modelzip_jax import tree as trees
from modelzip_jax.coding.loading import load
from modelzip_jax.errors import ConfigError, NonFiniteError, TreeError
from modelzip_jax.naming import require_known
from modelzip_jax.recipe import alike
from modelzip_jax.suggestions import listed
from modelzip_jax.training import data, frameworks
from modelzip_jax.training.config import STORED
from modelzip_jax.transform import identity
from modelzip_jax.tree import PyTree

__all__ = ["check_kind", "network_of", "preparation_of", "starting_weights"]

AUGMENTATIONS = ("none", "crop", "crop+flip")


def check_kind(config: Any, kind: str) -> None:
    """Scenes need a detector, and what is made for classes alone does not know of them.

    Raises:
      ConfigError: the model, or a field, does not go with the data.
    """
    scenes, detector = kind == "scenes", config.model.name == "center_detector"
    if scenes != detector:
        raise ConfigError(
            f"model.name is {config.model.name!r} and data.name {config.data.name!r}: center_detector learns from "
            "digit_scenes or fashion_scenes, and nothing else does"
        )
    fields = {
        "distill.teacher": config.distill.get("teacher"),
        "label_smoothing": config.label_smoothing,
        "distributed.processes": config.distributed.processes > 1,
    }
    used = [name for name, value in fields.items() if scenes and value]
    if used:
        raise ConfigError(f"{', '.join(used)} cannot be used with {config.data.name}")


def network_of(config: Any, inputs: np.ndarray) -> frameworks.Network:
    """The network of `config.model`, for inputs like these, `(n, ...)`.

    Raises:
      ModelError: there is no such network or option.
    """
    chosen = config.model
    options = {"dtype": config.precision, **chosen.options}
    created = models.create(chosen.name, framework=chosen.framework, **options)
    if chosen.framework == "nnx":
        return frameworks.from_nnx(lambda rngs: created(inputs.shape[1:], rngs=rngs))
    return frameworks.from_linen(created)


def preparation_of(spec: data.DataSpec, augment: str) -> Callable[[PyTree, jax.Array | None], PyTree]:
    """`(batch, key) -> batch`: standardises images by the training set's mean and deviation in each channel.

    With a key it augments them before that. Tokens pass.

    Raises:
      ConfigError: an unknown way to augment, or one of scenes, whose boxes would stay where they are.
    """
    require_known("data.augment", augment, AUGMENTATIONS)
    if spec.kind == "text":
        return lambda batch, key: batch
    if spec.kind == "scenes" and augment != "none":
        raise ConfigError(
            f"data.augment is {augment!r}, which moves what boxes say the place of; take 'none'"
        )

    def prepare(batch: PyTree, key: jax.Array | None) -> PyTree:
        images = batch["inputs"]
        if key is not None and augment != "none":
            crop_key, flip_key = jax.random.split(key)
            # The paper's 4 of 32 pixels (He et al. 2016, §4.2), for any size.
            padding, fill = images.shape[1] // 8, tuple(round(m) for m in spec.mean)
            images = data.random_crop(crop_key, images, padding, fill)
            images = data.random_flip(flip_key, images) if augment == "crop+flip" else images
        return {**batch, "inputs": data.normalize(images, spec.mean, spec.std)}

    return prepare


def starting_weights(
    path: str | Path,
    params: PyTree,
    variables: PyTree,
    *,
    what: str = "start",
    hint: str = "set config.model to the network that was trained",
) -> tuple[PyTree, PyTree, packing.Packed | None]:
    """Weights and variables of a checkpoint or `.mz` file, and the packed model from which training resumes.

    Of a model that was stored as it is, any transform begins anew, and none resumes.

    Args:
      path: of the file, of an Orbax checkpoint, or of the folder of a finished run.
      params, variables: of the same structure; variables that the file does not have stay.
      what: the file, in messages. hint: what to do about one of another network.

    Raises:
      ConfigError: there is no such file, or it is of another network. NonFiniteError: a weight is NaN or infinite.
    """
    path = _file_of(Path(path))
    compressed = None
    if path.suffix == ".mz":
        try:
            packed = load(path, like=params)
        except TreeError as error:
            found = packing.unpack(load(path))
            raise ConfigError(_unfit(what, path, found, params, hint) or f"{what} {path}: {error}") from error
        compressed = packed if not alike(packed.transform, identity()) else None
        weights, rest = packing.unpack(packed), packed.variables or variables
    else:
        tree = files.read(path)
        found = tree.get("params", tree) if isinstance(tree, dict) else tree
        if unfit := _unfit(what, path, found, params, hint):
            raise ConfigError(unfit)
        weights = trees.restructured(found, params)
        own = {name: tree[name] for name in variables if name in tree} if isinstance(tree, dict) else {}
        rest = {**variables, **own}
    _require_finite(what, path, (weights, rest))
    return weights, rest, compressed


def _file_of(path: Path) -> Path:
    """The file itself: of a finished run, its model."""
    if (path / "model.mz").is_file():
        return path / "model.mz"
    if (path / STORED).is_file():
        raise ConfigError(f"{path} holds no finished run of `modelzip train`: there is no model.mz in it")
    if not path.exists():
        raise ConfigError(
            f"there is no {path}, of which the weights were to be read: give the path of a .mz file, a checkpoint, or "
            "the folder of a finished run"
        )
    return path


def _unfit(what: str, path: Path, found: PyTree, like: PyTree, hint: str) -> str:
    """What a file has instead of what a network needs; empty if it fits."""
    has, needs = (
        {name: tuple(np.shape(x)) for name, x in trees.named_leaves(tree)} for tree in (found, like)
    )
    more, lacking = ([name for name in a if name not in b] for a, b in ((has, needs), (needs, has)))
    other = [name for name in needs if name in has and has[name] != needs[name]]
    if not (more or lacking or other):
        return ""
    if more or lacking:
        there = f"it has {listed(more, 3)}" if more else f"it lacks {listed(lacking, 3)}"
        needed = listed(lacking, 3) if lacking else "nothing of that name"
        differs = f"{there}, the model needs {needed if more else 'them'}"
    else:
        name = other[0]
        differs = f"it has {name} of shape {has[name]}, the model needs {needs[name]}"
        differs += ", its transpose" if has[name] == needs[name][::-1] else ""
    return f"{what} {path} holds the weights of another network than config.model: {differs}: {hint}"


def _require_finite(what: str, path: Path, tree: PyTree) -> None:
    for name, leaf in trees.named_leaves(tree):
        inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        if inexact and not np.isfinite(np.asarray(leaf).astype(np.float32)).all():
            leaf_name = name.partition("/")[2]
            raise NonFiniteError(
                f"{what} {path}: {leaf_name} holds NaN or infinity: take weights of before training diverged"
            )
