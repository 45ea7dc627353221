"""Deep Compression's row: prune, share weights, code (Han et al. 2016, arXiv:1510.00149, tables 1 to 4) on MNIST.

    python -m benchmarks.deep_compression [--repeats 3] [--quick] [--finished]

A repeat is a seed. Two runs each: the network is trained from scratch while one threshold over all its kernels
rises; then the kernels' remaining weights share a codebook each, which is trained, under masks that stay. What is
reported is the file of the second run, biases, codebooks and header included, read back and evaluated. The
choices (sparsity, entries, epochs, rates) were made on the validation split; the figures are of the test split.
Runs live in `runs/deep_compression` and go on where they stand. Two cores take 4 minutes a seed for LeNet-300-100 and
20 for LeNet-5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.baselines import finished
from modelzip_jax import checkpoints
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "deep_compression"


class Case(NamedTuple):
    """sparsity: of all kernels together. tuning: fields of the second run. error: theirs, in %. ratio: theirs."""

    title: str
    config: str
    sparsity: float
    entries: int
    fields: dict[str, Any]
    tuning: dict[str, Any]
    error: float
    ratio: float


CASES = (
    Case("LeNet-300-100", "lenet_300_100", 0.925, 16, {"epochs": 40.0, "data.augment": "crop"},
         {"epochs": 10.0, "optimizer.schedule.peak": 5e-4}, 1.58, 40.0),
    Case("LeNet-5", "lenet5", 0.925, 16, {"epochs": 20.0},
         {"epochs": 4.0, "optimizer.schedule.peak": 3e-4}, 0.74, 39.0),
)  # fmt: skip


def _config(case: Case, seed: int, **fields: Any) -> Any:
    changes = {**case.fields, **fields, "seed": seed}
    arguments = [f"--config.{field}={value}" for field, value in changes.items()]
    return configs.override(configs.load_config(ROOT / "configs" / f"{case.config}.py"), arguments)


def _steps(config: Any) -> int:
    return experiment.build(config).steps


def _run(config: Any, folder: Path, transform: mz.Transform, only_finished: bool) -> dict[str, Any] | None:
    result = finished(config, folder)
    return result if result or only_finished else experiment.run(config, folder, transform)


def compressed(case: Case, seed: int, only_finished: bool) -> dict[str, Any] | None:
    """The result of the second run; None if it is not there and shall not be made."""
    folder = RUNS / f"{case.config}-{case.sparsity:g}-{case.entries}-{seed}"  # What a config does not say.
    config = _config(case, seed)
    steps = _steps(config)
    rising = mz.schedules.cubic(case.sparsity, steps // 10, 3 * steps // 4)
    thin = mz.only("**/kernel", mz.prune(sparsity=rising, allocation="global", every=max(steps // 100, 1)))
    if _run(config, folder / "pruned", thin, only_finished) is None:
        return None
    weights = folder / "pruned.npz"
    if not weights.exists():
        checkpoints.write(weights, mz.unpack(mz.load(folder / "pruned" / "model.mz")))
    # The zeros are the smallest weights: pruning at once finds the same mask again.
    fixed = mz.prune(sparsity=case.sparsity, allocation="global")
    shared = mz.partition(
        {"kernels": mz.chain(fixed, mz.cluster(case.entries)), "biases": mz.quantize(bits=8)},
        {"**/kernel": "kernels", "**/bias": "biases"},
    )
    tuning = _config(case, seed, **case.tuning, start=str(weights))
    return _run(tuning, folder / "shared", shared, only_finished)


def main() -> None:
    chosen = harness.options(__doc__, repeats=3, flags={"finished": "report the seeds that are done"})
    report = harness.Report("deep_compression", "Prune, share weights, code: Deep Compression's row", chosen)
    rows = []
    for case in CASES[: 1 if chosen.quick else None]:
        found = [compressed(case, seed, chosen.finished) for seed in range(chosen.repeats)]
        results = [r for r in found if r is not None]
        if not results:
            report.note(f"{case.title}: no seed is finished")
            continue
        errors = [100 * (1 - r["test"]["accuracy"]) for r in results]
        sizes = [r["file_bytes"] for r in results]
        ratio = results[0]["dense_bytes"] * len(sizes) / sum(sizes)
        mean = sum(errors) / len(errors)
        validation = 100 * sum(1 - r["validation"]["accuracy"] for r in results) / len(results)
        rows.append([
            case.title, f"{case.sparsity:.1%}", case.entries, " / ".join(f"{s:,}" for s in sizes), ratio,
            " / ".join(f"{e:.2f}" for e in errors), mean, validation, f"{case.ratio:.0f} at {case.error:.2f}",
        ])  # fmt: skip
        remark = f"{len(results)} seeds"
        report.bar(
            f"{case.title}: times smaller than float32", 45.0, ratio, least=True, unit="×", remark=remark
        )
        report.bar(f"{case.title}: test error of the file", case.error, mean, unit="%", remark=remark)
    columns = [
        "network", "sparsity of kernels", "entries", "file, bytes, by seed", "ratio", "test error, %", "mean, %",
        "validation error, %", "Deep Compression: ratio at error, %",
    ]  # fmt: skip
    report.table("Files", columns, rows)
    report.finish()


if __name__ == "__main__":
    main()
