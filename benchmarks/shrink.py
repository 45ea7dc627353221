"""What removing half of every group of channels saves, in FLOPs and in time.

    python -m benchmarks.shrink [--repeats 15] [--cores 1] [--quick]

Random weights and a random half of each group's units: sizes and times do not depend on which.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from modelzip_jax import models, trace
from modelzip_jax.masking.shrink import silence
from modelzip_jax.models.resize import resized

CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], bool]] = {
    # title: model, options, inputs, whether a quick run has it
    "LeNet-5": ("lenet5", {}, (32, 28, 28, 1), True),
    "VGG19-BN, quarter width": ("vgg19", {"width": 0.25}, (32, 32, 32, 3), False),
    "ResNet-20": ("resnet20", {}, (32, 32, 32, 3), False),
    "language model, 4 layers": ("language_model", {}, (8, 256), False),
}


def main() -> None:
    chosen = harness.options(__doc__, repeats=15)
    report = harness.Report("shrink", "Physical pruning", chosen)
    rows = []
    for title, (name, options, shape, quick) in CASES.items():
        if chosen.quick and not quick:
            continue
        model, rng = models.create(name, **options), np.random.default_rng(0)
        x = rng.integers(0, 256, shape) if len(shape) == 2 else rng.normal(size=shape).astype(np.float32)
        variables = jax.jit(model.init)(jax.random.key(0), x)
        groups = trace.couplings(model.apply, variables, x).groups
        # Heads go as a whole: modules cannot be rebuilt with fewer places in values than in queries.
        groups = [g for g in groups if "value" not in str(g.leaves) or "query" in str(g.leaves)]
        removals = [(g, rng.permutation(g.units)[: g.units // 2]) for g in groups]
        smaller, shrunk = mz.shrink(variables, removals, rebuild=lambda s, model=model: resized(model, s))
        before, after = jax.jit(model.apply), jax.jit(smaller.apply)
        expected, found = before(silence(variables, removals), x), after(shrunk, x)
        error = float(jnp.abs(found - expected).max() / jnp.abs(expected).max())
        times = harness.interleave(
            {
                "before": lambda f=before, v=variables, x=x: jax.block_until_ready(f(v, x)),
                "after": lambda f=after, v=shrunk, x=x: jax.block_until_ready(f(v, x)),
            },
            chosen.repeats,
            warmup=2,
        )
        flops = trace.cost(smaller.apply, shrunk, x).flops / trace.cost(model.apply, variables, x).flops
        time = harness.median(harness.ratios(times, "after", "before"))
        size = mz.tree.nbytes(shrunk) / mz.tree.nbytes(variables)
        rows.append([title, len(groups), flops, time, size, error])
        print(*rows[-1], flush=True)
        report.bar(f"{title}: shrunk output beside the silenced one, relative", 1e-5, error)
        report.bar(
            f"{title}: time of the shrunk model ÷ whole", 1.0, time, unit="×", remark=f"FLOPs {flops:.2f} ×"
        )
    columns = ["model", "groups", "FLOPs ÷ whole", "time ÷ whole", "bytes ÷ whole", "largest relative error"]
    report.table("Half of every group removed", columns, rows)
    report.finish()


if __name__ == "__main__":
    main()
