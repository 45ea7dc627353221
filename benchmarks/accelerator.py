"""A GPU or TPU: whether it computes what the CPU does, then how fast what an accelerator changes is.

    python -m benchmarks.accelerator [--repeats 11] [--device cuda] [--products] [--quick]

At most 8 minutes, and nothing but jax (0.10 to 0.12), flax, optax and numpy: weights are random. First correctness:
golden files, the bits of what is packed, saved, loaded and unpacked beside those of the CPU, the laws of every
transform. Then int4 products by every way, decoding, wavelets, threshold, k-means, training steps, memory. What no
time is left for is named. The record is called by the device: `benchmarks/results/accelerator_<device>.json`. On a CPU
it runs, too: there its products and matrices are small. With --products int4 products alone, in a record of their own.
"""

from __future__ import annotations

import re
import sys
import time

import jax

import benchmarks.bare_environment  # noqa: F401  Before modelzip_jax.
from benchmarks import harness
from benchmarks.accelerator_checks import run_checks
from benchmarks.accelerator_measures import MEASURES

SECONDS = 450.0
CHECKING = 0.5
"""Of the time, at most, for correctness."""
LONGEST = 75.0
"""No measurement begins when less is left."""


def record_name(device_kind: str) -> str:
    """The record's name for a device.

    >>> record_name("NVIDIA H100 80GB HBM3"), record_name("TPU v5 lite")
    ('accelerator_nvidia_h100_80gb_hbm3', 'accelerator_tpu_v5_lite')
    """
    return "accelerator_" + re.sub(r"\W+", "_", device_kind.lower()).strip("_")


def main() -> None:
    """Runs the benchmark."""
    began = time.monotonic()
    chosen = harness.options(__doc__, repeats=11, flags={"products": "int4 products only, no checks"})
    device = jax.devices()[0]
    if chosen.products:
        report = harness.Report(
            f"{record_name(device.device_kind)}_products", f"int4 products: {device.device_kind}", chosen
        )
        MEASURES["int4 products"](report, chosen)
        report.finish()
        return
    report = harness.Report(record_name(device.device_kind), f"Accelerator: {device.device_kind}", chosen)
    limit = 150.0 if chosen.quick else SECONDS
    run_checks(report, began + CHECKING * limit, chosen.quick)
    for name, measure in MEASURES.items():
        if time.monotonic() - began > limit - (LONGEST if not chosen.quick else 20):
            report.note(f"no time was left for {name}")
            continue
        print(f"{name}, after {time.monotonic() - began:.0f} s", flush=True)
        measure(report, chosen)
    report.note(f"All of it took {time.monotonic() - began:.0f} s.")
    report.finish()
    if any(not bar.hit for bar in report.bars if bar.what.endswith("failures")):
        sys.exit("some checks failed")


if __name__ == "__main__":
    main()
