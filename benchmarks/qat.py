"""Quantization-aware training at 2 bits on Fashion-MNIST: how near the float network it comes, and Qwix's beside it.

    python -m benchmarks.qat [--repeats 3] [--lenet5] [--quick] [--finished]

A repeat is a seed. The float network is that of `benchmarks.tasks`. Every method begins from it and takes as many
steps, of the same batches in the same order: floats, kernels at 2 bits with learned steps (LSQ) for each channel and
biases in floats, others of ours, and Qwix 0.1.8 with kernels of "int2" for each channel (in this interpreter or in
$MODELZIP_QWIX_PYTHON; see `peers/qwix_qat_worker.py`). What is reported of ours is the file, read back and evaluated on
the test split. Runs live in `runs/qat` and go on where they stand.

Choices were made for LeNet-300-100, with seed 0, by the accuracy on the validation split, of our learned steps and of
Qwix alike: peak rates of 3e-4 and 1e-3, and at 1e-3 5 and 10 epochs. Both did best with 1e-3 and 5. Qwix's
`weight_calibration_method` was chosen from "absmax", "absmax,0.6", "rms,1.5", "rms,2" and "rms,2.5" at 3e-4 and, of
these, from "absmax,0.6" and "rms,2" at 1e-3: "rms,2" was the best of each. ("minmax" knows no "int2", and "fixed" no
channels.) LeNet-5 takes three epochs, for the time they cost, and its rate and Qwix's calibration from LeNet-300-100.
The range that its steps begin from, the 85th percentile of magnitudes rather than the 95th or least squares, was chosen
on the validation split with seed 0, from a float network of 3 epochs; no other calibration of Qwix was tried on it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import modelzip_jax as mz
from benchmarks import harness, tasks
from benchmarks.baselines import FASHION, finished
from benchmarks.peers.qwix_client import train_by_qwix
from modelzip_jax import checkpoints
from modelzip_jax.atomic import atomic_file
from modelzip_jax.training import config as configs
from modelzip_jax.training import data, experiment
from modelzip_jax.tree import named_leaves

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "qat"
FLOAT, OURS, QWIX = "float", "2 bits, learned steps", "2 bits, Qwix QAT"
METHODS: dict[str, mz.Transform] = {
    FLOAT: mz.only("**/kernel", mz.identity()),
    OURS: mz.only("**/kernel", mz.quantize(2, learned=True, range="mse", axis=-1)),
    "ternary, learned scales": mz.only(
        "**/kernel", mz.quantize(grid=mz.grids.ternary(), learned=True, axis=-1)
    ),
    "2 bits, dynamic": mz.only("**/kernel", mz.quantize(2, discretization="dynamic", range="mse", axis=-1)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network: fields of its runs, the methods, and how Qwix finds the range of weights."""

    fields: dict[str, Any]
    methods: dict[str, mz.Transform]
    calibration: str


CASES = {
    "lenet_300_100": Case({"optimizer.schedule.peak": 1e-3, "epochs": 5.0}, METHODS, "rms,2"),
    "lenet5": Case(
        {**FASHION, "optimizer.schedule.peak": 1e-3, "epochs": 3.0},
        {
            FLOAT: METHODS[FLOAT],
            OURS: mz.only(
                "**/kernel", mz.quantize(2, learned=True, range=mz.ranges.percentile(85.0), axis=-1)
            ),
        },
        "rms,2",
    ),
}


def _config(name: str, seed: int, quick: bool, **fields: Any) -> Any:
    changes = {"data.name": "fashion_mnist", **fields, **({"epochs": 0.2} if quick else {}), "seed": seed}
    arguments = [f"--config.{field}={value}" for field, value in changes.items()]
    return configs.override(configs.load_config(ROOT / "configs" / f"{name}.py"), arguments)


def results(name: str, seed: int, chosen: Any) -> dict[str, dict[str, Any]]:
    """What each method came to; without those that are not there and shall not be made."""
    case, folder = CASES[name], RUNS / f"{name}-{seed}{'-quick' if chosen.quick else ''}"

    def run(config: Any, where: Path, transform: mz.Transform) -> dict[str, Any] | None:
        result = finished(config, where)
        return result if result or chosen.finished else experiment.run(config, where, transform)

    start = folder / "begun.npz"
    if not start.exists():
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.write(start, tasks.load(f"{name}-fashion_mnist-{seed}", quick=True).params)
    # Relative, so that runs may move with the repository; benchmarks are run from its root.
    fields = {**case.fields, "start": str(start.relative_to(ROOT))}
    tuning = _config(name, seed, chosen.quick, **fields)
    each = {m: run(tuning, folder / m.replace(" ", "-").replace(",", ""), t) for m, t in case.methods.items()}
    each[QWIX] = by_qwix(tuning, case.calibration, folder / "qwix", chosen.finished)
    return {title: result for title, result in each.items() if result is not None}


