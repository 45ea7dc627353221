"""Configs: what a run is, as `ml_collections` data that the command line can override."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modelzip_jax.errors import ConfigError, MissingExtraError
from modelzip_jax.naming import nearest_name

__all__ = ["STORED", "base", "load_config", "override", "run_config", "stored_fields"]

PREFIX = "--config."
STORED = "config.json"
_LEAST = {
    "epochs": 0.0, "steps": 0, "data.batch_size": 1, "block": 1, "record_every": 0, "evaluate_every": 0,
    "save_every": 0, "patience": 0, "optimizer.accumulate": 1, "optimizer.schedule.warmup": 0,
    "distill.top_k": 0, "distributed.processes": 1,
}  # fmt: skip


def _config_dict() -> Any:
    try:
        from ml_collections import ConfigDict
    except ImportError as error:
        raise MissingExtraError("training configs need: pip install 'modelzip_jax[data]'") from error
    return ConfigDict


def base() -> Any:
    """Every field of a run with its default; a file in `configs/` changes some of them.

    seed: of everything random. epochs: over the training set; or steps: batches, if not 0.
    model: name, framework ("linen" or "nnx") and options of `models.create`.
    data: name and options of `training.data.load_split`; batch_size: global; subset: share of the training set;
    augment: "none", "crop" (random shifts) or "crop+flip"; final: train on the validation split, too.
    optimizer: see `training.optimizers`; clip: of the global gradient norm; average: decay of the moving
    average of the weights, which is then what is evaluated and shipped; averaged: path patterns of the layers that
    have one, all if empty; accumulate: batches a step.
    schedule: peak rate; warmup and first in steps; floor as a share of the peak; drops as shares of the
    run at which the rate is multiplied by gamma.
    precision: dtype of the computation; the weights are float32.
    block: steps in one compiled call. record_every, evaluate_every, save_every: in steps; evaluate_every
    0 is once an epoch; save_every 0 is at each evaluation. patience: evaluations without a better
    validation loss (by min_delta) before the run stops; 0 goes to the end.
    tensorboard: also write TensorBoard logs.
    start: a .mz file or checkpoint to begin from. recipe: `module:name` or a .json file of the transform
    that compresses while training.
    distill: see `training.distilling`; without a teacher nothing of it counts.
    distributed: coordinator "host:port", the number of processes and which one this is.
    """
    return _config_dict()(
        {
            "seed": 0,
            "epochs": 10.0,
            "steps": 0,
            "model": {"name": "mlp", "framework": "linen", "options": {}},
            "data": {
                "name": "digits", "dir": "", "options": {}, "batch_size": 128, "subset": 1.0, "augment": "none",
                "final": False,
            },
            "optimizer": {
                "name": "adamw", "weight_decay": 0.0, "momentum": 0.9, "nesterov": False, "b1": 0.9,
                "b2": 0.999, "clip": 0.0, "average": 0.0, "averaged": (), "accumulate": 1,
                "schedule": {
                    "name": "cosine", "peak": 1e-3, "warmup": 0, "floor": 0.0, "first": 0, "mult": 2.0,
                    "drops": (0.5, 0.75), "gamma": 0.1,
                },
            },
            "label_smoothing": 0.0,
            "precision": "float32",
            "block": 1,
            "record_every": 100,
            "evaluate_every": 0,
            "save_every": 0,
            "patience": 0,
            "min_delta": 0.0,
            "tensorboard": False,
            "start": "",
            "recipe": "",
            "distill": {
                "teacher": "", "loss": "soft_targets", "temperature": 4.0, "weight": 1.0, "label_weight": 1.0,
                "options": {}, "balance": "fixed", "decay": 0.999, "cache": "", "top_k": 0,
                "features": {
                    "loss": "", "weight": 1.0, "layers": (), "teacher_layers": (), "place": "inputs",
                    "projector": "", "options": {},
                },
            },
            "distributed": {"coordinator": "", "processes": 1, "process": 0},
        }
    )  # fmt: skip


def load_config(path: str | Path) -> Any:
    """The config that a file's `get_config()` returns.

    Raises:
      ConfigError: no such file, or a folder; no `get_config` in it, or fields that `base` does not have.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.py") if p.stem != "__init__")
        hint = f": name a file in it, {', '.join(inside[:6])}" if inside else ""
        raise ConfigError(f"{path} is a folder, and a config is a Python file with get_config(){hint}")
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.py") if p.stem != "__init__")
        hint = f"; {nearest_name(path.stem, there)}" if there else ""
        raise ConfigError(f"there is no config {path}{hint}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no get_config()")
    found = module.get_config()
    if not isinstance(found, _config_dict()):
        raise ConfigError(
            f"get_config() of {path} gives a {type(found).__name__}; change fields of config.base()"
        )
    return found


