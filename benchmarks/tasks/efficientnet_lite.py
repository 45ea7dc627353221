"""EfficientNet-Lite0 with ImageNet's weights: how near its logits stay to the float network's, on CIFAR-10's pictures.

ImageNet itself is not to be had without an account, and CIFAR-10's ten classes are not the network's: the reference is
the float network (see `benchmarks.pictures`). Batch statistics are not compressed.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import networks, pictures
from benchmarks.tasks.task import Batch, Measure, Task, chosen_rows, in_batches
from modelzip_jax.training import data
from modelzip_jax.tree import PyTree

__all__ = ["NAMES", "load"]

NAMES = ("efficientnet_lite0",)
COSINE, SAME = Measure("cosine to the float logits"), Measure("same likeliest class")
_COUNTS = {"validation": 256, "test": 512}
_BATCH = 16


@functools.cache
def _training_pictures() -> np.ndarray:
    return data.load_split("cifar10", "train")["inputs"]


def load(name: str, quick: bool) -> Task:
    """The task. Batches are float32 (16, 224, 224, 3)."""
    module, variables = networks.load_efficientnet()
    rest = {kind: value for kind, value in variables.items() if kind != "params"}
    run = pictures.evaluator(module)

    def logits(params: PyTree, part: str) -> np.ndarray:
        everything = jax.tree.map(jnp.asarray, {"params": params, **rest})
        return pictures.logits(run, everything, pictures.batches(part, 16 if quick else _COUNTS[part]))

    @functools.cache
    def reference(part: str) -> np.ndarray:
        return logits(variables["params"], part)

    def scores(params: PyTree, part: str) -> dict[str, np.ndarray]:
        found = pictures.agreement(reference(part), logits(params, part))
        return {COSINE.name: found.cosine, SAME.name: found.top}

    def calibration(count: int, seed: int = 0) -> list[Batch]:
        levels = _training_pictures()
        chosen = levels[chosen_rows(len(levels), count, seed)]
        return [(np.asarray(pictures.enlarge(x)),) for (x,) in in_batches((chosen,), _BATCH)]

    def apply(params: PyTree, images: Any) -> Any:
        return module.apply({"params": params, **rest}, images)

    return Task(
        name=name,
        params=jax.tree.map(np.asarray, variables["params"]),
        apply=apply,
        likelihood="categorical",
        calibration=calibration,
        scores=scores,
        measures=(COSINE, SAME),
        at_once=1,
    )
