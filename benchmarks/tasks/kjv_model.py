"""A language model of the King James Version, byte by byte: bits for each byte of text that it has not seen.

Four layers of 160 units, 1.3 million weights, trained once by `configs/language_model.py` on windows of 128 bytes, as
far as two cores come in half an hour: it is far from the best model of its size.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tasks.task import Batch, Measure, Task, chosen_rows, in_batches
from benchmarks.tasks.training import trained
from modelzip_jax import models
from modelzip_jax.evaluation import generation
from modelzip_jax.training import data
from modelzip_jax.tree import PyTree

__all__ = ["NAMES", "load"]

NAMES = ("kjv_model",)
BITS = Measure("minus bits a byte", "bits")
_LENGTH, _BATCH = 128, 32
# One leaf for each layer's kernel, not a stack of all layers': what other compressors know how to take.
_SIZES: dict[str, Any] = {
    "num_layers": 4,
    "num_heads": 4,
    "embed_dim": 160,
    "max_length": _LENGTH,
    "scan": False,
}
_COUNTS = {"validation": 400, "test": 1000}


@functools.cache
def _split(split: str) -> dict[str, np.ndarray]:
    return data.load_split("kjv", split, sequence_length=_LENGTH)


def load(name: str, quick: bool) -> Task:
    """The task. Examples are sequences, int32 (128,)."""
    module = models.create("language_model", **_SIZES)
    fields = {
        **{f"model.options.{option}": value for option, value in _SIZES.items()},
        "data.options.sequence_length": _LENGTH,
        "data.batch_size": _BATCH,
        "steps": 1200,
        "block": 10,
    }
    found = trained(name, "language_model", fields)

    def apply(params: PyTree, tokens: Any) -> Any:
        return module.apply({"params": params}, tokens)

    run = jax.jit(apply)

    def scores(params: PyTree, part: str) -> dict[str, np.ndarray]:
        windows = _split(part)
        total = len(windows["labels"])
        count = 32 if quick else _COUNTS[part]
        rows = np.arange(count) * total // count
        predict = functools.partial(run, jax.tree.map(jnp.asarray, params))
        of = generation.score(predict, windows["inputs"][rows], windows["labels"][rows], _BATCH)
        return {BITS.name: -of.nll / (of.tokens * math.log(2))}

    def calibration(count: int, seed: int = 0) -> list[Batch]:
        windows = _split("train")["inputs"]
        return in_batches((windows[chosen_rows(len(windows), count, seed)],), _BATCH)

    return Task(
        name=name,
        params=found.params,
        apply=apply,
        likelihood="categorical",
        calibration=calibration,
        scores=scores,
        measures=(BITS,),
    )