def run_config(folder: str | Path) -> Any:
    """The config of a finished run, from the folder that `modelzip train` wrote.

    Raises:
      ConfigError: the folder holds no finished run, or not one of this version.
    """
    folder = Path(folder)
    for name in (STORED, "model.mz"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} holds no finished run of `modelzip train`: there is no {name} in it")
    config = base()
    try:
        config.update(stored_fields(folder))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{folder / STORED} is no config of a run: {error}") from error
    return config


def stored_fields(folder: Path) -> dict[str, Any] | None:
    """The fields in the folder of a run; None if there are none yet.

    Raises:
      ConfigError: the file is damaged; the message says in which line.
    """
    path = folder / STORED
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise ConfigError(
            f"{path} is no config of a run: {' '.join(str(error).split())}; mend it, or remove {folder} to begin anew"
        ) from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} is no config of a run: it holds a {type(fields).__name__}")
    return fields


def override(config: Any, arguments: Iterable[str]) -> Any:
    """A copy of the config with `--config.field=value` arguments applied.

    Values are Python literals, strings may go without quotes, and names in a row with commas between them
    (`Dense_0,Dense_1`); a value must have the field's type.

    Raises:
      ConfigError: a misspelt field (its nearest neighbour is named), or a value of another type.

    >>> override(base(), ["--config.optimizer.schedule.peak=0.1", "--config.data.name=mnist"]).data.name
    'mnist'
    """
    config = config.copy_and_resolve_references()
    for argument in arguments:
        if not argument.startswith(PREFIX) or "=" not in argument:
            raise ConfigError(f"expected --config.field=value, not {argument!r}")
        path, _, text = argument.removeprefix(PREFIX).partition("=")
        _set(config, path, text)
    _check_counts(config)
    config.lock()
    return config


def _check_counts(config: Any) -> None:
    for path, least in _LEAST.items():
        value = config
        for name in path.split("."):
            value = value.get(name, least) if hasattr(value, "get") else least
        if isinstance(value, int | float) and not value >= least:
            raise ConfigError(f"{path} must be at least {least}, not {value!r}")
    share = config.data.get("subset", 1.0) if "data" in config else 1.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"data.subset must be a share above 0 and up to 1, not {share!r}")


def _set(config: Any, path: str, text: str) -> None:
    *groups, field = path.split(".")
    node = config
    for depth, name in enumerate(groups):
        if name not in node or not hasattr(node[name], "items"):
            raise _unknown(path, ".".join(groups[:depth]), name, node)
        node = node[name]
    # Options go to the model or the data set, which know their names; `models.create` checks them.
    open_ended = bool(groups) and groups[-1] == "options"
    if field not in node and not open_ended:
        raise _unknown(path, ".".join(groups), field, node)
    if field in node and hasattr(node[field], "items"):
        raise ConfigError(f"{path} is a group of fields: {', '.join(sorted(node[field]))}")
    node[field] = _parse(path, text, node.get(field))


def _unknown(path: str, group: str, name: str, node: Any) -> ConfigError:
    where = f"config.{group}" if group else "config"
    return ConfigError(
        f"there is no field {path!r}: {where} has no {name!r}; {nearest_name(name, node.keys())}"
    )


def _parse(path: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text.strip("'\"")
    if isinstance(old, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if old is None or type(value) is type(old):
        return value
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, tuple) and isinstance(value, list | int | float):
        return tuple(value) if isinstance(value, list) else (value,)
    if old == () and isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    raise ConfigError(f"{path} is of type {type(old).__name__} ({old!r}), so it cannot be {text!r}")