def by_qwix(config: Any, calibration: str, folder: Path, only_finished: bool) -> dict[str, Any] | None:
    """What Qwix makes of the same weights, batches, schedule and number of steps; None if it cannot be asked."""
    how = {"calibration": calibration, **json.loads(json.dumps(config.to_dict()))}
    told, result = folder / "config.json", folder / "result.json"
    if result.exists():
        if json.loads(told.read_text()) != how:
            raise SystemExit(f"{folder} is of another config: remove it")
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    if only_finished:
        return None
    answer = train_by_qwix(*_task(config, calibration))
    if answer is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in ((told, how), (result, answer)):
        with atomic_file(path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    return answer


def _task(config: Any, calibration: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and options of `qwix_qat_worker.py` for what a config describes."""
    built, rate = experiment.build(config), config.optimizer.schedule
    spec = data.spec(config.data.name)
    plain = {"clip": 0.0, "average": 0.0, "accumulate": 1, "name": "adamw", "b1": 0.9, "b2": 0.999}
    assert {name: config.optimizer[name] for name in plain} == plain, "the worker knows no other optimizer"
    assert (rate.name, rate.warmup, rate.floor) == ("cosine", 0, 0.0), "the worker knows no other schedule"
    assert config.data.augment == "none", "the worker knows no augmentation"
    params = experiment.initial_state(built).params
    sample = built.prepare({"inputs": built.validation["inputs"][: config.data.batch_size]}, None)["inputs"]
    arrays = {f"param|{path}": np.asarray(leaf) for path, leaf in named_leaves(params)}
    for split in ("train", "validation", "test"):
        arrays |= {f"{split}_{kind}": array for kind, array in getattr(built, split).items()}
    batches = data.Batches(built.train, config.data.batch_size, seed=config.seed)
    arrays |= {
        "order": batches.take(built.steps),
        "sample": np.asarray(sample),
        "logits": np.asarray(jax.jit(built.network.predict)(params, {}, sample)),
    }
    options = {
        "network": "lenet5" if config.model.name == "lenet5" else "lenet_300_100",
        "bits": 2,
        "calibration": calibration,
        "peak": rate.peak,
        "decay": config.optimizer.weight_decay,
        "smoothing": config.label_smoothing,
        "mean": spec.mean,
        "std": spec.std,
        "block": config.block,
    }
    return arrays, options


def main() -> None:
    flags = {
        "finished": "report the seeds that are done",
        "lenet5": "LeNet-5, too (about a quarter of an hour a seed on two idle cores)",
    }
    chosen = harness.options(__doc__, repeats=3, flags=flags)
    report = harness.Report("qat", "Quantization-aware training at 2 bits", chosen)
    rows = []
    for name in ("lenet_300_100", "lenet5") if chosen.lenet5 else ("lenet_300_100",):
        methods = (*CASES[name].methods, QWIX)
        seeds = [results(name, seed, chosen) for seed in range(1 if chosen.quick else chosen.repeats)]
        seeds = [found for found in seeds if set(found) >= set(CASES[name].methods)]
        if not seeds:
            report.note(f"{name}: no seed is finished")
            continue
        if not all(QWIX in found for found in seeds):
            report.note(f"{name}: Qwix is not installed, or not all of its seeds are finished")
            methods = CASES[name].methods
        accuracy = {m: np.array([100 * found[m]["test"]["accuracy"] for found in seeds]) for m in methods}
        for method, values in accuracy.items():
            validation = np.mean([100 * found[method]["validation"]["accuracy"] for found in seeds])
            sizes = [found[method].get("file_bytes") for found in seeds]
            size = int(np.mean(sizes)) if None not in sizes else "no file"
            rows.append([name, method, size, harness.said(values, digits=2), float(validation)])
        remark = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
        lost = accuracy[FLOAT] - accuracy[OURS]
        report.bar(f"{name}: points below float at 2 bits", 0.5, np.mean(lost), unit="points", remark=remark)
        if QWIX in accuracy:
            ahead = accuracy[OURS] - accuracy[QWIX]
            said = f"{remark}, {harness.said(ahead, digits=2)}"
            report.bar(
                f"{name}: points above Qwix QAT at 2 bits", 0.0, np.mean(ahead), least=True, unit="points",
                remark=said,
            )  # fmt: skip
    columns = ["network", "method", "file, bytes", "test accuracy, %", "validation, %"]
    report.table("Fashion-MNIST, kernels", columns, rows)
    report.finish()


if __name__ == "__main__":
    main()
