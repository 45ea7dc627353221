"""The worked example: VGG19 of a quarter of the width within a twentieth of its parameters, activations to file.

    python -m benchmarks.vgg19_example [--quick]

It runs `modelzip example vgg19 --size quarter` in runs/vgg19, or goes on there; what was done before is read. Times are
the processor's, of all cores together, so that other programs do not count.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks import harness
from modelzip_jax.examples.example_table import NAMES
from modelzip_jax.examples.vgg19_sizes import FULL_PARAMETERS, vgg19_settings

MINUTES, TRAINED_MINUTES = 60.0, 25.0


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=1)
    report = harness.Report("vgg19_example", "The worked example: VGG19", chosen)
    size = "tiny" if chosen.quick else "quarter"
    folder = Path("runs") / ("vgg19_tiny" if chosen.quick else "vgg19")
    harness.run_cli("example", "vgg19", "--size", size, "--out", str(folder), "--json")
    found = json.loads((folder / "table/table.json").read_text())
    rows = found["rows"]
    first, last = rows[0], rows[-1]
    report.table(
        found["title"],
        ["", "parameters", "not zero", "bytes in the file", "times smaller", "test accuracy, %", "± one SE",
         "below, points", "train − test, points"],
        [
            [NAMES[r["stage"]], r["parameters"], r["nonzero"], r["file_bytes"], r["smaller"], 100 * r["accuracy"],
             100 * r["accuracy_se"], 100 * r["below"], 100 * r["gap"]]
            for r in rows
        ],
    )  # fmt: skip
    visits = json.loads((folder / "shrunk/visits.json").read_text())
    report.table(
        "Convolutions in the order in which they were visited",
        ["convolution", "activations not zero, %", "filters", "kept", "parameters of the network behind it"],
        [
            [v["leaf"].split("/")[0], 100 * v["active"], v["filters"], v["kept"], v["parameters"]]
            for v in visits
        ],
    )
    stages = [path.parent for path in sorted(folder.glob("*/stage.json"), key=lambda p: p.stat().st_mtime)]
    minutes = {at.name: json.loads((at / "stage.json").read_text())["cpu_seconds"] / 60 for at in stages}
    report.table("CPU minutes of each stage", list(minutes), [list(minutes.values())])
    report.bar(
        "parameters that are not zero ÷ those of the float network",
        1 / 20,
        last["nonzero"] / first["nonzero"],
    )
    report.bar(
        "elements of all arrays ÷ those of the float network",
        1 / 20,
        last["parameters"] / first["parameters"],
    )
    report.bar("test accuracy below the float network's", 0.5, 100 * last["below"], unit=" points")
    report.bar(
        "the float network's lossless file ÷ the last file", 50, last["smaller"], least=True, unit=" ×"
    )
    report.bar(
        "from the trained network", TRAINED_MINUTES, sum(minutes.values()) - minutes["dense"], unit=" CPU min"
    )
    report.bar("with training", MINUTES, sum(minutes.values()), unit=" CPU min")
    own = vgg19_settings(size)
    share = f"{own.compress.parameters:,} of {FULL_PARAMETERS:,}"
    report.note(
        f"{found['title']}: parameters within the share of a full width, {share}. One seed; no setting was "
        "chosen on the test split. File sizes are compared with the float network's own lossless `.mz` file."
    )
    kept = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    if kept:
        report.note("memory kept: " + " ".join(f"{name}={value}" for name, value in kept.items()))
    report.finish()


if __name__ == "__main__":
    main()
