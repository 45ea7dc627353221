"""What `training.train_loop.train_until` costs beside a bare `lax.scan` of the same step, with every hook in use.

    python -m benchmarks.training_loop [--repeats 15] [--cores 1]

The bare scan has all indices of the run on the device beforehand and returns the last state. The loop
draws its batches, records to a JSON-lines file, and syncs for each record. With convolutions its blocks have
one step, which `make_block` compiles without a loop: XLA:CPU runs convolutions inside one slowly.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import harness
from modelzip_jax import models
from modelzip_jax.training import data, frameworks, objectives, records, train_loop
from modelzip_jax.training.state import begin

BATCH = 128


def cases(
    name: str, options: dict[str, Any], arrays: Any, spec: Any, steps: int, block: int
) -> dict[str, Callable[[], Any]]:
    """The bare scan, the loop, and the bare scan once more as a control."""
    network = frameworks.from_linen(models.create(name, **options))
    tx = optax.adamw(1e-3)

    def prepare(batch: Any, key: Any) -> Any:
        return {**batch, "inputs": data.normalize(batch["inputs"], spec.mean, spec.std)}

    step = train_loop.make_step(network, objectives.softmax_cross_entropy(), tx, prepare)
    inputs = prepare({"inputs": jnp.asarray(arrays["inputs"][:1])}, None)["inputs"]
    params, variables = network.init(jax.random.key(0), inputs)
    on_device = jax.device_put(arrays)
    compiled = train_loop.make_block(step)
    indices = jax.device_put(data.Batches(arrays, BATCH).take(steps).reshape(steps // block, block, BATCH))

    def fresh() -> Any:
        return begin(params, variables, tx.init(params), jax.random.key(0))

    def bare() -> None:
        state = fresh()
        for items in indices:
            state, _ = compiled(state, on_device, items)
        jax.block_until_ready(state)

    def whole() -> None:
        jax.block_until_ready(scan(fresh(), on_device, indices.reshape(steps, BATCH)))

    scan = jax.jit(
        lambda state, d, items: jax.lax.scan(
            lambda s, i: (step(s, jax.tree.map(lambda a: a[i], d))[0], None), state, items
        )[0],
        donate_argnums=0,
    )

    def fit() -> None:
        with records.JsonLines(Path(tempfile.mkdtemp()) / "log.jsonl") as log:
            cadence = train_loop.Cadence(steps, block, record=min(steps, 100))
            batches = data.Batches(arrays, BATCH)
            jax.block_until_ready(
                train_loop.train_until(
                    fresh(), compiled, on_device, batches, cadence, train_loop.Run(record=log)
                )
            )

    return {
        "bare lax.scan": whole,
        "bare lax.scan, a second time": whole,
        "blocks of lax.scan": bare,
        "fit": fit,
    }


def main() -> None:
    chosen = harness.options(__doc__, repeats=15)
    report = harness.Report("training_loop", "Training loop", chosen)
    digits = data.load_split("digits", "train"), data.spec("digits")
    rng = np.random.default_rng(0)
    images = {
        "inputs": rng.integers(0, 256, (8192, 28, 28, 1), dtype=np.uint8),
        "labels": rng.integers(0, 10, 8192).astype(np.int32),
    }
    for title, case in {
        "digits MLP 300-100": ("mlp", {"widths": (300, 100)}, *digits, 900, 50),
        "LeNet-5": ("lenet5", {}, images, data.spec("mnist"), 8, 1),
    }.items():
        times = harness.interleave(cases(*case), chosen.repeats)
        rows = []
        for name in times:
            ratio = harness.ratios(times, name, "bare lax.scan")
            per_step = 1e3 / case[4]
            rows.append([
                name, per_step * harness.median(times[name]), per_step * min(times[name]), harness.median(ratio),
                harness.spread(ratio),
            ])  # fmt: skip
        columns = ["case", "median, ms a step", "min, ms a step", "ratio to the bare scan", "± half IQR"]
        report.table(f"{title}, batch {BATCH}, {case[4]} steps in blocks of {case[5]}", columns, rows)
        control = harness.median(harness.ratios(times, "bare lax.scan, a second time", "bare lax.scan"))
        report.bar(
            f"{title}: fit ÷ bare lax.scan", 1.03, harness.median(harness.ratios(times, "fit", "bare lax.scan")),
            unit="×", remark=f"± {rows[-1][4]:.3f}; the bare scan against itself {control:.3f}",
        )  # fmt: skip
    report.finish()


if __name__ == "__main__":
    main()
