"""What removing half of every group of channels, or half of the FLOPs, saves in FLOPs, time and bytes.

    python -m benchmarks.shrink [--repeats 15] [--cores 1] [--quick]

Random weights and a random half of each group's units: sizes and times do not depend on which. Files are of 8-bit
kernels.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from modelzip_jax import models, trace
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.models.resize import resized

CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], bool]] = {
    # title: model, options, inputs, whether a quick run has it
    "LeNet-5": ("lenet5", {}, (32, 28, 28, 1), True),
    "VGG19-BN, quarter width": ("vgg19", {"width": 0.25}, (32, 32, 32, 3), False),
    "ResNet-20": ("resnet20", {}, (32, 32, 32, 3), False),
    "language model, 4 layers": ("language_model", {}, (8, 256), False),
}

AT_HALF_THE_FLOPS = ("VGG19-BN, quarter width", "ResNet-20")
MULTIPLES = (1, 8)
"""Convolutions of uneven widths take XLA:CPU up to three times as long a FLOP."""


def _measured(
    model: Any, variables: Any, x: Any, removals: Any, repeats: int
) -> tuple[float, float, float, float]:
    """FLOPs, time and bytes of the file of the shrunk model over the whole one's, and its largest relative error."""
    smaller, shrunk = mz.rewrites.shrink(variables, removals, rebuild=lambda s: resized(model, s))
    before, after = jax.jit(model.apply), jax.jit(smaller.apply)
    expected, found = before(mz.rewrites.silence(variables, removals), x), after(shrunk, x)
    error = float(jnp.abs(found - expected).max() / jnp.abs(expected).max())
    times = harness.interleave(
        {
            "before": lambda: jax.block_until_ready(before(variables, x)),
            "after": lambda: jax.block_until_ready(after(shrunk, x)),
        },
        repeats,
        warmup=2,
    )
    flops = trace.cost(smaller.apply, shrunk, x).flops / trace.cost(model.apply, variables, x).flops
    size = _file(shrunk) / _file(variables)
    return flops, harness.median(harness.ratios(times, "after", "before")), size, error


def _file(variables: Any) -> int:
    return file_sizes(mz.compress(variables, mz.only("**/kernel", mz.quantize(8)))).total


def _groups(model: Any, variables: Any, x: Any) -> list[Any]:
    groups = trace.couplings(model.apply, variables, x).groups
    # Heads go as a whole: modules cannot be rebuilt with fewer places in values than in queries.
    return [g for g in groups if "value" not in str(g.leaves) or "query" in str(g.leaves)]


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=15)
    report = harness.Report("shrink", "Physical pruning", chosen)
    halved, budgets = [], []
    for title, (name, options, shape, quick) in CASES.items():
        if chosen.quick and not quick:
            continue
        model, rng = models.create(name, **options), np.random.default_rng(0)
        x = rng.integers(0, 256, shape) if len(shape) == 2 else rng.normal(size=shape).astype(np.float32)
        variables = jax.jit(model.init)(jax.random.key(0), x)
        groups = _groups(model, variables, x)
        removals = [(g, rng.permutation(g.units)[: g.units // 2]) for g in groups]
        flops, time, size, error = _measured(model, variables, x, removals, chosen.repeats)
        halved.append([title, len(groups), flops, time, size, error])
        print(*halved[-1], flush=True)
        report.bar(f"{title}: shrunk output beside the silenced one, relative", 1e-5, error)
        if title not in AT_HALF_THE_FLOPS:
            continue
        scores = mz.rewrites.unit_scores(variables, groups, mz.scores.magnitude()(variables["params"]))
        bound = trace.cost(model.apply, variables, x).flops // 2
        for multiple in MULTIPLES:
            picked = mz.rewrites.choose_units(
                scores, variables, max_flops=bound, allocation="uniform", inputs=(x,), round_to=multiple,
                rebuild=lambda shapes, model=model: resized(model, shapes),
            )  # fmt: skip
            flops, time, size, error = _measured(model, variables, x, picked, chosen.repeats)
            budgets.append([title, multiple, flops, time, size, error])
            print(*budgets[-1], flush=True)
            what = f"{title}, half the FLOPs, counts in {multiple}s"
            if multiple == max(MULTIPLES):
                report.bar(f"{what}: time ÷ whole", 0.65, time, unit=" ×", remark=f"FLOPs {flops:.3f} ×")
                report.bar(f"{what}: file ÷ whole", 1.0, size, unit=" ×")
            report.bar(f"{what}: output beside the masked model, relative", 1e-5, error)
    columns = ["FLOPs ÷ whole", "time ÷ whole", "file ÷ whole", "largest relative error"]
    report.table("Half of every group removed", ["model", "groups", *columns], halved)
    report.table(
        "At most half the FLOPs, units by magnitude, groups alike",
        ["model", "channels are multiples of", *columns],
        budgets,
    )
    report.finish()


if __name__ == "__main__":
    main()
