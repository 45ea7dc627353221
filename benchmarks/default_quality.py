"""What `modelzip compress` does without options, beside 6 bits a weight per channel, which it did before.

    python -m benchmarks.default_quality [--quick]

One network of each family of `benchmarks.tasks`. The quality of the default was chosen on the validation parts; the
test parts are reported. EfficientNet-Lite0 is judged by few pictures, as they take long. --quick: few examples of each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

import modelzip_jax as mz
from benchmarks import harness, tasks
from benchmarks.networks import MissingPackageError
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.errors import DataError, MissingExtraError

NETWORKS = (
    "lenet_300_100-fashion_mnist-0", "lenet5-fashion_mnist-0", "lenet5-mnist-0", "resnet20-fashion_mnist", "g2p",
    "crepe_tiny", "kjv_model", "minilm", "efficientnet_lite0",
)  # fmt: skip
SLOW = ("efficientnet_lite0",)
AGREEMENT = ("minilm", "efficientnet_lite0")
"""Networks whose quality is agreement with the float network: its own has no standard error."""
PARTS = ("validation", "test")
BEFORE = mz.only("**", mz.quantize(6), min_ndim=2, floating=True)


class Measured(NamedTuple):
    """bytes: of the file. lost: by part, by how much quality is lower than the float network's, example by example."""

    bytes: int
    lost: dict[str, np.ndarray]
    params: Any


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=1)
    report = harness.Report("default_quality", "The default of the command", chosen)
    rows: list[list[Any]] = []
    of_one_axis: list[list[Any]] = []
    for name in NETWORKS:
        try:
            task = tasks.load(name, quick=chosen.quick or name in SLOW)
        except (MissingPackageError, MissingExtraError, DataError) as error:
            report.note(f"{name} is left out: {error}")
            continue
        floats = {part: task.quality(task.params, part) for part in PARTS}

        def measured(how: Any, task: tasks.Task = task, floats: dict[str, np.ndarray] = floats) -> Measured:
            packed = mz.compress(task.params, how)
            params = jax.tree.map(np.asarray, mz.unpack(packed.params))
            lost = {part: floats[part] - task.quality(params, part) for part in PARTS}
            return Measured(file_sizes(packed).total, lost, params)

        before, now = measured(BEFORE), measured(mz.smallest())
        for part in PARTS:
            row: list[Any] = [name if part == PARTS[0] else "", part, f"{task.measures[0].name}"]
            row += [harness.said(floats[part], digits=4) if name not in AGREEMENT else "1"]
            for found in (before, now):
                row += [found.bytes if part == PARTS[0] else "", harness.said(-found.lost[part], digits=5)]
            rows.append(row)
            print(*row, flush=True)
        bars(report, name, before, now, harness.standard_error(floats["validation"]))
        lossless = file_sizes(mz.compress(task.params, mz.smallest(min_ndim=2))).total
        mixed = jax.tree.map(lambda w, rounded: rounded if np.ndim(w) < 2 else w, task.params, now.params)
        lost = floats["validation"] - task.quality(mixed, "validation")
        saved = 100 * (1 - now.bytes / lossless)
        of_one_axis.append([name, lossless, now.bytes, f"{saved:.2f} %", harness.said(-lost, digits=6)])
        print(*of_one_axis[-1], flush=True)
    report.table(
        "Bytes, and the difference of quality to the float network's ± its standard error, paired",
        [
            "network",
            "part",
            "quality",
            "float",
            "6 bits: bytes",
            "difference",
            "default: bytes",
            "difference",
        ],
        rows,
    )
    report.table(
        "Leaves of one axis: what rounding them saves, and what it costs by itself on validation",
        ["network", "bytes, lossless", "bytes", "saved", "difference"],
        of_one_axis,
    )
    report.finish()


def bars(report: harness.Report, name: str, before: Measured, now: Measured, error: float) -> None:
    """error: the standard error of the float network's quality."""
    lost, lost_before = (float(np.mean(found.lost["validation"])) for found in (now, before))
    report.bar(f"{name}: bytes ÷ 6 bits'", 1.0, now.bytes / before.bytes, unit=" ×")
    if name not in AGREEMENT:
        report.bar(f"{name}: loss on validation ÷ standard error of the float quality", 1.0, lost / error)
    else:
        report.bar(f"{name}: loss on validation ÷ 6 bits'", 1.0, lost / lost_before, unit=" ×")
    if name == "minilm":
        report.bar("minilm: file", 12.0, now.bytes / 1e6, unit=" MB")
        report.bar("minilm: mean cosine, validation", 0.99, 1.0 - lost, least=True)


if __name__ == "__main__":
    main()
