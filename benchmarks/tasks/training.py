"""Networks that no package carries: trained once by the library from a config, and kept in `runs/tasks/`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from modelzip_jax import checkpoints
from modelzip_jax.training import config as configs
from modelzip_jax.training import data, experiment, frameworks, objectives, train_loop
from modelzip_jax.tree import PyTree

__all__ = ["KEPT", "Trained", "trained"]

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "runs" / "tasks"


class Trained(NamedTuple):
    """Weights and what else the network stores, such as batch statistics: nested dicts of NumPy arrays."""

    params: PyTree
    variables: PyTree


def trained(
    name: str, config: str, fields: Mapping[str, Any], network: frameworks.Network | None = None
) -> Trained:
    """What is in `runs/tasks/<name>.npz`: trained and written at the first call, read afterwards.

    config: a file of `configs/`; fields: of it, changed. network: instead of the config's.
    """
    path = KEPT / f"{name}.npz"
    if not path.exists():
        print(f"{name}: training, once", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.write(path, _train(name, config, fields, network)._asdict())
    found = checkpoints.read(path)
    return Trained(found["params"], found.get("variables", {}))


def _train(name: str, config: str, fields: Mapping[str, Any], network: frameworks.Network | None) -> Trained:
    changes = [f"--config.{field}={value}" for field, value in fields.items()]
    chosen = configs.override(configs.load_config(ROOT / "configs" / f"{config}.py"), changes)
    built = experiment.build(chosen)
    built = built._replace(network=network or built.network)
    step = train_loop.make_step(
        built.network,
        objectives.softmax_cross_entropy(chosen.label_smoothing),
        built.tx,
        built.prepare,
    )
    batches = data.Batches(built.train, chosen.data.batch_size, seed=chosen.seed)

    def record(numbers: Mapping[str, float]) -> None:
        said = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        print(f"{name}: {said}", flush=True)

    state = train_loop.train_until(
        experiment.initial_state(built),
        train_loop.make_block(step),
        jax.device_put(built.train),
        batches,
        train_loop.Cadence(built.steps, chosen.block, record=max(built.steps // 10, 1)),
        train_loop.Run(record=record),
    )
    return Trained(*jax.tree.map(np.asarray, (state.params, state.variables)))
