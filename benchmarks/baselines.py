"""Float baselines: what the configs reach without compression, over several seeds.

    python -m benchmarks.baselines [--repeats 3] [--quick]

A repeat is a seed. Runs live in `runs/baselines` and go on where they stand, so that a benchmark that
was interrupted costs only what is missing. Choices (epochs, rates, decay) were made on the validation
split; the figures are of the test split, after training on the training split alone. With `--finished` only
finished runs are reported, and rows without any stay as they were recorded.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks import harness
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "baselines"
FASHION = {"data.name": "fashion_mnist", "data.augment": "none", "optimizer.weight_decay": 0.05}

CASES: list[tuple[str, str, dict[str, Any], float, bool]] = [
    # title, config, fields, limit of the error in %, whether a quick run has it
    ("digits, MLP 300-100", "digits_mlp", {}, math.inf, True),
    ("MNIST, LeNet-300-100", "lenet_300_100", {}, 1.7, False),
    ("MNIST, LeNet-5", "lenet5", {}, 0.75, False),
    ("Fashion-MNIST, LeNet-5", "lenet5", FASHION, 8.5, False),
    # What two cores do in some ten minutes; the config's own epochs take a GPU.
    (
        "CIFAR-10, ResNet-20, 1 epoch",
        "resnet20",
        {"epochs": 1.0, "optimizer.schedule.warmup": 50},
        math.inf,
        False,
    ),
]


def finished(config: Any, folder: Path) -> dict[str, Any] | None:
    """The result of a finished run, None if there is none; stops at one of another config."""
    if not (folder / "result.json").exists():
        return None
    ours = {name: value for name, value in config.to_dict().items() if name != "distributed"}
    if json.loads(json.dumps(ours)) != json.loads((folder / "config.json").read_text()):
        raise SystemExit(f"{folder} is of another config: remove it")
    return json.loads((folder / "result.json").read_text())


def _recorded() -> dict[str, list[Any]]:
    """Rows of the last recording by title."""
    path = harness.RESULTS / "baselines.json"
    tables = json.loads(path.read_text())["tables"] if path.exists() else []
    return {row[0]: row for table in tables for row in table["rows"]}


def main() -> None:
    chosen = harness.options(__doc__, repeats=3, flags={"finished": "report the seeds that are done"})
    report = harness.Report("baselines", "Float baselines", chosen)
    rows, recorded = [], _recorded()
    for title, name, fields, limit, quick in CASES:
        if chosen.quick and not quick:
            continue
        results: list[dict[str, Any]] = []
        for seed in range(chosen.repeats):
            changes = [f"--config.{field}={value}" for field, value in {**fields, "seed": seed}.items()]
            config = configs.override(configs.load_config(ROOT / "configs" / f"{name}.py"), changes)
            folder = RUNS / f"{title.lower().replace(', ', '-').replace(' ', '-')}-{seed}"
            result = finished(config, folder)
            if result is None and chosen.finished:
                continue
            results.append(result or experiment.run(config, folder))
            print(title, seed, f"{results[-1]['test']['accuracy']:.4f}", flush=True)
        if results:
            errors = [100 * (1 - r["test"]["accuracy"]) for r in results]
            mean = sum(errors) / len(errors)
            spread = sum((e - mean) ** 2 for e in errors) / max(len(errors) - 1, 1)
            error = round(math.sqrt(spread / len(errors)), 3) if len(errors) > 1 else "one seed"
            rows.append([
                title, " / ".join(f"{e:.2f}" for e in errors), mean, error,
                100 * sum(1 - r["validation"]["accuracy"] for r in results) / len(results),
                100 * sum(r["gap"] for r in results) / len(results), results[0]["steps"],
            ])  # fmt: skip
        elif title in recorded:
            rows.append(recorded[title])
            report.note(f"{title}: no seed is finished here; the row of an earlier recording stands")
        else:
            report.note(f"{title}: no seed is finished")
            continue
        if math.isfinite(limit):
            seeds = len(rows[-1][1].split(" / "))
            what = f"{title}: test error, mean of {seeds} seed{'s' * (seeds > 1)}"
            report.bar(what, limit, rows[-1][2], unit="%", remark=f"± {rows[-1][3]}")
    columns = [
        "run", "test error, %", "mean, %", "± standard error", "validation error, %", "train − test accuracy, %",
        "steps",
    ]  # fmt: skip
    report.table("Test error by seed", columns, rows)
    report.finish()


if __name__ == "__main__":
    main()
