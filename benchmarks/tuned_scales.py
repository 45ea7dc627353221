"""What training the numbers beside the codes brings back: EfficientNet-Lite0 at 4 bits a channel.

    python -m benchmarks.tuned_scales [--quick]

Kernels get error feedback by some pictures, then biases are corrected, then step sizes, biases and norms are tuned
towards the float network's logits (`mz.tune_scales`). Codes are those of the first step. Pictures of CIFAR-10's
training set calibrate, others of its test set are reported; epochs and learning rate were chosen on neither.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import modelzip_jax as mz
from benchmarks import harness, networks, pictures
from modelzip_jax.packed import Dense, is_packed

EPOCHS, LEARNING_RATE = 2, 3e-3


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=1)
    report = harness.Report("tuned_scales", "Scales tuned behind error feedback", chosen)
    module, variables = networks.load_efficientnet()
    fed, corrected, tuned, held = (16, 16, 16, 32) if chosen.quick else (128, 64, 512, 1000)
    known, test = pictures.batches("calibration", tuned), pictures.batches("test", held)
    run = pictures.evaluator(module)
    floats = pictures.logits(run, variables, test)
    rows: list[list[Any]] = []

    def judged(name: str, packed: mz.Packed, begun: float) -> None:
        seconds = time.perf_counter() - begun
        found = pictures.agreement(floats, pictures.logits(run, mz.unpack(packed), test))
        cosine = found.cosine
        rows.append([name, packed.nbytes, harness.said(cosine, digits=4), float(found.top.mean()), seconds])
        print(*rows[-1], flush=True)

    transform = mz.only(
        "params/**/kernel",
        mz.quantize(4, granularity="channel", axis=-1, range="mse", rounding=mz.rounding.error_feedback()),
    )
    begun = time.perf_counter()
    packed = mz.compress(variables, transform, calibrate=(module.apply, pictures.batches("calibration", fed)))
    judged(f"error feedback in turn, least squares, {fed} pictures", packed, begun)
    begun = time.perf_counter()
    found = mz.rewrites.correct_bias(
        module.apply, variables, packed.params, pictures.batches("calibration", corrected)
    )
    packed = with_leaves(
        packed, {name: leaf for name, leaf in mz.tree.named_leaves(found.params) if name in found.corrections}
    )
    judged(f"and biases corrected, {corrected} pictures", packed, begun)
    begun = time.perf_counter()
    packed = mz.tune_scales(
        packed, variables, (module.apply, known), epochs=EPOCHS, learning_rate=LEARNING_RATE
    )
    judged(f"and scales tuned, {tuned} pictures, {EPOCHS} epochs", packed, begun)
    report.table(
        "EfficientNet-Lite0, kernels at 4 bits a channel",
        ["method", "bytes", "cosine of logits", "same class", "s"],
        rows,
    )
    last = pictures.agreement(floats, pictures.logits(run, mz.unpack(packed), test))
    report.bar(
        "EfficientNet-Lite0, 4 bits a channel: cosine of logits", 0.95, float(last.cosine.mean()), least=True
    )
    report.finish()


def with_leaves(packed: mz.Packed, leaves: Mapping[str, Any]) -> mz.Packed:
    """The packed model with other lossless leaves, by name."""
    flat, treedef = jax.tree.flatten(packed.params, is_leaf=is_packed)
    names = [name for name, _ in mz.tree.named_leaves(packed.params, is_packed)]
    changed = [
        Dense(np.asarray(leaves[name]), leaf.shape) if name in leaves else leaf
        for name, leaf in zip(names, flat, strict=True)
    ]
    return dataclasses.replace(packed, params=treedef.unflatten(changed))


if __name__ == "__main__":
    main()
