"""What calibrates the model of a training run: the run's own network and training inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from modelzip_jax.coding.loading import load
from modelzip_jax.training import config as configs
from modelzip_jax.training.experiment import build
from modelzip_jax.tree import PyTree

__all__ = ["run_calibration"]


def run_calibration(folder: str | Path, count: int = 1024) -> tuple[Callable[..., Any], list[Any]]:
    """`(apply_fn, batches)` for `mz.compress(calibrate=)`, of a folder that `modelzip train` has written.

    Outputs are logits, in evaluation mode, with the batch statistics of the run's `model.mz`.

    Args:
      folder: with `config.json` and `model.mz`.
      count: examples of the training set, at even distances; whole batches of at most 64.

    Raises:
      ConfigError: the folder holds no finished run, or not one of this version. DataError: its data are not here.
    """
    config = configs.run_config(folder)
    config.distill = configs.base().distill  # A teacher has no say in it, and may be gone.
    experiment = build(config)
    variables = load(Path(folder) / "model.mz").variables
    size = min(64, config.data.batch_size)
    inputs = experiment.train["inputs"]
    rows = np.linspace(0, len(inputs) - 1, min(count, len(inputs)) // size * size).round().astype(np.int64)
    prepared = [
        experiment.prepare({"inputs": jnp.asarray(inputs[part])}, None)["inputs"]
        for part in rows.reshape(-1, size)
    ]

    def apply(params: PyTree, x: Any) -> Any:
        return experiment.network.predict(params, variables, x)

    return apply, prepared
