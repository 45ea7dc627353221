"""ResNet-20 on Fashion-MNIST, trained once by `configs/resnet20.py` for three epochs: what two cores do in a while.

The full 200 epochs take a GPU. Batch statistics are not compressed.
"""

from __future__ import annotations

from typing import Any

import jax

from benchmarks.tasks import pictures_with_labels
from benchmarks.tasks.task import Task
from benchmarks.tasks.training import trained
from modelzip_jax import models
from modelzip_jax.tree import PyTree

__all__ = ["NAMES", "load"]

NAMES = ("resnet20-fashion_mnist",)
_DATASET = "fashion_mnist"
_FIELDS = {
    "data.name": _DATASET,
    "data.augment": "none",
    "epochs": 3.0,
    "optimizer.weight_decay": 5e-4,
    "optimizer.schedule.warmup": 100,
}


def load(name: str, quick: bool) -> Task:
    """The task."""
    module = models.create("resnet20")
    found = trained(name, "resnet20", _FIELDS)

    def apply(params: PyTree, images: Any) -> Any:
        return module.apply({"params": params, **found.variables}, images)

    return Task(
        name=name,
        params=found.params,
        apply=apply,
        likelihood="categorical",
        calibration=pictures_with_labels.calibration(_DATASET),
        scores=pictures_with_labels.scores(_DATASET, jax.jit(apply), quick),
        measures=pictures_with_labels.MEASURES,
        at_once=1,
    )
