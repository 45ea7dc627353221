"""Quantization-aware training at 2 bits on Fashion-MNIST: how near the float network it comes.

    python -m benchmarks.qat [--repeats 3] [--lenet5] [--quick] [--finished]

A repeat is a seed. The float network is trained first; then as many epochs begin from it, once in floats and once with
kernels at 2 bits, learned steps (LSQ) for each channel, biases in floats. What is reported is the file, read back and
evaluated on the test split; the choices (rates, epochs) were made on the validation split. Runs live in `runs/qat` and
go on where they stand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.baselines import finished
from modelzip_jax import checkpoints
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "qat"
TUNING = {"optimizer.schedule.peak": 3e-4}
METHODS: dict[str, mz.Transform] = {
    "float": mz.only("**/kernel", mz.identity()),
    "2 bits, learned steps": mz.only("**/kernel", mz.quantize(2, learned=True, range="mse", axis=-1)),
    "ternary, learned scales": mz.only(
        "**/kernel", mz.quantize(grid=mz.grids.ternary(), learned=True, axis=-1)
    ),
    "2 bits, dynamic": mz.only("**/kernel", mz.quantize(2, discretization="dynamic", range="mse", axis=-1)),
}


def _config(name: str, seed: int, quick: bool, **fields: Any) -> Any:
    changes = {"data.name": "fashion_mnist", **({"epochs": 0.2} if quick else {}), **fields, "seed": seed}
    arguments = [f"--config.{field}={value}" for field, value in changes.items()]
    return configs.override(configs.load_config(ROOT / "configs" / f"{name}.py"), arguments)


def results(name: str, seed: int, chosen: Any) -> dict[str, dict[str, Any]]:
    """What each method came to; without those that are not there and shall not be made."""
    folder = RUNS / f"{name}-{seed}{'-quick' if chosen.quick else ''}"

    def run(config: Any, where: Path, transform: mz.Transform) -> dict[str, Any] | None:
        result = finished(config, where)
        return result if result or chosen.finished else experiment.run(config, where, transform)

    if run(_config(name, seed, chosen.quick), folder / "begun", METHODS["float"]) is None:
        return {}
    start = folder / "begun.npz"
    if not start.exists():
        checkpoints.write(start, mz.unpack(mz.load(folder / "begun" / "model.mz")))
    tuning = _config(name, seed, chosen.quick, **TUNING, start=str(start))
    each = {
        title: run(tuning, folder / title.replace(" ", "-").replace(",", ""), transform)
        for title, transform in METHODS.items()
    }
    return {title: result for title, result in each.items() if result is not None}


def main() -> None:
    flags = {
        "finished": "report the seeds that are done",
        "lenet5": "LeNet-5, too (an hour a seed on two cores)",
    }
    chosen = harness.options(__doc__, repeats=3, flags=flags)
    report = harness.Report("qat", "Quantization-aware training at 2 bits", chosen)
    rows = []
    for name in ("lenet_300_100", "lenet5") if chosen.lenet5 else ("lenet_300_100",):
        seeds = [results(name, seed, chosen) for seed in range(1 if chosen.quick else chosen.repeats)]
        seeds = [found for found in seeds if len(found) == len(METHODS)]
        if not seeds:
            report.note(f"{name}: no seed is finished")
            continue
        accuracy = {m: np.array([100 * found[m]["test"]["accuracy"] for found in seeds]) for m in METHODS}
        for method, values in accuracy.items():
            validation = np.mean([100 * found[method]["validation"]["accuracy"] for found in seeds])
            size = int(np.mean([found[method]["file_bytes"] for found in seeds]))
            rows.append([name, method, size, harness.said(values, digits=2), float(validation)])
        lost = float(np.mean(accuracy["float"] - accuracy["2 bits, learned steps"]))
        report.bar(
            f"{name}: points below float at 2 bits", 0.5, lost, unit="points", remark=f"{len(seeds)} seeds"
        )
    columns = ["network", "method", "file, bytes", "test accuracy, %", "validation, %"]
    report.table("Fashion-MNIST, kernels", columns, rows)
    report.finish()


if __name__ == "__main__":
    main()
